"""Rendering of chunks from and into a video folder.

Importing this imports torch and diffusers, so only samplers do.
"""

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import UInt8

from dreampose import checkpoints
from dreampose.diffusion import generation
from dreampose.diffusion.generation import Request
from dreampose.errors import SubjectMismatchWarning
from dreampose.io import video
from dreampose.io.paths import on_disk
from dreampose.pipeline import DreamPosePipeline
from dreampose.poses.motion import Motion
from serve.deployments import prepared_request
from serve.service.backend import StoppedError
from serve.service.records import Prepared
from serve.service.store import VideoFolder


def load(folder: str, num_threads: int) -> DreamPosePipeline:
    """Loads the model onto the GPU that Ray assigned, else the CPU.

    Args:
        folder: of the model.
        num_threads: torch threads of the calling thread.
    """
    torch.set_num_threads(num_threads)
    pipe = checkpoints.load(folder)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipe


def prepare(pipe: DreamPosePipeline, folder: VideoFolder) -> Prepared:
    """Prepares a video in storage and writes the prepared request beside it.

    Warnings for the user are returned.
    """
    began, request = time.monotonic(), folder.request()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SubjectMismatchWarning)
        ready = generation.prepare(
            pipe,
            [video.read_photo(on_disk(path)) for path in folder.photos],
            clip_motion(Motion.load(on_disk(folder.motion)), request.seconds),
            preset=request.preset,
            seed=request.seed,
            image_scale=request.image_scale,
            pose_scale=request.pose_scale,
            align=request.align,
            size=request.size,
        )
    messages = [str(w.message) for w in caught if issubclass(w.category, SubjectMismatchWarning)]
    prepared_request.write(folder.prepared, ready, pipe.recipe.num_poses)
    return Prepared(
        num_frames=ready.num_frames,
        fps=ready.fps,
        seconds=time.monotonic() - began,
        warnings=messages,
    )


def clip_motion(motion: Motion, seconds: float | None) -> Motion:
    """The first seconds of a motion; all of it for `None` or a shorter motion."""
    if seconds is None or seconds * motion.fps >= motion.num_frames:
        return motion
    return motion.between(0, max(1, round(seconds * motion.fps)))


def check(pipe: DreamPosePipeline) -> None:
    """Checks that the device still computes with the model's weights.

    Raises:
        RuntimeError: it does not, e.g. after a CUDA error.
    """
    weights = next(iter(pipe.unet.parameters()))
    if not torch.isfinite(weights.sum()).item():
        raise RuntimeError("the model's weights are not finite")


@dataclass(eq=False, kw_only=True)
class Chunk:
    """Frames of a prepared video, requested by one call.

    pipe: the model, with the subject's weights if the video has one.
    stop: set when the caller is gone.
    seconds: render time once the frames are in storage; for a batch, this chunk's share.
    """

    pipe: DreamPosePipeline
    folder: VideoFolder
    indices: range
    stop: threading.Event = field(default_factory=threading.Event)
    seconds: Future[float] = field(default_factory=Future)

    @cached_property
    def request(self) -> Request:
        """The prepared request for these frames, read once."""
        return prepared_request.read(self.folder.prepared, self.indices)


def select_batch(first: Chunk, others: Sequence[Chunk], frames_at_once: int) -> list[Chunk]:
    """A chunk and the compatible others that fit into one batch with it, in order."""
    chosen, room = [first], frames_at_once - len(first.indices)
    for other in others:
        if other.pipe is first.pipe and len(other.indices) <= room and _agree(first, other):
            chosen.append(other)
            room -= len(other.indices)
    return chosen


def _agree(one: Chunk, other: Chunk) -> bool:
    try:
        return generation.can_share_batch(one.request, other.request)
    except Exception:  # noqa: BLE001 - an unreadable request is reported when it is rendered
        return False


def render(chunks: Sequence[Chunk]) -> Callable[[], None]:
    """Renders a batch of chunks; returns a function that writes them and resolves their futures.

    The caller writes in another thread while the next batch is rendered. A batch that fails is
    rendered again chunk by chunk, so that each caller gets its own error. A batch whose callers
    are all gone ends with `StoppedError` after the current model call.
    """
    began = time.monotonic()

    def check(_: int, __: int) -> None:
        if all(chunk.stop.is_set() for chunk in chunks):
            raise StoppedError

    try:
        parts = [(chunk.request, range(len(chunk.indices))) for chunk in chunks]
        frames = generation.render_requests(chunks[0].pipe, parts, callback=check)
    except Exception as error:  # noqa: BLE001 - passed to the callers
        if len(chunks) > 1 and not isinstance(error, StoppedError):
            return partial(_write_each, [render([chunk]) for chunk in chunks])
        for chunk in chunks:
            chunk.seconds.set_exception(error)
        return partial(_write_each, [])
    each = (time.monotonic() - began) / sum(map(len, frames))
    return partial(_write, list(zip(chunks, frames, strict=True)), each)


def _write_each(writes: Sequence[Callable[[], None]]) -> None:
    for write in writes:
        write()


def _write(rendered: Sequence[tuple[Chunk, UInt8[np.ndarray, "n H W 3"]]], each: float) -> None:
    """Writes frames into their video folders; `each` is the render time of one frame in seconds."""
    for chunk, frames in rendered:
        began = time.monotonic()
        try:
            chunk.folder.write_chunk(chunk.indices, frames)
        except Exception as error:  # noqa: BLE001 - passed to the caller
            chunk.seconds.set_exception(error)
        else:
            chunk.seconds.set_result(each * len(frames) + time.monotonic() - began)
