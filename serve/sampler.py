"""Sampler replicas: the only place of the service where a model lives. Knows nothing of videos.

A replica renders the frames it is told of a request it is given. It keeps no state that a result
depends on, so any replica may die at any time and another gives the same frames.
"""

import asyncio
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from ray import serve as ray_serve

from dreampose import checkpoints, generate, video
from dreampose.errors import SubjectMismatchWarning
from dreampose.pipeline import DreamPosePipeline
from dreampose.poses.motion import Motion
from serve.config import Settings
from serve.store import RenderRequest

Result = TypeVar("Result")


class Sampler:
    """One copy of the model, and the weights of the subjects it used last.

    Work is done in one thread of its own, so that the replica answers health checks meanwhile.
    """

    def __init__(self, settings: Settings, num_threads: int) -> None:
        self.settings = settings
        self.thread = ThreadPoolExecutor(
            max_workers=1, initializer=torch.set_num_threads, initargs=(num_threads,)
        )
        self.base = self.thread.submit(load_model, settings.model).result()

        async def load(subject: str) -> DreamPosePipeline:
            folder = settings.subject_folder(subject)
            return await self._do(lambda: self.base.with_subject(folder))

        # Here and not as a decorator, because the number is a setting.
        multiplexed: Any = ray_serve.multiplexed
        self.subject_pipe = multiplexed(max_num_models_per_replica=settings.subjects_in_memory)(
            load
        )

    async def prepare(
        self, request: RenderRequest, photos: Sequence[bytes], motion: bytes
    ) -> tuple[generate.Request, list[str]]:
        """Encodes photos and noise, once per video.

        Args:
            request: the settings.
            photos: encoded pictures.
            motion: a pose track, as the bytes of its `.npz` file.

        Returns:
            The request that `render` takes, and sentences to tell the user.
        """
        pipe = await self._pipe()
        return await self._do(lambda: prepare(pipe, request, photos, motion))

    async def render(
        self, request: generate.Request, indices: range
    ) -> UInt8[np.ndarray, "n H W 3"]:
        """Renders some frames of a prepared request."""
        pipe = await self._pipe()
        return await self._do(lambda: generate.render_frames(pipe, request, list(indices)))

    async def _pipe(self) -> DreamPosePipeline:
        """The base model, or a copy with the weights of the subject that this call is for."""
        subject = ray_serve.get_multiplexed_model_id()
        return await self.subject_pipe(subject) if subject else self.base

    async def _do(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)


def load_model(folder: str) -> DreamPosePipeline:
    """The model on the replica's GPU where Ray gave it one, else on the CPU."""
    pipe = checkpoints.load(folder)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipe


def prepare(
    pipe: DreamPosePipeline, request: RenderRequest, photos: Sequence[bytes], motion: bytes
) -> tuple[generate.Request, list[str]]:
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
            Motion.load(folder / "motion.npz"),
            preset=request.preset,
            seed=request.seed,
            image_scale=request.image_scale,
            pose_scale=request.pose_scale,
            align=request.align,
        )
    told = [str(w.message) for w in caught if issubclass(w.category, SubjectMismatchWarning)]
    return prepared, told
