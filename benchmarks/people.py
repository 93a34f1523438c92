"""Rendering and scoring of single people of the benchmark.

Functions write their JSON result last, so an existing result is complete.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8

from benchmarks.data import HEIGHT, NUM_FRAMES, SPLITS, WIDTH
from dreampose import data, metrics, poses, synthetic, training
from dreampose.diffusion import generation
from dreampose.io import video
from dreampose.io.files import new_file
from dreampose.metrics import pck as keypoints
from dreampose.metrics import perceptual, registry
from dreampose.models.vae import LatentCodec
from dreampose.options.loading import load
from dreampose.pipeline import DreamPosePipeline
from dreampose.poses import landmarks
from dreampose.synthetic.generate import MAX_IDENTITIES
from dreampose.synthetic.identity import Identity, identity
from dreampose.types import Clip

SCORED = tuple(start + step for start in range(6, NUM_FRAMES, 8) for step in (0, 1))
"""Scored frames of each clip: pairs of consecutive frames, for the temporal difference error."""
METRICS = ("l1", "psnr", "ssim", "tde", "lpips-lite")
POSE_FRAMES = (3, 9, 15, 21)
"""Frames of a full turn of 24 frames in which identities are compared."""
TRAINING_STEP = 4
"""Step between the training frames that are candidates for the row `nearest`."""
GAIT = (
    *("stride", "cadence", "arm_swing", "sway", "phase", "start_yaw", "walk_yaw", "turn_rate"),
    *("camera_height", "camera_distance", "camera_yaw"),
)
"""Parameters that are equal for all people in the identity test."""
READER = "blazepose"
"""Estimator that needs only the frames."""
LIMBS = tuple(
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
)
"""Joints of the PCK."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings of a result; results with other settings are computed again."""

    model: str
    fingerprint: str
    preset: str
    estimator: str
    num_steps: int | None
    num_vae_steps: int | None
    num_photos: int
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Extracted motion and true frames of one clip."""

    motion: poses.Motion
    truth: UInt8[np.ndarray, "n h w 3"]


def is_done(file: Path, protocol: Protocol) -> bool:
    """Whether a JSON result exists and has the same protocol."""
    return file.is_file() and json.loads(file.read_text())["protocol"] == asdict(protocol)


def write_result(file: Path, protocol: Protocol, **values: Any) -> None:
    """Writes a JSON result atomically."""
    with new_file(file) as part:
        part.write_text(json.dumps({"protocol": asdict(protocol), **values}, indent=1))


def training_frames(number: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Every `TRAINING_STEP`-th frame of walk and turn of one training person."""
    person = identity(SPLITS["train"].seed * MAX_IDENTITIES + number, "train")
    clips = [
        synthetic.render_clip(
            person,
            motion=motion,
            num_frames=NUM_FRAMES // TRAINING_STEP,
            height=HEIGHT,
            width=WIDTH,
            fps=24 / TRAINING_STEP,
        ).frames
        for motion in ("walk", "turn")
    ]
    return np.concatenate(clips)


def score(folder: Path, clips: dict[str, Path], protocol: Protocol, *, finetune: bool) -> None:
    """Renders the clips of one person with all methods and writes scores to `result.json`.

    Args:
        folder: folder of the person; its parent contains `training.npy`.
        clips: paths of walk and turn.
        protocol: settings of the benchmark.
        finetune: whether to finetune the model on the person and score it as well.
    """
    torch.set_num_threads(1)
    shutil.rmtree(folder / "subject", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = load(protocol.model)
    recipe = pipe.recipe
    walk, turn = video.read(clips["walk"]), video.read(clips["turn"])
    photo = walk.frames[0]
    sides = (NUM_FRAMES // 4, NUM_FRAMES // 2)
    photos = [photo, *(turn.frames[at] for at in sides)]
    scenes: dict[str, Scene] = {}
    for name, clip in (("walk", walk), ("turn", turn)):
        truth = video.fit(clip.frames, recipe.height, recipe.width)[list(SCORED)]
        scenes[name] = Scene(motion=extract(clip, pipe, protocol.estimator), truth=truth)
    seen = [scenes["walk"].motion.between(0, 1)]
    seen += [scenes["turn"].motion.between(at, at + 1) for at in sides]

    codec = LatentCodec(vae=pipe.vae, image_range=recipe.image_range)
    small = video.fit(photo[None], recipe.height, recipe.width)
    candidates = np.load(folder.parent / "training.npy", mmap_mode="r")
    pictures = {
        name: {
            "copy": np.repeat(small, len(SCORED), axis=0),
            "nearest": nearest(scene.truth, candidates),
            "VAE": reconstruct(codec, scene.truth),
            "base": render(pipe, [photo], scene.motion, SCORED, protocol, seen[:1]),
        }
        for name, scene in scenes.items()
    }
    if recipe.needs_surface:
        for name, scene in scenes.items():
            pictures[name] |= {
                "preview": render(
                    pipe, [photo], scene.motion, SCORED, replace(protocol, preset="preview"),
                    seen[:1],
                ),
                "photos": render(pipe, photos, scene.motion, SCORED, protocol, seen),
            }  # fmt: skip
    if protocol.estimator != READER:
        read = {
            name: extract(clip, pipe, READER) for name, clip in (("walk", walk), ("turn", turn))
        }
        for name, motion in read.items():
            first = [read["walk"].between(0, 1)]
            pictures[name]["read"] = render(pipe, [photo], motion, SCORED, protocol, first)
    seconds = None
    if finetune:
        start = time.monotonic()
        for _ in training.finetune_subject(
            pipe,
            photos[: protocol.num_photos],
            folder / "subject",
            name=folder.name,
            accelerator=Accelerator(cpu=True),
            motions=seen[: protocol.num_photos],
            num_steps=protocol.num_steps,
            num_vae_steps=protocol.num_vae_steps,
        ):
            pass
        seconds = time.monotonic() - start
        pipe.load_subject(folder / "subject")
        for name, scene in scenes.items():
            pictures[name]["finetuned"] = render(
                pipe, photos[: protocol.num_photos], scene.motion, SCORED, protocol,
                seen[: protocol.num_photos],
            )  # fmt: skip

    networks = metrics.Networks()
    scores = {
        name: {
            method: measure(found, scene.truth, networks)
            for method, found in pictures[name].items()
        }
        for name, scene in scenes.items()
    }
    for name, scene in scenes.items():
        arrays: dict[str, Any] = {**pictures[name]}
        np.savez_compressed(
            folder / f"{name}.npz",
            photo=small[0],
            truth=scene.truth,
            maps=scene.motion.maps[list(SCORED)],
            **arrays,
        )
    write_result(folder / "result.json", protocol, scores=scores, finetune_seconds=seconds)


def score_pose(folder: Path, number: int, photo_file: Path, protocol: Protocol) -> None:
    """Renders one person turning with the gait of the first test person."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = load(protocol.model)
    turn = turning(test_person(number))
    # The estimator reads exact poses from the file beside the clip.
    path = synthetic.write_clip(turn, folder, "turning")
    clip = Clip(frames=turn.frames, fps=turn.fps, source=str(path))
    motion = extract(clip, pipe, protocol.estimator)
    walk = video.read(photo_file)
    photo, seen = walk.frames[0], extract(walk, pipe, protocol.estimator)
    np.savez_compressed(
        folder / "pose.npz",
        pred=render(pipe, [photo], motion, POSE_FRAMES, protocol, [seen.between(0, 1)]),
        truth=video.fit(clip.frames, pipe.recipe.height, pipe.recipe.width)[list(POSE_FRAMES)],
    )
    write_result(folder / "pose.json", protocol)


def score_real(folder: Path, photo_file: Path, motion_file: Path, protocol: Protocol) -> None:
    """Renders one person with the motion of a real video and writes PCK to `real.json`.

    With the base model, and with the finetuned one if the folder contains it.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = load(protocol.model)
    photo = video.read(photo_file).frames[0]
    motion = poses.Motion.load(motion_file).resample(15.0).between(0, 32)
    wanted = poses.align(motion, generation.photo_pose(photo, motion.height, motion.width))
    pictures: dict[str, Any] = {}
    for method in ("base", "finetuned"):
        if method == "finetuned":
            if not (folder / "subject").is_dir():
                continue
            pipe.load_subject(folder / "subject")
        pictures[method] = render(pipe, [photo], wanted, tuple(range(wanted.num_frames)), protocol)
    found = {
        method: extract(Clip(frames=frames, fps=wanted.fps, source="render"), pipe, READER)
        for method, frames in pictures.items()
    }
    np.savez_compressed(folder / "real.npz", photo=photo, maps=wanted.maps, **pictures)
    pck = {method: correct_joints(motion, wanted) for method, motion in found.items()}
    write_result(folder / "real.json", protocol, pck=pck)


def correct_joints(found: poses.Motion, wanted: poses.Motion) -> float:
    """PCK@0.2 of `LIMBS`, relative to the torso length."""
    columns = [landmarks.NAMES.index(name) for name in LIMBS]
    scale = wanted.height / found.height
    true = wanted.joints[:, columns]
    ends = [landmarks.point(wanted.joints, f"middle_{name}")[:, :2] for name in ("shoulder", "hip")]
    return keypoints.pck(
        found.joints[:, columns, :2] * scale,
        true[..., :2],
        np.linalg.norm(ends[0] - ends[1], axis=-1),
        visible=true[..., 3] >= 0.5,
    )


def test_person(number: int) -> Identity:
    """Parameters of a person of the test split."""
    return identity(SPLITS["test"].seed * MAX_IDENTITIES + number, "test")


def turning(person: Identity) -> synthetic.CatwalkClip:
    """Full turn of a person with the gait and camera of the first test person."""
    first = asdict(test_person(0))
    person = replace(person, **{name: first[name] for name in GAIT})
    return synthetic.render_clip(
        person, motion="turn", num_frames=24, height=HEIGHT, width=WIDTH, fps=12.0
    )


def kept(preds: UInt8[np.ndarray, "n h w 3"], truths: UInt8[np.ndarray, "n h w 3"]) -> np.ndarray:
    """Whether the identity of each person is kept; see `perceptual.identity_kept`."""
    network = metrics.Networks().get(metrics.METRICS["lpips-lite"])
    matrix = perceptual.pairwise_lpips_lite(
        network, registry.to_tensor(preds), registry.to_tensor(truths)
    )
    return perceptual.identity_kept(matrix).numpy()


def extract(clip: Clip, pipe: DreamPosePipeline, estimator: str) -> poses.Motion:
    """Extracts the motion of a clip."""
    height, width = data.working_size(clip, pipe.recipe)
    return poses.extract(clip, poses.estimator(estimator), height=height, width=width)


def render(
    pipe: DreamPosePipeline,
    photos: list[UInt8[np.ndarray, "H W 3"]],
    motion: poses.Motion,
    indices: tuple[int, ...],
    protocol: Protocol,
    photo_poses: list[poses.Motion] | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Renders frames of a motion, without alignment, at the size of the model.

    Args:
        pipe: the model.
        photos: of the person.
        motion: of the clip.
        indices: of the frames.
        protocol: with the preset.
        photo_poses: of the photos, for models with a surface condition.
    """
    request = generation.prepare(
        pipe,
        photos,
        motion,
        preset=protocol.preset,
        seed=0,
        align=False,
        photo_poses=photo_poses,
        upscale=1,
    )
    chunks = [indices[start : start + 8] for start in range(0, len(indices), 8)]
    return np.concatenate([generation.render_frames(pipe, request, chunk) for chunk in chunks])


@torch.no_grad()
def reconstruct(
    codec: LatentCodec, frames: UInt8[np.ndarray, "n h w 3"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Encodes and decodes frames with the VAE."""
    return video.to_pixels(codec.decode(codec.encode(video.to_model(frames))))


def nearest(
    frames: UInt8[np.ndarray, "n h w 3"], candidates: UInt8[np.ndarray, "m h w 3"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Nearest candidate of each frame by L1."""
    best = [
        min(range(len(candidates)), key=lambda i: int(_difference(frame, candidates[i])))
        for frame in frames
    ]
    return np.asarray(candidates[best])


def _difference(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> np.int64:
    return np.abs(a.astype(np.int16) - b).sum(dtype=np.int64)


def measure(
    pred: UInt8[np.ndarray, "n h w 3"],
    truth: UInt8[np.ndarray, "n h w 3"],
    networks: metrics.Networks,
) -> dict[str, float]:
    """Mean scores over frames that are pairs of consecutive frames."""
    return metrics.pair_scores([metrics.METRICS[name] for name in METRICS], pred, truth, networks)
