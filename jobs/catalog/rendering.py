"""Batch rendering of catalogue items through a Serve application."""

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from cluster.capacity import Allocation, Capacity, reserve
from cluster.worker_requests import StageRequest
from dreampose import poses
from dreampose.options.progress import ProgressBar
from jobs.catalog.output import Output
from jobs.catalog.table import Item
from jobs.common import driver
from serve.application import renderer_app, sampler_allocation
from serve.config import Autoscaling, Settings
from serve.deployments.retries import call_with_retries
from serve.service.records import Video
from serve.service.request_errors import reason
from serve.service.store import VideoFolder, digest

POLL_SECONDS = 0.5
PRIVATE = "render-"
"""Prefix of the names of applications that serve a single job."""

logger = logging.getLogger("ray.serve")


def render_items(
    groups: Sequence[Sequence[Item]],
    output: Output,
    capacity: Capacity,
    request: StageRequest | None = None,
    *,
    wait: float | None = None,
) -> dict[str, str]:
    """Renders and publishes items; returns names and reasons of those that failed.

    Args:
        groups: unfinished items, grouped by equal inputs, in the order of work.
        output: output folder and settings.
        capacity: of the cluster.
        request: of one sampler; by default the one of the stage sample.
        wait: seconds to wait for the first sampler's resources; None for no bound.

    Raises:
        InputError: no node type holds a sampler, or its resources are not there in time.
    """
    logger.setLevel(logging.WARNING)
    settings = output.settings
    extraction = capacity.allocate("extract")
    serves_others = bool(ray_serve.status().proxies)
    handle, own = find_renderer(settings), ""
    if handle is None:
        # Specific to this folder: the application of another job ends with that job.
        own = PRIVATE + digest(str(output.root.absolute()))[:8]
        if own in ray_serve.status().applications:
            # Left by a killed run. Serve would put new replicas beside the old ones for a while,
            # and two renderers in one video's folder take away each other's files.
            ray_serve.delete(own)
        allocation = sampler_allocation(settings, capacity, request)
        settings = with_own_samplers(settings, allocation.workers, elastic=allocation.elastic)
        with reserve(capacity, allocation, limit=wait):
            pass
        # HTTP is not needed here; a running proxy is not changed.
        ray_serve.start(proxy_location="Disabled")
        handle = ray_serve.run(renderer_app(settings, allocation), name=own, route_prefix=None)
    try:
        return asyncio.run(_Batch(output, handle, settings.videos_at_once, extraction).run(groups))
    finally:
        if own:
            ray_serve.delete(own)
        # A private session ends Serve anyway, and without Ray's warning about its shutdown.
        ends_serve = bool(own) and not serves_others and not driver.is_private_session()
        if ends_serve and not ray_serve.status().applications:
            # Without a proxy, a later `serve run` in this Serve instance would have none either.
            ray_serve.shutdown()


def with_own_samplers(settings: Settings, samplers: int, *, elastic: bool) -> Settings:
    """Settings with enough concurrent videos to keep all samplers busy.

    A video may be a single chunk, and no other application uses these samplers.

    Args:
        settings: settings of the job.
        samplers: maximum number of samplers.
        elastic: whether the number of samplers follows the work and the nodes.
    """
    enough = samplers * settings.max_held_calls
    changes: dict[str, Any] = {"videos_at_once": max(settings.videos_at_once, enough)}
    if elastic and not settings.replicas:
        changes["sampler_autoscaling"] = Autoscaling(min_replicas=1, max_replicas=samplers)
    return settings.model_copy(update=changes)


def find_renderer(settings: Settings) -> DeploymentHandle[Any] | None:
    """The renderer of a running service that serves the same model and subjects."""
    for name, application in ray_serve.status().applications.items():
        if name.startswith(PRIVATE) or application.status != ApplicationStatus.RUNNING:
            continue
        if "Renderer" not in application.deployments:
            continue
        handle = ray_serve.get_deployment_handle("Renderer", name)
        folder, version, subjects = handle.describe.remote().result()
        # An application that also has subjects serves a catalogue that names none.
        same_model = (folder, version) == settings.served()[:2]
        if same_model and settings.subjects in ("", subjects):
            return handle
    return None


class _Batch:
    """One run: concurrent videos; a failed one does not stop the others."""

    def __init__(
        self,
        output: Output,
        handle: DeploymentHandle[Any],
        videos_at_once: int,
        extraction: Allocation,
    ) -> None:
        self.output = output
        self.handle = handle
        self.extraction = extraction
        self.settings = output.settings
        self.places = asyncio.Semaphore(videos_at_once)
        self.motions: dict[Path, asyncio.Future[None]] = {}
        self.folders: dict[str, VideoFolder] = {}
        self.num_done = 0
        """Number of frames of finished videos."""
        self.num_items = 0
        self.failures: dict[str, str] = {}

    async def run(self, groups: Sequence[Sequence[Item]]) -> dict[str, str]:
        num_frames = sum(group[0].num_frames for group in groups)
        num_items = sum(map(len, groups))
        # The remaining time is estimated from a long mean, since speed hardly changes; a log
        # file gets few updates.
        interval = 0.1 if sys.stderr.isatty() else 30
        with ProgressBar(
            total=num_frames, unit="frame", desc="render", smoothing=0.02, mininterval=interval
        ) as bar:
            watching = asyncio.create_task(self._watch(bar, num_items))
            try:
                await asyncio.gather(*(self._render(group) for group in groups))
            finally:
                watching.cancel()
                self._show(bar, num_items)
        return self.failures

    async def _render(self, group: Sequence[Item]) -> None:
        item = group[0]
        async with self.places:
            timings: dict[str, Any] = {"began_at": _now()}
            began, folder = time.monotonic(), None
            try:
                await self._extract(item)
                extracted = time.monotonic()
                folder = await asyncio.to_thread(self.output.video_folder, item)
                self.folders[folder.id] = folder
                path = str(folder.path)
                state: Video = await call_with_retries(
                    lambda: self.handle.render.remote(path),
                    what=item.name,
                    max_tries=self.settings.max_tries,
                    first_delay=self.settings.first_delay,
                )
                timings |= {
                    "ended_at": _now(),
                    "poses_s": round(extracted - began, 3),
                    "render_s": round(time.monotonic() - extracted, 3),
                }
                if state.error is None:
                    await asyncio.to_thread(self.output.publish, group, folder, timings)
                else:
                    self._fail(group, state.error.message)
            except Exception as error:
                logger.debug("%s failed", item.name, exc_info=True)
                self._fail(group, reason(error))
            if folder is not None:
                self.folders.pop(folder.id, None)
            self.num_done += item.num_frames
            self.num_items += len(group)

    def _fail(self, group: Sequence[Item], why: str) -> None:
        self.failures |= {item.name: why for item in group}

    async def _extract(self, item: Item) -> None:
        """Extracts the poses of a motion that is a video, once for all items that share it."""
        target = self.output.motion(item)
        if target.exists():
            return
        if target not in self.motions:
            recipe = self.settings.recipe(self.output.size)
            task = ray.remote(**self.extraction.remote_args)(extract)
            self.motions[target] = asyncio.ensure_future(
                task.remote(
                    item.motion.absolute(),
                    target.absolute(),
                    self.output.estimator,
                    recipe.height,
                    recipe.width,
                    recipe.pose_channels,
                )
            )
        await self.motions[target]

    async def _watch(self, bar: ProgressBar, num_items: int) -> None:
        while True:
            self._show(bar, num_items)
            await asyncio.sleep(POLL_SECONDS)

    def _show(self, bar: ProgressBar, num_items: int) -> None:
        """Updates the bar from storage, which includes frames of earlier runs."""
        under_way = sum(len(folder.finished_frames()) for folder in list(self.folders.values()))
        failed = f", {len(self.failures)} failed" if self.failures else ""
        bar.set_postfix_str(f"{self.num_items} of {num_items} items{failed}", refresh=False)
        bar.update(max(0, self.num_done + under_way - bar.n))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def extract(
    video: Path, target: Path, estimator: str, height: int, width: int, channels: int
) -> None:
    """Writes the pose track of a video."""
    reader = poses.estimator(estimator, channels=channels)
    poses.extract(video, reader, height=height, width=width).save(target)
