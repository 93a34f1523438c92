"""Serve deployment that holds the model and renders chunks.

Samplers read requests from storage and write frames to it, so that neither passes through the
renderer. They keep no state that affects results: any replica renders the same frames.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from ray import serve as ray_serve

from serve.config import Settings
from serve.service.records import Prepared
from serve.service.store import VideoFolder

if TYPE_CHECKING:
    from dreampose.pipeline import DreamPosePipeline
    from serve.deployments.frame_rendering import Chunk

Result = TypeVar("Result")


class Sampler:
    """One copy of the model, and the weights of the most recently used subjects.

    One thread renders, so that health checks are answered meanwhile; another writes frames, so that
    the model does not wait for storage.
    """

    def __init__(self, settings: Settings, num_threads: int) -> None:
        # Imported late: ingress and renderer import this class, but need no model.
        from serve.deployments import frame_rendering

        self.model = frame_rendering
        self.frames_at_once = settings.frames_at_once
        self.waiting: list[Chunk] = []
        self.fault: Exception | None = None
        """Error after which the model cannot be used."""
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.writing: Future[None] | None = None
        """Pending write of the previous batch."""
        base = self.thread.submit(frame_rendering.load, settings.model, num_threads).result()
        self.base: DreamPosePipeline = base

        async def load_subject(subject_id: str) -> "DreamPosePipeline":
            folder = settings.subject_folder(subject_id.partition("@")[0])
            return await self._do(lambda: base.with_subject(folder))

        # Not a decorator, because the number is a setting.
        multiplexed: Any = ray_serve.multiplexed
        number = settings.subjects_in_memory
        self.with_subject = multiplexed(max_num_models_per_replica=number)(load_subject)

    async def prepare(self, folder: str) -> Prepared:
        """Prepares a video (photo embeddings, poses, noise) once for all samplers."""
        pipe = await self._pipe()
        return await self._do(lambda: self.model.prepare(pipe, VideoFolder(folder)))

    async def render(self, folder: str, indices: range) -> float:
        """Renders some frames of a prepared video into its folder; returns the seconds it took.

        Cancelling the call stops the work within one model call.
        """
        chunk = self.model.Chunk(
            pipe=await self._pipe(), folder=VideoFolder(folder), indices=indices
        )
        self.waiting.append(chunk)
        self.thread.submit(self._render, chunk)
        try:
            return await asyncio.wrap_future(chunk.seconds)
        finally:
            chunk.stop.set()

    def _render(self, chunk: "Chunk") -> None:
        """Renders a chunk, with the waiting chunks that fit into its batch.

        Runs in the render thread, the only one that removes chunks from `waiting`.
        """
        if chunk not in self.waiting:
            return
        others = [other for other in self.waiting if other is not chunk]
        chunks = self.model.select_batch(chunk, others, self.frames_at_once)
        for each in chunks:
            self.waiting.remove(each)
        # Skips chunks whose callers are gone.
        wanted = [each for each in chunks if each.seconds.set_running_or_notify_cancel()]
        if not wanted:
            return
        write = self.model.render(wanted)
        # Write errors come later and say nothing about the model.
        if any(each.seconds.done() and each.seconds.exception() for each in wanted):
            self._check_model()
        if self.writing is not None:
            # Bounds memory where storage is slower than the model.
            self.writing.result()
        self.writing = self.writer.submit(write)

    def _check_model(self) -> None:
        """Checks after an error whether the model still works."""
        try:
            self.model.check(self.base)
        except Exception as error:  # noqa: BLE001 - raised by check_health
            self.fault = error

    async def check_health(self) -> None:
        """Called by Serve every few seconds; a replica with a broken GPU is replaced.

        Raises:
            RuntimeError: the model can no longer be used.
        """
        if self.fault is not None:
            raise RuntimeError("the model failed on its device") from self.fault

    async def ready(self) -> None:
        """Returns at once if the model works, also while a batch is rendered.

        Raises:
            RuntimeError: as `check_health`.
        """
        await self.check_health()

    async def _pipe(self) -> "DreamPosePipeline":
        """The base model, or a copy with the weights of the call's subject."""
        subject_id = ray_serve.get_multiplexed_model_id()
        return await self.with_subject(subject_id) if subject_id else self.base

    async def _do(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)
