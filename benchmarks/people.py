"""One person of the benchmark, rendered in every way and scored. Knows nothing of tables.

Every function that renders writes its result last, so that a file that is there is whole.
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
"""Frames of each clip that are scored: pairs of neighbours, so that flicker can be measured."""
METRICS = ("l1", "psnr", "ssim", "tde", "lpips-lite")
POSE_FRAMES = (3, 9, 15, 21)
"""Frames of a turn, once around in 24, in which people are compared with each other."""
TRAINING_STEP = 4
"""Of the training clips, each so many-th frame is a candidate for the nearest."""
GAIT = (
    *("stride", "cadence", "arm_swing", "sway", "phase", "start_yaw", "walk_yaw", "turn_rate"),
    *("camera_height", "camera_distance", "camera_yaw"),
)
"""What is alike where all people take one pose."""
READER = "blazepose"
"""The estimator that needs the picture alone."""
LIMBS = tuple(
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
)
"""The joints whose places are compared."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a result depends on; results of another protocol are not reused."""

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
    """One clip of a person: its motion as the estimator reads it, and the frames to score."""

    motion: poses.Motion
    truth: UInt8[np.ndarray, "n h w 3"]


def is_done(file: Path, protocol: Protocol) -> bool:
    """Whether a JSON result is there and of this very protocol."""
    return file.is_file() and json.loads(file.read_text())["protocol"] == asdict(protocol)


def write_result(file: Path, protocol: Protocol, **values: Any) -> None:
    """Writes a JSON result; it appears whole."""
    with new_file(file) as part:
        part.write_text(json.dumps({"protocol": asdict(protocol), **values}, indent=1))


def training_frames(number: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Frames of one training person's walk and turn, each `TRAINING_STEP`-th of the benchmark's."""
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
    """Renders one person's clips in every way; `result.json` holds the scores.

    Args:
        folder: of this person; training frames lie beside it in `training.npy`.
        clips: walk and turn.
        protocol: how.
        finetune: whether a finetuned model is scored too.
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
            "base": render(pipe, photo, scene.motion, SCORED, protocol),
        }
        for name, scene in scenes.items()
    }
    if protocol.estimator != READER:
        for name, clip in (("walk", walk), ("turn", turn)):
            motion = extract(clip, pipe, READER)
            pictures[name]["read"] = render(pipe, photo, motion, SCORED, protocol)
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
            pictures[name]["finetuned"] = render(pipe, photo, scene.motion, SCORED, protocol)

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
    """Renders one person, as in their photo, turning just as the first test person does."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = load(protocol.model)
    turn = turning(test_person(number))
    # The exact poses are read from a file, as those of any clip of the catwalk.
    path = synthetic.write_clip(turn, folder, "turning")
    clip = Clip(frames=turn.frames, fps=turn.fps, source=str(path))
    motion = extract(clip, pipe, protocol.estimator)
    photo = video.read(photo_file).frames[0]
    np.savez_compressed(
        folder / "pose.npz",
        pred=render(pipe, photo, motion, POSE_FRAMES, protocol),
        truth=video.fit(clip.frames, pipe.recipe.height, pipe.recipe.width)[list(POSE_FRAMES)],
    )
    write_result(folder / "pose.json", protocol)


def score_real(folder: Path, photo_file: Path, motion_file: Path, protocol: Protocol) -> None:
    """Has one person walk as a real video does; `real.json` holds the shares of correct joints.

    By the base model, and by the finetuned one where `score` has left it in the folder.
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
        pictures[method] = render(pipe, photo, wanted, tuple(range(wanted.num_frames)), protocol)
    found = {
        method: extract(Clip(frames=frames, fps=wanted.fps, source="render"), pipe, READER)
        for method, frames in pictures.items()
    }
    np.savez_compressed(folder / "real.npz", photo=photo, maps=wanted.maps, **pictures)
    pck = {method: correct_joints(motion, wanted) for method, motion in found.items()}
    write_result(folder / "real.json", protocol, pck=pck)


def correct_joints(found: poses.Motion, wanted: poses.Motion) -> float:
    """PCK@0.2 of shoulders, elbows, wrists, hips, knees and ankles; of the torso's length."""
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
    """A person of the test split."""
    return identity(SPLITS["test"].seed * MAX_IDENTITIES + number, "test")


def turning(person: Identity) -> synthetic.CatwalkClip:
    """The person turning around once, in the first test person's gait and before their camera."""
    first = asdict(test_person(0))
    person = replace(person, **{name: first[name] for name in GAIT})
    return synthetic.render_clip(
        person, motion="turn", num_frames=24, height=HEIGHT, width=WIDTH, fps=12.0
    )


def kept(preds: UInt8[np.ndarray, "n h w 3"], truths: UInt8[np.ndarray, "n h w 3"]) -> np.ndarray:
    """For each person in one pose, whether their own truth is the nearest by lpips-lite."""
    network = metrics.Networks().get(metrics.METRICS["lpips-lite"])
    matrix = perceptual.pairwise_lpips_lite(
        network, registry.to_tensor(preds), registry.to_tensor(truths)
    )
    return perceptual.identity_kept(matrix).numpy()


def extract(clip: Clip, pipe: DreamPosePipeline, estimator: str) -> poses.Motion:
    """The clip's motion, as from any video."""
    height, width = data.working_size(clip, pipe.recipe)
    return poses.extract(clip, poses.estimator(estimator), height=height, width=width)


def render(
    pipe: DreamPosePipeline,
    photo: UInt8[np.ndarray, "H W 3"],
    motion: poses.Motion,
    indices: tuple[int, ...],
    protocol: Protocol,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Frames of a video, by the same code as any video; the motion stays where it is."""
    request = generation.prepare(pipe, [photo], motion, preset=protocol.preset, seed=0, align=False)
    chunks = [indices[start : start + 8] for start in range(0, len(indices), 8)]
    return np.concatenate([generation.render_frames(pipe, request, chunk) for chunk in chunks])


@torch.no_grad()
def reconstruct(
    codec: LatentCodec, frames: UInt8[np.ndarray, "n h w 3"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Frames through the VAE and back."""
    return video.to_pixels(codec.decode(codec.encode(video.to_model(frames))))


def nearest(
    frames: UInt8[np.ndarray, "n h w 3"], candidates: UInt8[np.ndarray, "m h w 3"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """For each frame the candidate with the smallest L1 distance to it."""
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
    """Mean of every score over a clip; flicker over pairs of neighbours alone."""
    return metrics.pair_scores([metrics.METRICS[name] for name in METRICS], pred, truth, networks)
