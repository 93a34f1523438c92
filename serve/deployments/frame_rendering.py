"""The model of one sampler replica: from a video's folder into it. Knows nothing of Ray.

Importing it takes seconds and hundreds of megabytes, so only replicas that render do.
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
        ready = generation.prepare(
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
    prepared_request.write(folder.prepared, ready, pipe.recipe.num_poses)
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


@dataclass(eq=False, kw_only=True)
class Chunk:
    """Frames of a video that `prepare` made ready, here or elsewhere, and that somebody waits for.

    pipe: the model, with a subject's weights if the video has one.
    stop: set when nobody waits any more.
    seconds: what it took, once the frames are in the video's folder; of a batch its share.
    """

    pipe: DreamPosePipeline
    folder: VideoFolder
    indices: range
    stop: threading.Event = field(default_factory=threading.Event)
    seconds: Future[float] = field(default_factory=Future)

    @cached_property
    def request(self) -> Request:
        """What there is to know of these frames, read once."""
        return prepared_request.read(self.folder.prepared, self.indices)


def joined(first: Chunk, others: Sequence[Chunk], frames_at_once: int) -> list[Chunk]:
    """A chunk, and those of others that go into a batch with it; in order, as many as find room."""
    chosen, room = [first], frames_at_once - len(first.indices)
    for other in others:
        if other.pipe is first.pipe and len(other.indices) <= room and _agree(first, other):
            chosen.append(other)
            room -= len(other.indices)
    return chosen


def _agree(one: Chunk, other: Chunk) -> bool:
    try:
        return generation.can_share_batch(one.request, other.request)
    except Exception:  # noqa: BLE001 - what cannot be read is told when it is rendered
        return False


def render(chunks: Sequence[Chunk]) -> Callable[[], None]:
    """Renders chunks that are `joined`; gives what writes them and tells who waits for them.

    So frames can be written, by another thread, while the next ones are rendered. Who waits for
    what cannot be rendered or written is told so, each alone: a batch that fails is done chunk by
    chunk. `StoppedError` is what is told where all were stopped meanwhile, which is looked for
    after every call of the model.
    """
    began = time.monotonic()

    def check(_: int, __: int) -> None:
        if all(chunk.stop.is_set() for chunk in chunks):
            raise StoppedError

    try:
        parts = [(chunk.request, range(len(chunk.indices))) for chunk in chunks]
        frames = generation.render_requests(chunks[0].pipe, parts, callback=check)
    except Exception as error:  # noqa: BLE001 - whoever waits is told
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
    """Writes frames into their videos' folders; `each` is the seconds that one took to render."""
    for chunk, frames in rendered:
        began = time.monotonic()
        try:
            chunk.folder.write_chunk(chunk.indices, frames)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            chunk.seconds.set_exception(error)
        else:
            chunk.seconds.set_result(each * len(frames) + time.monotonic() - began)
