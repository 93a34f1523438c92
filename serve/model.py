"""The model of one sampler replica: encoded files and bytes in, frames out. Knows nothing of Ray.

Importing it takes seconds and hundreds of megabytes, so only replicas that render do.
"""

import pickle
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from dreampose import checkpoints, generate, video
from dreampose.errors import SubjectMismatchWarning
from dreampose.pipeline import DreamPosePipeline
from dreampose.poses.motion import Motion
from serve.backend import StoppedError
from serve.records import Prepared, RenderRequest


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


def prepare(
    pipe: DreamPosePipeline, request: RenderRequest, photos: Sequence[bytes], motion: bytes
) -> Prepared:
    """`generate.prepare` from encoded files; warnings come back instead of into a replica's log."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SubjectMismatchWarning)
        folder = Path(name)
        for number, photo in enumerate(photos):
            (folder / f"{number}.img").write_bytes(photo)
        (folder / "motion.npz").write_bytes(motion)
        prepared = generate.prepare(
            pipe,
            [video.read_photo(folder / f"{number}.img") for number in range(len(photos))],
            beginning(Motion.load(folder / "motion.npz"), request.seconds),
            preset=request.preset,
            seed=request.seed,
            image_scale=request.image_scale,
            pose_scale=request.pose_scale,
            align=request.align,
            size=request.size,
        )
    told = [str(w.message) for w in caught if issubclass(w.category, SubjectMismatchWarning)]
    return Prepared(
        content=pickle.dumps(prepared, protocol=5),
        num_frames=prepared.num_frames,
        fps=prepared.fps,
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
    pipe: DreamPosePipeline, content: bytes, indices: range, stop: threading.Event
) -> UInt8[np.ndarray, "n H W 3"]:
    """Frames of a request that `prepare` packed, here or in another replica.

    Raises:
        StoppedError: `stop` was set meanwhile; that is looked for after every call of the model.
    """
    request: generate.Request = pickle.loads(content)

    def check(_: int, __: int) -> None:
        if stop.is_set():
            raise StoppedError

    return generate.render_frames(pipe, request, list(indices), callback=check)
