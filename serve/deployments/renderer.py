"""Serve deployment that distributes videos over samplers and encodes them.

All state is in the video folder: a restarted renderer continues with the missing frames.
"""

import asyncio
import contextlib
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
from serve.deployments.video_writer import ChunkTracker, write_result
from serve.service.lease import HEARTBEAT_SECONDS, Lease, LeaseLostError, LeaseManager
from serve.service.metrics import Metrics, NullMetrics, RayMetrics
from serve.service.motion_library import MotionFolder, motion_id
from serve.service.records import Prepared, RenderRequest, Video
from serve.service.request_errors import reason
from serve.service.store import VideoFolder, in_thread, write_atomically

CANCEL_POLL_SECONDS = 0.25
"""Interval at which storage is checked for a cancellation."""

LEASE_POLL_SECONDS = 1.0
"""Interval at which a lease of another renderer is checked."""

READY_SECONDS = 1.0
"""Time for which a sampler's last response counts as proof of readiness."""

logger = logging.getLogger("ray.serve")


def split_into_chunks(missing: set[int], chunk_size: int) -> list[range]:
    """Missing frames as chunks that never cross a multiple of `chunk_size`.

    The grid is fixed: a resumed video is split where it was split before.
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
    """Renders several videos at once; each is a coroutine that mostly waits for samplers."""

    def __init__(
        self,
        settings: Settings,
        num_samplers: int,
        sampler: DeploymentHandle[Any],
        extractor: DeploymentHandle[Any] | None = None,
        *,
        with_metrics: bool = False,
    ) -> None:
        """Creates an idle renderer.

        Args:
            settings: of the application.
            num_samplers: largest number of samplers.
            sampler: deployment that renders frames.
            extractor: deployment that extracts poses; by default this process does.
            with_metrics: export metrics to Prometheus.
        """
        self.settings = settings
        self.served = settings.served()
        self.num_samplers = num_samplers
        self.sampler = grpc_handle(sampler)
        self.extractor = extractor
        self.metrics: Metrics = RayMetrics() if with_metrics else NullMetrics()
        self.running: dict[str, asyncio.Task[Video]] = {}
        self.leases: dict[str, LeaseManager] = {}
        """By the root folder of the videos."""
        # Calls of all videos: no more than samplers hold, since waiting here is free and waiting in
        # Serve's router is not.
        self.places = asyncio.Semaphore(num_samplers * settings.max_held_calls)
        self.videos = asyncio.Semaphore(settings.videos_at_once)
        # Own threads, since they mostly wait for frames.
        self.writers = ThreadPoolExecutor(settings.videos_at_once, "writer")
        self.answered = float("-inf")
        """Monotonic time of a sampler's last response."""

    async def ready(self) -> None:
        """Checks a sampler, unless one has rendered recently or samplers may scale to zero."""
        scaling = self.settings.sampler_autoscaling
        may_be_none = scaling is not None and scaling.min_replicas == 0
        if not may_be_none and time.monotonic() - self.answered > READY_SECONDS:
            await self.sampler.ready.remote()
            self.answered = time.monotonic()

    async def describe(self) -> tuple[str, str, str]:
        """Identity of the served model, so that a job can check that it matches."""
        return self.served

    async def render(self, folder: str) -> Video:
        """Renders the video in that folder, or joins a running call; returns its final state.

        A video that cannot be rendered ends as `failed` with a reason; nothing is raised.
        """
        if folder not in self.running:
            task = asyncio.create_task(self._in_turn(VideoFolder(folder)))
            self.running[folder] = task
            task.add_done_callback(lambda _: self.running.pop(folder, None))
        return await asyncio.shield(self.running[folder])

    async def _in_turn(self, folder: VideoFolder) -> Video:
        """Renders a video once its lease is free, or waits for the renderer that holds it."""
        while True:
            async with self.videos:
                state = await in_thread(folder.video)
                if state.finished:
                    return state
                try:
                    lease = await in_thread(self._leases(folder).claim, folder.path)
                    if lease is not None:
                        return await self._with_lease(folder, lease)
                except LeaseLostError:
                    logger.warning("%s: taken over by another renderer", folder.id)
                except FileNotFoundError:
                    return state.model_copy(update={"status": "cancelled"})
            await asyncio.sleep(LEASE_POLL_SECONDS)

    def _leases(self, folder: VideoFolder) -> LeaseManager:
        root = folder.path.parent
        return self.leases.setdefault(str(root), LeaseManager(root))

    async def _with_lease(self, folder: VideoFolder, lease: Lease) -> Video:
        heart = asyncio.create_task(self._beat(lease.manager))
        try:
            return await self._render(folder, lease)
        finally:
            heart.cancel()
            await asyncio.wait([heart])
            with contextlib.suppress(OSError):
                await in_thread(lease.release)

    async def _beat(self, manager: LeaseManager) -> None:
        while True:
            try:
                await in_thread(manager.beat)
            except OSError:
                logger.exception("heartbeat")
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _render(self, folder: VideoFolder, lease: Lease) -> Video:
        state = await in_thread(folder.update, status="in_progress")
        try:
            request = await in_thread(folder.request)
            return await self._supervise(folder, request, lease)
        except LeaseLostError:
            raise
        except InputError as error:
            return await in_thread(folder.fail, "invalid_input", reason(error))
        except Exception as error:  # one video must not affect others
            if await in_thread(folder.is_deleted):
                return state.model_copy(update={"status": "cancelled"})
            if (now := await in_thread(folder.video)).finished:
                # A previous renderer finished it within its grace period and removed the frames.
                return now
            logger.exception("%s failed", folder.id, extra={"video_id": folder.id})
            return await in_thread(folder.fail, "render_failed", reason(error))

    async def _supervise(self, folder: VideoFolder, request: RenderRequest, lease: Lease) -> Video:
        """Renders a video; stops when it is deleted, takes too long, or the lease is lost."""
        timeout, began = request.timeout_s, time.monotonic()
        checked = began
        work = asyncio.create_task(self._render_frames(folder, request, lease))
        try:
            while True:
                await asyncio.wait({work}, timeout=CANCEL_POLL_SECONDS)
                if work.done():
                    return work.result()
                too_long = timeout is not None and time.monotonic() - began > timeout
                deleted = await in_thread(folder.is_deleted)
                if too_long or deleted:
                    break
                if time.monotonic() - checked > HEARTBEAT_SECONDS:
                    await in_thread(lease.check)
                    checked = time.monotonic()
        finally:
            work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        if deleted:
            state = await in_thread(folder.video)
            return state.model_copy(update={"status": "cancelled"})
        message = f"rendering took longer than the limit of {timeout:g} s"
        return await in_thread(folder.fail, "timed_out", message)

    async def _render_frames(
        self, folder: VideoFolder, request: RenderRequest, lease: Lease
    ) -> Video:
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
        # Bounds the waiting calls of one video, so that videos take turns.
        slots = asyncio.Semaphore((self.settings.max_held_calls + 1) * self.num_samplers)
        tracker = ChunkTracker(num_frames - len(missing))

        async def render_chunk(indices: range) -> None:
            async with slots, self.places:
                seconds: float = await self._try(
                    lambda: sampler.render.remote(str(folder.path), indices),
                    f"{folder.id}: frames {indices.start} to {indices.stop - 1}",
                )
            self.answered = time.monotonic()
            self._measure("render", seconds, len(indices))
            self.metrics.count("dreampose_frames", len(indices))
            tracker.add(indices)

        chunks = split_into_chunks(missing, self.settings.chunk_size)
        tasks = [asyncio.create_task(render_chunk(indices)) for indices in chunks]
        # Encodes while frames arrive.
        job = self.writers.submit(write_result, folder, num_frames, fps, tracker)
        writing = asyncio.wrap_future(job)
        try:
            await asyncio.gather(*tasks)
            began = time.monotonic()
            size = await asyncio.shield(writing)
            self._measure("encode", time.monotonic() - began, num_frames)
        finally:
            for task in tasks:
                task.cancel()
            tracker.close()
            job.cancel()
            await asyncio.wait([writing])
            # Retrieves the exception of a stopped writer, which is expected.
            _ = writing.cancelled() or writing.exception()
        await in_thread(lease.check)
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
        """Extracts the poses of an uploaded video, unless the same file was extracted before."""
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
        self.metrics.count("dreampose_cache", result=result)
        if result == "hit":
            # Resets the age, so that poses in use do not expire.
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
            metrics=self.metrics,
        )

    def _measure(self, stage: str, seconds: float, num_frames: int) -> None:
        each = seconds / max(1, num_frames)
        self.metrics.observe("dreampose_seconds_per_frame", each, stage=stage)


def grpc_handle(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """The handle, calling the replica's gRPC server directly.

    A call through Ray actors and the object store costs several times as much. Serve's option is
    not public yet; the public `RAY_SERVE_USE_GRPC_BY_DEFAULT` applies to the process that binds a
    handle, not to the one that calls.
    """
    options: Any = handle.options
    return options(_by_reference=False)


def extract_motion(folder: VideoFolder, height: int, width: int) -> None:
    """Extracts the poses of an uploaded video unless they exist."""
    upload = folder.upload
    if folder.motion.exists() or upload is None:
        return
    estimator = poses.estimator(folder.request().estimator)
    motion = poses.extract(on_disk(upload), estimator, height=height, width=width)
    with new_file(folder.motion) as part:
        motion.save(part)
