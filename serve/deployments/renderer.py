"""Renders one video: prepare once, cut, send to samplers, collect, write. Holds no model.

All that must survive is in the video's folder: a renderer that dies, or is started a second time
on the same folder, goes on with the frames that are missing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray.serve.handle import DeploymentHandle

from dreampose import poses
from dreampose.errors import InputError
from dreampose.io.paths import new_file, on_disk, place, touch
from dreampose.poses.motion import Motion
from serve.config import Settings
from serve.deployments.retries import call_with_retries
from serve.deployments.video_writer import News, write_result
from serve.service.metrics import Measures, NoMeasures, RayMeasures
from serve.service.motion_library import MotionFolder, motion_id
from serve.service.records import Prepared, RenderRequest, Video
from serve.service.request_errors import reason
from serve.service.store import VideoFolder, in_thread, write_atomically

WATCH_SECONDS = 0.25
"""How often it is looked whether a video is still wanted."""

READY_SECONDS = 60.0
"""An answer of a sampler counts so long as a proof that there is one."""

logger = logging.getLogger("ray.serve")


def cut(missing: set[int], chunk_size: int) -> list[range]:
    """Missing frames as stretches that never cross a multiple of `chunk_size`.

    The grid is fixed, so a video that is taken up again is cut where it was cut before.
    """
    chunks: list[range] = []
    for index in sorted(missing):
        last = chunks[-1] if chunks else None
        if last and index == last.stop and index % chunk_size:
            chunks[-1] = range(last.start, index + 1)
        else:
            chunks.append(range(index, index + 1))
    return chunks


class Renderer:
    """Works on several videos at once; each is a coroutine that mostly waits for samplers."""

    def __init__(
        self,
        settings: Settings,
        num_samplers: int,
        sampler: DeploymentHandle[Any],
        extractor: DeploymentHandle[Any] | None = None,
        *,
        measured: bool = False,
    ) -> None:
        """Starts with nothing to do.

        Args:
            settings: of the application.
            num_samplers: how many there are at most.
            sampler: what renders frames.
            extractor: what reads poses from videos; without one that is done here.
            measured: whether numbers go to Prometheus.
        """
        self.settings = settings
        self.served = settings.served()
        self.num_samplers = num_samplers
        self.sampler = direct(sampler)
        self.extractor = extractor
        self.measures: Measures = RayMeasures() if measured else NoMeasures()
        self.running: dict[str, asyncio.Task[Video]] = {}
        # Calls of all videos together: no more than samplers hold, since to wait here instead of at
        # Serve's router costs nothing.
        self.places = asyncio.Semaphore(num_samplers * settings.calls_held)
        self.videos = asyncio.Semaphore(settings.videos_at_once)
        # Threads that mostly wait for frames, and so must not take those of others.
        self.writers = ThreadPoolExecutor(settings.videos_at_once, "writer")
        self.answered = float("-inf")
        """When a sampler last did what it was asked, by the monotonic clock."""

    async def ready(self) -> None:
        """Asks a sampler for a sign of its model, unless one has just rendered.

        Samplers that may go away when nobody needs them are not called back for this.
        """
        scaling = self.settings.sampler_autoscaling
        may_be_none = scaling is not None and scaling.min_replicas == 0
        if not may_be_none and time.monotonic() - self.answered > READY_SECONDS:
            await self.sampler.ready.remote()
            self.answered = time.monotonic()

    async def describe(self) -> tuple[str, str, str]:
        """What was served when this started, so that a job can tell whether it may use it."""
        return self.served

    async def render(self, folder: str) -> Video:
        """Renders the video in that folder, or joins the call that does; gives its final state.

        A video that cannot be rendered ends as `failed` with its reason; nothing is raised for it.
        """
        if folder not in self.running:
            task = asyncio.create_task(self._in_turn(VideoFolder(folder)))
            self.running[folder] = task
            task.add_done_callback(lambda _: self.running.pop(folder, None))
        return await asyncio.shield(self.running[folder])

    async def _in_turn(self, folder: VideoFolder) -> Video:
        async with self.videos:
            return await self._render(folder)

    async def _render(self, folder: VideoFolder) -> Video:
        state = await in_thread(folder.video)
        if state.finished:
            return state
        await in_thread(folder.update, status="in_progress")
        try:
            request = await in_thread(folder.request)
            return await self._attend(folder, request)
        except InputError as error:
            return await in_thread(folder.fail, "invalid_input", reason(error))
        except Exception as error:  # a poisoned video must fail alone
            if await in_thread(folder.is_deleted):
                return state.model_copy(update={"status": "cancelled"})
            if (now := await in_thread(folder.video)).finished:
                # By an older renderer, which Serve lets go on for a while; its end took files away.
                return now
            logger.exception("%s failed", folder.id, extra={"video_id": folder.id})
            return await in_thread(folder.fail, "render_failed", reason(error))

    async def _attend(self, folder: VideoFolder, request: RenderRequest) -> Video:
        """Does a video's work, and ends it when nobody wants it or it takes too long.

        The mark in storage is looked for, whoever sets it and whatever process died meanwhile.
        """
        timeout, began = request.timeout_s, time.monotonic()
        work = asyncio.create_task(self._complete(folder, request))
        try:
            while True:
                await asyncio.wait({work}, timeout=WATCH_SECONDS)
                if work.done():
                    return work.result()
                too_long = timeout is not None and time.monotonic() - began > timeout
                deleted = await in_thread(folder.is_deleted)
                if too_long or deleted:
                    break
        finally:
            work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        if deleted:
            state = await in_thread(folder.video)
            return state.model_copy(update={"status": "cancelled"})
        sentence = f"rendering must end within {timeout:g} s, got no end"
        return await in_thread(folder.fail, "timed_out", sentence)

    async def _complete(self, folder: VideoFolder, request: RenderRequest) -> Video:
        await self._extract(folder, request)
        subject = await in_thread(self.settings.subject_id, request.subject)
        sampler = self.sampler.options(multiplexed_model_id=subject)
        async with self.places:
            prepared: Prepared = await self._try(
                lambda: sampler.prepare.remote(str(folder.path)), f"{folder.id}: preparation"
            )
        self.answered = time.monotonic()
        self._measure("prepare", prepared.seconds, prepared.num_frames)
        num_frames, fps = prepared.num_frames, prepared.fps
        await in_thread(folder.drop_torn_chunks)
        missing = set(range(num_frames)) - await in_thread(folder.finished_frames)
        await in_thread(
            folder.update,
            num_frames=num_frames,
            fps=fps,
            num_frames_rendered=0,
            warnings=[*request.notes, *prepared.warnings],
        )
        # No more of one video wait for a place, so that those of others come in between.
        slots = asyncio.Semaphore((self.settings.calls_held + 1) * self.num_samplers)
        news = News(num_frames - len(missing))

        async def render_chunk(indices: range) -> None:
            async with slots, self.places:
                seconds: float = await self._try(
                    lambda: sampler.render.remote(str(folder.path), indices),
                    f"{folder.id}: frames {indices.start} to {indices.stop - 1}",
                )
            self.answered = time.monotonic()
            self._measure("render", seconds, len(indices))
            self.measures.count("dreampose_frames", len(indices))
            news.tell(indices)

        chunks = cut(missing, self.settings.chunk_size)
        tasks = [asyncio.create_task(render_chunk(indices)) for indices in chunks]
        # While frames come in, so that the last one is not followed by a wait for all.
        job = self.writers.submit(write_result, folder, num_frames, fps, news)
        writing = asyncio.wrap_future(job)
        try:
            await asyncio.gather(*tasks)
            began = time.monotonic()
            size = await asyncio.shield(writing)
            self._measure("encode", time.monotonic() - began, num_frames)
        finally:
            for task in tasks:
                task.cancel()
            news.end()
            job.cancel()
            await asyncio.wait([writing])
            # What it says of having been stopped is of no interest.
            _ = writing.cancelled() or writing.exception()
        done = await in_thread(
            folder.update,
            status="completed",
            progress=100,
            num_frames_rendered=len(missing),
            completed_at=int(time.time()),
            size=size,
            seconds=f"{num_frames / fps:g}",
        )
        await in_thread(folder.drop_chunks)
        return done

    async def _extract(self, folder: VideoFolder, request: RenderRequest) -> None:
        """Reads the poses of an uploaded video, unless those of the same content are known."""
        upload = await in_thread(lambda: folder.upload)
        if upload is None or await in_thread(folder.motion.exists):
            return
        recipe = self.settings.recipe(request.size)
        height, width = recipe.height, recipe.width
        if self.extractor is None:
            await asyncio.to_thread(extract_motion, folder, height, width)
            return
        extractor, estimator = self.extractor, request.estimator
        name = await asyncio.to_thread(motion_id, upload)
        known = MotionFolder(place(self.settings.motions) / name).track(height, width, estimator)
        result = "hit" if await in_thread(known.exists) else "miss"
        began = time.monotonic()
        self.measures.count("dreampose_cache", result=result)
        if result == "hit":
            # What is in use does not grow old.
            await in_thread(touch, known.parent)
        else:
            await self._try(
                lambda: extractor.extract.remote(str(upload), str(known), estimator),
                f"{folder.id}: poses",
            )
            seconds = time.monotonic() - began
            motion = await in_thread(lambda: Motion.load(on_disk(known)))
            self._measure("extract", seconds, motion.num_frames)
        await in_thread(lambda: write_atomically(folder.motion, known.read_bytes()))

    async def _try(self, call: Callable[[], Awaitable[Any]], what: str) -> Any:
        return await call_with_retries(
            call,
            what=what,
            max_tries=self.settings.max_tries,
            first_delay=self.settings.first_delay,
            measures=self.measures,
        )

    def _measure(self, stage: str, seconds: float, num_frames: int) -> None:
        each = seconds / max(1, num_frames)
        self.measures.observe("dreampose_seconds_per_frame", each, stage=stage)


def direct(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """The handle, with calls that go straight to a replica's own gRPC server.

    By way of Ray's actors and object store a call takes several times the work. The option is
    Serve's, but not yet a public one: `RAY_SERVE_USE_GRPC_BY_DEFAULT`, which is, goes by the
    process that binds a handle, not by the one that calls.
    """
    options: Any = handle.options
    return options(_by_reference=False)


def extract_motion(folder: VideoFolder, height: int, width: int) -> None:
    """Extracts the poses of an uploaded video, unless that was done before."""
    upload = folder.upload
    if folder.motion.exists() or upload is None:
        return
    estimator = poses.estimator(folder.request().estimator)
    motion = poses.extract(on_disk(upload), estimator, height=height, width=width)
    with new_file(folder.motion) as part:
        motion.save(part)
