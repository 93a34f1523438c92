"""Sampler replicas: the only place of the service where a model lives. Knows no order of work.

A replica renders the frames it is told, from a video's folder into that folder, so that neither
requests nor frames pass through the renderer. It keeps no state that a result depends on: any
replica may die at any time and another gives the same frames.
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
    """One copy of the model, and the weights of the subjects it used last.

    Work is done in one thread of its own, so that the replica answers health checks meanwhile.
    Another writes what was rendered, so that the model need not wait for storage.
    """

    def __init__(self, settings: Settings, num_threads: int) -> None:
        # Here and not above: the ingress and the renderer know this class, but need no model.
        from serve.deployments import frame_rendering

        self.model = frame_rendering
        self.frames_at_once = settings.frames_at_once
        self.waiting: list[Chunk] = []
        self.fault: Exception | None = None
        """What keeps the model from being computed with."""
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.writing: Future[None] | None = None
        """The frames before those that are rendered, on their way into storage."""
        base = self.thread.submit(frame_rendering.load, settings.model, num_threads).result()
        self.base: DreamPosePipeline = base

        async def load_subject(subject_id: str) -> "DreamPosePipeline":
            folder = settings.subject_folder(subject_id.partition("@")[0])
            return await self._do(lambda: base.with_subject(folder))

        # Here and not as a decorator, because the number is a setting.
        multiplexed: Any = ray_serve.multiplexed
        number = settings.subjects_in_memory
        self.with_subject = multiplexed(max_num_models_per_replica=number)(load_subject)

    async def prepare(self, folder: str) -> Prepared:
        """Encodes photos and noise of the video in that folder, once for all samplers."""
        pipe = await self._pipe()
        return await self._do(lambda: self.model.prepare(pipe, VideoFolder(folder)))

    async def render(self, folder: str, indices: range) -> float:
        """Renders some frames of a prepared video into its folder; gives the seconds it took.

        A caller that is cancelled frees the replica within one call of the model.
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
        """Renders a chunk unless one before took it along, and takes along what may be joined.

        The only place that takes chunks out of `waiting`; it runs in the thread.
        """
        if chunk not in self.waiting:
            return
        others = [other for other in self.waiting if other is not chunk]
        chunks = self.model.joined(chunk, others, self.frames_at_once)
        for each in chunks:
            self.waiting.remove(each)
        # Nothing is begun for callers that have gone.
        wanted = [each for each in chunks if each.seconds.set_running_or_notify_cancel()]
        if not wanted:
            return
        write = self.model.render(wanted)
        # What cannot be written has not failed yet, and is no fault of the model.
        if any(each.seconds.done() and each.seconds.exception() for each in wanted):
            self._examine()
        if self.writing is not None:
            # Where storage is slower than the model, no more than this waits in memory.
            self.writing.result()
        self.writing = self.writer.submit(write)

    def _examine(self) -> None:
        """Looks, after a fault, whether the model can still be computed with."""
        try:
            self.model.check(self.base)
        except Exception as error:  # noqa: BLE001 - it is told when Serve asks
            self.fault = error

    async def check_health(self) -> None:
        """What Serve asks every few seconds; a replica whose GPU has gone is replaced.

        Raises:
            RuntimeError: nothing can be computed here any more.
        """
        if self.fault is not None:
            raise RuntimeError("the model must be computable") from self.fault

    async def ready(self) -> None:
        """Answers once the thread that renders has touched the model."""
        await self._do(lambda: self.model.check(self.base))

    async def _pipe(self) -> "DreamPosePipeline":
        """The base model, or a copy with the weights of the subject that this call is for."""
        subject_id = ray_serve.get_multiplexed_model_id()
        return await self.with_subject(subject_id) if subject_id else self.base

    async def _do(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)
