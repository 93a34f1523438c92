"""Queue and lifecycle of videos."""

import asyncio
import bisect
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from dreampose.io.paths import Place, place
from serve.config import Settings
from serve.service.backend import Backend
from serve.service.limits import LiveLimits
from serve.service.metrics import Metrics, log
from serve.service.records import RenderRequest, Video
from serve.service.request_errors import busy, not_found, reason
from serve.service.store import SAFE_NAME, Store, VideoFolder, in_thread, with_storage_retries
from serve.service.work_queue import WorkQueue

ABANDONED_SECONDS = 86400.0
"""Age from which a folder that was never accepted is removed."""
COUNT_WAIT_SECONDS = 2.0
"""Longest wait until a final state is counted before it is returned."""


class VideoQueue(WorkQueue[VideoFolder]):
    """Accepts videos, renders them in order, and deletes them when they have expired.

    The renderer leases a video, not the queue: every replica follows every unfinished video, so
    that each sees the whole queue, and calls for the same video join in the renderer.

    Args:
        settings: of the application.
        live: current limits.
        backend: renders.
        metrics: sink for metrics.
    """

    kind = "video"
    leased = False

    def __init__(
        self, settings: Settings, live: LiveLimits, backend: Backend, metrics: Metrics
    ) -> None:
        super().__init__(
            place(settings.storage), settings.videos_in_progress, live, backend, metrics
        )
        self.store = Store(settings.storage)
        self.owners: dict[str, str] = {}
        """Owner of every known video."""
        self.ids: list[str] = []
        """Known videos in order of creation."""
        self.finished: set[str] = set()
        """Known videos whose state is final."""
        self.unfinished: Counter[str] = Counter()
        """Videos per owner that are accepted, or about to be, and not finished."""
        self.unreadable: set[str] = set()
        """Videos that could not be read; they are tried again."""
        self.durations: deque[float] = deque([10.0], maxlen=20)

    async def open(self) -> None:
        """Removes deleted videos, then resumes unfinished ones."""
        for folder in await in_thread(self.store.deleted):
            # Work on it ended with the last replica, or ends when it sees the marker.
            await in_thread(folder.remove)
        await super().open()

    def folder(self, name: str) -> VideoFolder:
        """The folder of an id, whether or not it exists."""
        return self.store.folder(name)

    def pending(self) -> list[VideoFolder]:
        """Unfinished videos in storage; indexes all others that are new."""
        found: list[VideoFolder] = []
        for folder in sorted(self.store.folders(), key=lambda one: one.id):
            if folder.id in self.finished:
                continue
            try:
                owner, state = folder.request().owner, folder.video()
            except (OSError, ValueError):
                # Damaged or of a later version: must not block others.
                if folder.id not in self.unreadable:
                    logging.getLogger("ray.serve").exception(
                        "%s cannot be read", folder.id, extra={"video_id": folder.id}
                    )
                self.unreadable.add(folder.id)
                continue
            self.unreadable.discard(folder.id)
            self._index(folder, owner)
            if state.finished:
                self.finished.add(folder.id)
            else:
                found.append(folder)
        return found

    def start(self, folder: VideoFolder) -> None:
        """Queues a video."""
        self.unfinished[self.owners[folder.id]] += 1
        super().start(folder)

    def check_capacity(self, owner: str) -> None:
        """Checks the limits for one more video.

        Raises:
            RequestError: too many are unfinished; with the expected wait.
        """
        limits, total = self.live.limits, self.unfinished.total()
        wait = sum(self.durations) / len(self.durations)
        if total >= limits.queue + self.max_running:
            raise busy(f"the queue is full: {len(self.waiting)} videos are waiting", wait)
        if self.unfinished[owner] >= limits.videos_per_key:
            raise busy(f"limit of {limits.videos_per_key} unfinished videos per key reached", wait)

    async def accept(
        self,
        request: RenderRequest,
        *,
        photos: Sequence[bytes],
        motion: bytes | Place,
        motion_suffix: str,
        **known: Any,
    ) -> Video:
        """Stores a video's inputs and queues it; returns its first state.

        Raises:
            RequestError: too many are unfinished.
        """
        self.check_capacity(request.owner)
        # Counted before the first await, so that concurrent requests see it.
        self.unfinished[request.owner] += 1

        async def keep() -> Video:
            try:
                folder = await in_thread(
                    self.store.create,
                    request=request,
                    photos=photos,
                    motion=motion,
                    motion_suffix=motion_suffix,
                    **known,
                )
                state = await in_thread(folder.video)
                self._index(folder, request.owner)
                if folder.id not in self.tasks:
                    self.start(folder)
            finally:
                self.unfinished[request.owner] -= 1
            log("video accepted", video_id=folder.id, owner=request.owner or None)
            return state

        # A client that disconnects now leaves a whole video in the queue, not half of one.
        return await asyncio.shield(asyncio.create_task(keep()))

    async def find(self, video_id: str, owner: str) -> tuple[VideoFolder, Video]:
        """An owner's video and its current state.

        Raises:
            RequestError: it does not exist.
        """
        if not SAFE_NAME.fullmatch(video_id):
            raise not_found(self.kind, video_id)
        if video_id not in self.owners:
            # Accepted by another replica a moment ago.
            with contextlib.suppress(OSError, ValueError):
                found = await in_thread(self.find_folder, video_id, owner)
                await in_thread(found.video)
                self._index(found, owner)
        folder = self.folder(video_id)
        state = await self.look(folder) if self.owners.get(video_id) == owner else None
        if state is None:
            raise not_found(self.kind, video_id)
        return folder, state

    async def look(self, folder: VideoFolder) -> Video | None:
        """The current state of a video; None if it is deleted or expired."""
        state = await in_thread(self._read, folder)
        if state is None or self._is_old(state):
            return None
        await self._wait_until_counted(state)
        return state

    async def _wait_until_counted(self, *states: Video) -> None:
        """Waits until final states are counted: a client may post the next video at once."""
        ended = {state.id for state in states if state.finished} & self.tasks.keys()
        if ended:
            tasks = [self.tasks[video_id] for video_id in ended]
            await asyncio.wait(tasks, timeout=COUNT_WAIT_SECONDS)

    async def page(
        self, owner: str, *, limit: int, after: str = "", newest_first: bool = True
    ) -> tuple[list[Video], bool]:
        """A page of an owner's videos by age, and whether more follow.

        Args:
            owner: of the videos.
            limit: largest number of videos.
            after: last id of the previous page; it may be deleted by now.
            newest_first: or oldest first.
        """
        ids = [video_id for video_id in self.ids if self.owners[video_id] == owner]
        if newest_first:
            ids = ids[: bisect.bisect_left(ids, after)] if after else ids
            ids.reverse()
        elif after:
            ids = ids[bisect.bisect_right(ids, after) :]

        def read() -> tuple[list[Video], bool]:
            videos: list[Video] = []
            for video_id in ids:
                if len(videos) == limit:
                    return videos, True
                state = self._read(self.folder(video_id))
                if state and not self._is_old(state):
                    videos.append(state)
            return videos, False

        videos, has_more = await in_thread(read)
        await self._wait_until_counted(*videos)
        return videos, has_more

    async def delete(self, folder: VideoFolder) -> None:
        """Deletes a video; its rendering stops within one chunk."""
        await in_thread(folder.mark_deleted)
        task = self.tasks.get(folder.id)
        if task is None or task.done():
            self._unindex(folder.id)
            await in_thread(folder.remove)
            return
        if folder.id in self.waiting:
            task.cancel()
        # Else the renderer sees the marker, and the task removes the files.
        log("video cancelled", video_id=folder.id)

    async def uses_subject(self, subject: str) -> bool:
        """Whether an unfinished video needs a subject's weights."""
        folders = [self.folder(video_id) for video_id in self.tasks]

        def look() -> bool:
            # The renderer may have finished a video whose task is still about to end.
            states = ((folder, self._read(folder)) for folder in folders)
            return any(
                folder.request().subject == subject
                for folder, state in states
                if state and not state.finished
            )

        return await in_thread(look)

    async def work_with_lease(self, folder: VideoFolder) -> None:
        """Renders a video; the renderer holds its lease."""
        began = time.monotonic()
        await self.work(folder)
        self.durations.append(time.monotonic() - began)

    async def _run(self, folder: VideoFolder) -> None:
        try:
            await super()._run(folder)
        finally:
            self.waiting.discard(folder.id)
            self.unfinished[self.owners[folder.id]] -= 1
            if await with_storage_retries(folder.is_deleted):
                self._unindex(folder.id)
                await with_storage_retries(folder.remove)

    async def work(self, folder: VideoFolder) -> None:
        """Renders a video and writes when it expires."""
        if await with_storage_retries(folder.is_deleted):
            return
        try:
            state = await self.backend.render(str(folder.path))
        except Exception as error:
            if await with_storage_retries(folder.is_deleted):
                self.metrics.count("dreampose_videos", status="cancelled")
                return
            logging.getLogger("ray.serve").exception(
                "%s failed", folder.id, extra={"video_id": folder.id}
            )
            state = await with_storage_retries(folder.fail, "render_failed", reason(error))
        if await with_storage_retries(folder.is_deleted):
            self.metrics.count("dreampose_videos", status="cancelled")
            return
        self.finished.add(folder.id)
        if (await with_storage_retries(folder.video)).expires_at is not None:
            return  # counted by another replica
        expires_at = self._expires(state)
        state = await with_storage_retries(folder.update, expires_at=expires_at)
        self.metrics.count("dreampose_videos", status=state.status)
        log(
            f"video {state.status}",
            video_id=folder.id,
            frames=state.num_frames,
            rendered=state.num_frames_rendered,
            reason=state.error and state.error.message,
        )

    def changed(self) -> None:
        """Exports the length of the queue."""
        self.metrics.gauge("dreampose_queue_depth", len(self.waiting))
        self.metrics.gauge("dreampose_videos_in_progress", len(self.tasks) - len(self.waiting))

    async def sweep(self) -> None:
        """Deletes expired videos and resumes unfinished ones."""
        await self.resume()
        for video_id in list(self.ids):
            folder = self.folder(video_id)
            state = await in_thread(self._read, folder)
            if state and self._is_old(state):
                log("video expired", video_id=video_id)
                await self.delete(folder)
            elif state is None and video_id not in self.tasks:
                self._unindex(video_id)
        await in_thread(self.store.clear_abandoned, time.time() - ABANDONED_SECONDS)

    def _index(self, folder: VideoFolder, owner: str) -> None:
        if folder.id not in self.owners:
            self.owners[folder.id] = owner
            bisect.insort(self.ids, folder.id)

    def _unindex(self, video_id: str) -> None:
        self.finished.discard(video_id)
        if self.owners.pop(video_id, None) is not None:
            self.ids.remove(video_id)

    def _expires(self, state: Video) -> int:
        """When a finished video is deleted."""
        ended = state.completed_at or state.created_at
        return state.expires_at or int(ended + 3600 * self.live.limits.keep_hours)

    def _read(self, folder: VideoFolder) -> Video | None:
        """The video object, if the video was accepted and is not deleted."""
        # The folder may disappear at any moment.
        with contextlib.suppress(FileNotFoundError):
            if not folder.exists():
                return None
            state = folder.video()
            # The queue writes it a moment after the renderer has written the final state.
            known = {"expires_at": self._expires(state)} if state.finished else {}
            return state.model_copy(update=known)
        return None

    def _is_old(self, state: Video) -> bool:
        return state.finished and self._expires(state) <= time.time()
