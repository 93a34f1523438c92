"""Rendering and file format of a clip with its ground truth.

`NAME.npz` beside `NAME.mp4` holds these arrays, without pickles:

    parts         (t H W) uint8    DensePose parts 1 to 24; 0 is the background
    uv            (t H W 2) uint16 UV on the body atlas times 65535; 0 on the background
    cloth         (t H W) uint8    visible `Surface` (0 background, 1 skin, 2 eyes, 3 hair, 4 top,
                                   5 skirt or trousers, 6 dress, 7 shoes)
    garment       (t H W) uint8    `Surface` of the garment that is visible when skin is removed
    garment_parts (t H W) uint8    DensePose part under that garment
    joints        (t 33 3) float32 BlazePose landmarks: x and y in pixels (0 is the centre of the
                                   first pixel), depth relative to the hips in pixels, larger
                                   is farther from the camera
    visible       (t 33) bool      whether the landmark lies inside the picture
    fps           ()     float64
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from dreampose.errors import InputError
from dreampose.io import video
from dreampose.io.files import new_file
from dreampose.synthetic import gait, render, scene
from dreampose.synthetic.identity import Identity
from dreampose.synthetic.mesh import GARMENTS, Surface

DEFAULT_FPS = 24.0
REGIONS = (
    (1, 2),
    (7, 8, 9, 10, 11, 12, 13, 14),
    (5,),
    (6,),
    (15, 17, 19, 21),
    (16, 18, 20, 22),
)
"""DensePose parts of the trunk, legs, left foot, right foot, left arm and right arm."""


@dataclass(frozen=True, kw_only=True)
class CatwalkClip:
    """Frames with ground truth per pixel; the module's docstring explains the fields."""

    frames: UInt8[np.ndarray, "t H W 3"]
    parts: UInt8[np.ndarray, "t H W"]
    uv: Float32[np.ndarray, "t H W 2"]
    cloth: UInt8[np.ndarray, "t H W"]
    garment: UInt8[np.ndarray, "t H W"]
    garment_parts: UInt8[np.ndarray, "t H W"]
    joints: Float32[np.ndarray, "t 33 3"]
    visible: Bool[np.ndarray, "t 33"]
    fps: float
    identity: Identity
    motion: str


def render_clip(
    identity: Identity,
    *,
    motion: str,
    num_frames: int,
    height: int,
    width: int,
    fps: float = DEFAULT_FPS,
) -> CatwalkClip:
    """Renders one clip. The result is bit-identical for identical arguments.

    Args:
        identity: the person.
        motion: 'walk', 'turn' or 'across' (a brisk walk that veers to the side).
        num_frames: at least 1.
        height: pixels, even, at least 32.
        width: pixels, even, at least 32.
        fps: frames per second, positive.

    Raises:
        InputError: an argument is out of range.
    """
    if motion not in gait.MOTIONS:
        raise InputError(f"motion must be one of {', '.join(gait.MOTIONS)}, got {motion!r}")
    if num_frames < 1:
        raise InputError(f"num_frames must be at least 1, got {num_frames}")
    for name, side in (("height", height), ("width", width)):
        if side < 32 or side % 2:
            raise InputError(f"{name} must be even and at least 32, got {side}")
    if not fps > 0:
        raise InputError(f"fps must be positive, got {fps}")
    dressed = scene.build(identity)
    setup = render.prepare(dressed, height=height, width=width)
    poses = gait.poses(
        identity,
        motion=motion,
        num_frames=num_frames,
        fps=fps,
        arm_lift=dressed.arm_lift,
        stance=dressed.stance,
    )
    drawn = [render.draw(setup, scene.pose(dressed, pose)) for pose in poses]
    joints = np.stack([frame.joints for frame in drawn])
    x, y = joints[..., 0], joints[..., 1]
    return CatwalkClip(
        frames=np.stack([frame.image for frame in drawn]),
        parts=np.stack([frame.parts for frame in drawn]),
        uv=np.stack([frame.atlas for frame in drawn]),
        cloth=np.stack([frame.surface for frame in drawn]),
        garment=np.stack([frame.garment for frame in drawn]),
        garment_parts=np.stack([frame.garment_parts for frame in drawn]),
        joints=joints,
        visible=(x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1),
        fps=fps,
        identity=identity,
        motion=motion,
    )


def skin_through_cloth(clip: CatwalkClip) -> float:
    """Share of garment pixels, in [0, 1], at which skin wrongly shows through the garment.

    A skin pixel counts if, with skin removed, it would show the outer side of a garment on the
    same body region (see `REGIONS`): a leg in front of a skirt counts, an arm in front of a top
    does not.
    """
    region = np.zeros(256, np.uint8)
    for number, members in enumerate(REGIONS, 1):
        region[list(members)] = number
    worn = region[clip.garment_parts]
    bare = (clip.cloth == Surface.SKIN) & (clip.garment > 0) & (worn > 0)
    through = bare & (region[clip.parts] == worn)
    return float(through.sum() / max(1, np.isin(clip.cloth, GARMENTS).sum()))


def write_clip(clip: CatwalkClip, folder: str | Path, name: str) -> Path:
    """Writes `NAME.npz`, `NAME.json` and then `NAME.mp4`, each atomically.

    Returns:
        The path of the MP4. If it exists, the clip is complete.
    """
    folder = Path(folder)
    truth, facts = folder / f"{name}.npz", folder / f"{name}.json"
    with new_file(truth) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            parts=clip.parts,
            uv=np.round(clip.uv * 65535).astype(np.uint16),
            cloth=clip.cloth,
            garment=clip.garment,
            garment_parts=clip.garment_parts,
            joints=clip.joints,
            visible=clip.visible,
            fps=np.float64(clip.fps),
        )
    num_frames, height, width, _ = clip.frames.shape
    values = clip.identity.to_dict() | {
        "motion": clip.motion,
        "fps": clip.fps,
        "num_frames": num_frames,
        "height": height,
        "width": width,
    }
    with new_file(facts) as part:
        part.write_text(json.dumps(values, indent=1) + "\n")
    path = folder / f"{name}.mp4"
    # The benchmark compares checksums of this file: it must not depend on the processor.
    video.write(path, clip.frames, clip.fps, portable=True)
    return path
