"""The model of one sampler replica: from a video's folder into it. Knows nothing of Ray.

Importing it takes seconds and hundreds of megabytes, so only replicas that render do.
"""

import threading
import time
import warnings

import torch

from dreampose import checkpoints, generate, video
from dreampose.errors import SubjectMismatchWarning
from dreampose.pipeline import DreamPosePipeline
from dreampose.places import on_disk
from dreampose.poses.motion import Motion
from serve import prepared
from serve.backend import StoppedError
from serve.records import Prepared
from serve.store import VideoFolder


def load(folder: str, num_threads: int) -> DreamPosePipeline:
    """The model on the replica's GPU where Ray gave it one, else on the CPU.

    Args:
        folder: of the model.
        num_threads: torch's threads, for the thread of the caller.
    """
    torch.set_num_threads(num_threads)
    pipe = checkpoints.load(folder)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipe


def prepare(pipe: DreamPosePipeline, folder: VideoFolder) -> Prepared:
    """`generate.prepare` of a video in storage; what comes of it is written there.

    Warnings come back instead of into a replica's log.
    """
    began, request = time.monotonic(), folder.request()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SubjectMismatchWarning)
        ready = generate.prepare(
            pipe,
            [video.read_photo(on_disk(path)) for path in folder.photos],
            beginning(Motion.load(on_disk(folder.motion)), request.seconds),
            preset=request.preset,
            seed=request.seed,
            image_scale=request.image_scale,
            pose_scale=request.pose_scale,
            align=request.align,
            size=request.size,
        )
    told = [str(w.message) for w in caught if issubclass(w.category, SubjectMismatchWarning)]
    prepared.write(folder.prepared, ready, pipe.recipe.num_poses)
    return Prepared(
        num_frames=ready.num_frames,
        fps=ready.fps,
        seconds=time.monotonic() - began,
        warnings=told,
    )


def beginning(motion: Motion, seconds: float | None) -> Motion:
    """The first seconds of a motion, all of it where it is shorter or nothing was asked."""
    if seconds is None or seconds * motion.fps >= motion.num_frames:
        return motion
    return motion.between(0, max(1, round(seconds * motion.fps)))


def check(pipe: DreamPosePipeline) -> None:
    """Computes with the model's weights where they lie, be it on a GPU that has gone.

    Raises:
        RuntimeError: that cannot be done.
    """
    weights = next(iter(pipe.unet.parameters()))
    if not torch.isfinite(weights.sum()).item():
        raise RuntimeError("weights must be finite, got others")


def render(
    pipe: DreamPosePipeline, folder: VideoFolder, indices: range, stop: threading.Event
) -> float:
    """Renders frames of a video that `prepare` made ready, here or elsewhere, into its folder.

    Gives the seconds that it took.

    Raises:
        StoppedError: `stop` was set meanwhile; that is looked for after every call of the model.
    """
    began, request = time.monotonic(), prepared.read(folder.prepared, indices)

    def check(_: int, __: int) -> None:
        if stop.is_set():
            raise StoppedError

    frames = generate.render_frames(pipe, request, range(len(indices)), callback=check)
    folder.write_chunk(indices, frames)
    return time.monotonic() - began
