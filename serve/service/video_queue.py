"""Queue and lifecycle of videos."""

import asyncio
import bisect
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from dreampose.io.paths import Place
from serve.config import Settings
from serve.service.backend import Backend
from serve.service.limits import LiveLimits
from serve.service.metrics import Metrics, log
from serve.service.records import RenderRequest, Video
from serve.service.request_errors import busy, not_found, reason
from serve.service.store import NAME, Store, VideoFolder, in_thread, with_storage_retries

ABANDONED_SECONDS = 86400.0
"""Age from which a folder that was never accepted is nobody's."""

COUNT_WAIT_SECONDS = 2.0
"""How long a video's end is kept back until it is counted."""


class VideoQueue:
    """Accepts videos, has them rendered in order, and forgets them when they are old.

    Args:
        settings: of the application.
        live: the limits, which may change.
        backend: what renders.
        metrics: where numbers go.
    """

    def __init__(
        self, settings: Settings, live: LiveLimits, backend: Backend, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.live = live
        self.backend = backend
        self.metrics = metrics
        self.store = Store(settings.storage)
        self.slots = asyncio.Semaphore(settings.videos_at_once)
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.waiting: set[str] = set()
        self.owners: dict[str, str] = {}
        """Of every video."""
        self.ids: list[str] = []
        """Of every video in the order of creation."""
        self.unfinished: Counter[str] = Counter()
        """Videos of each owner that are accepted, or about to be, and not finished."""
        self.unread: set[str] = set()
        """Videos in storage that could not be read; they are tried again."""
        self.durations: deque[float] = deque([10.0], maxlen=20)

    async def open(self) -> None:
        """Takes up what is in storage."""
        for folder in await in_thread(self.store.deleted):
            # Work on it ended with the desk that had it done, or ends when it sees the mark.
            await in_thread(folder.remove)
        for folder in sorted(await in_thread(self.store.folders), key=lambda one: one.id):
            await self._resume(folder)

    async def _resume(self, folder: VideoFolder) -> None:
        """Lists what an earlier desk left, and has it rendered on where it is unfinished."""
        try:
            request = await in_thread(folder.request)
            state = await in_thread(folder.video)
        except (OSError, ValueError):
            # What cannot be read now, or is a later version's, must not keep others waiting.
            if folder.id not in self.unread:
                logging.getLogger("ray.serve").exception(
                    "%s cannot be read", folder.id, extra={"video_id": folder.id}
                )
            self.unread.add(folder.id)
            return
        self.unread.discard(folder.id)
        self._index(folder, request.owner)
        if not state.finished:
            log("video taken up", video_id=folder.id)
            self.unfinished[request.owner] += 1
            self._start(folder)

    async def close(self) -> None:
        """Lets go of everything; what is unfinished is taken up by the next desk."""
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check_capacity(self, owner: str) -> None:
        """Refuses one more video if there are too many.

        Raises:
            RequestError: with the time after which there should be room.
        """
        limits, total = self.live.limits, self.unfinished.total()
        wait = sum(self.durations) / len(self.durations)
        if total >= limits.queue + self.settings.videos_at_once:
            raise busy(f"queue must have room, got {len(self.waiting)} videos waiting", wait)
        if self.unfinished[owner] >= limits.videos_per_key:
            raise busy(
                f"a key may have at most {limits.videos_per_key} unfinished videos, got as many",
                wait,
            )

    async def accept(
        self,
        request: RenderRequest,
        *,
        photos: Sequence[bytes],
        motion: bytes | Place,
        motion_suffix: str,
        **known: Any,
    ) -> Video:
        """Keeps a video's inputs and queues it; gives its first state.

        Raises:
            RequestError: there are too many.
        """
        self.check_capacity(request.owner)
        # Counted before the first pause, so that others see it.
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
            except BaseException:
                self.unfinished[request.owner] -= 1
                raise
            self._index(folder, request.owner)
            self._start(folder)
            log("video accepted", video_id=folder.id, owner=request.owner or None)
            return state

        # A client that goes away now leaves a video in the queue, and not half of one in storage.
        return await asyncio.shield(asyncio.create_task(keep()))

    async def find(self, video_id: str, owner: str) -> tuple[VideoFolder, Video]:
        """An owner's video, and what it was like just now.

        Raises:
            RequestError: there is none of that id.
        """
        if not NAME.fullmatch(video_id) or self.owners.get(video_id) != owner:
            raise not_found("video", video_id)
        folder = self.store.folder(video_id)
        state = await self.look(folder)
        if state is None:
            raise not_found("video", video_id)
        return folder, state

    async def look(self, folder: VideoFolder) -> Video | None:
        """What a video is like just now; None where it is gone or too old."""
        state = await in_thread(self._read, folder)
        if state is None or self._is_old(state):
            return None
        await self._wait_until_counted(state)
        return state

    async def _wait_until_counted(self, *states: Video) -> None:
        """Waits until those that have ended are counted, for a while.

        The renderer writes a video's end; whoever is told may ask for the next one at once.
        """
        ended = {state.id for state in states if state.finished} & self.tasks.keys()
        if ended:
            await asyncio.wait(
                [self.tasks[video_id] for video_id in ended], timeout=COUNT_WAIT_SECONDS
            )

    async def page(
        self, owner: str, *, limit: int, after: str = "", newest_first: bool = True
    ) -> tuple[list[Video], bool]:
        """Some of an owner's videos by age, and whether more follow.

        Args:
            owner: whose.
            limit: how many at most.
            after: id of the last one seen; it may be gone by now.
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
                state = self._read(self.store.folder(video_id))
                if state and not self._is_old(state):
                    videos.append(state)
            return videos, False

        videos, has_more = await in_thread(read)
        await self._wait_until_counted(*videos)
        return videos, has_more

    async def delete(self, folder: VideoFolder) -> None:
        """Takes a video away; work on it stops, and the sampler is free within one chunk."""
        await in_thread(folder.mark_deleted)
        task = self.tasks.get(folder.id)
        if task is None or task.done():
            self._unindex(folder.id)
            await in_thread(folder.remove)
            return
        if folder.id in self.waiting:
            task.cancel()
        # Else the renderer sees the mark. The files go when nobody writes there any more.
        log("video cancelled", video_id=folder.id)

    async def uses_subject(self, subject: str) -> bool:
        """Whether an unfinished video needs a subject's weights."""
        folders = [self.store.folder(video_id) for video_id in self.tasks]

        def look() -> bool:
            # The renderer may have written a video's end, and the desk's task be about to.
            states = ((folder, self._read(folder)) for folder in folders)
            return any(
                folder.request().subject == subject
                for folder, state in states
                if state and not state.finished
            )

        return await in_thread(look)

    def _index(self, folder: VideoFolder, owner: str) -> None:
        self.owners[folder.id] = owner
        bisect.insort(self.ids, folder.id)

    def _unindex(self, video_id: str) -> None:
        if self.owners.pop(video_id, None) is not None:
            self.ids.remove(video_id)

    def _start(self, folder: VideoFolder) -> None:
        self.waiting.add(folder.id)
        task = asyncio.create_task(self._run(folder))
        self.tasks[folder.id] = task
        self._show_depth()

        def end(_: asyncio.Task[None]) -> None:
            self.tasks.pop(folder.id, None)
            self._show_depth()

        task.add_done_callback(end)

    async def _run(self, folder: VideoFolder) -> None:
        """Has a video rendered when it is its turn."""
        try:
            async with self.slots:
                self.waiting.discard(folder.id)
                self._show_depth()
                began = time.monotonic()
                await self._render(folder)
                self.durations.append(time.monotonic() - began)
        finally:
            self.waiting.discard(folder.id)
            self.unfinished[self.owners[folder.id]] -= 1
            if await with_storage_retries(folder.is_deleted):
                self._unindex(folder.id)
                await with_storage_retries(folder.remove)

    async def _render(self, folder: VideoFolder) -> None:
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

    def _show_depth(self) -> None:
        self.metrics.gauge("dreampose_queue_depth", len(self.waiting))
        self.metrics.gauge("dreampose_videos_in_progress", len(self.tasks) - len(self.waiting))

    async def sweep(self) -> None:
        """Takes away what has expired, and takes up what could not be read."""
        for video_id in sorted(self.unread):
            await self._resume(self.store.folder(video_id))
        for video_id in list(self.ids):
            folder = self.store.folder(video_id)
            state = await in_thread(self._read, folder)
            if state and self._is_old(state):
                log("video expired", video_id=video_id)
                await self.delete(folder)
        await in_thread(self.store.clear_abandoned, time.time() - ABANDONED_SECONDS)

    def _expires(self, state: Video) -> int:
        """When a finished video is forgotten."""
        ended = state.completed_at or state.created_at
        return state.expires_at or int(ended + 3600 * self.live.limits.keep_hours)

    def _read(self, folder: VideoFolder) -> Video | None:
        """The video object, if the video was accepted and is still wanted."""
        # Its folder may go at any moment.
        with contextlib.suppress(FileNotFoundError):
            if not folder.exists():
                return None
            state = folder.video()
            # The renderer writes its end, and the desk a moment later for how long it is kept.
            known = {"expires_at": self._expires(state)} if state.finished else {}
            return state.model_copy(update=known)
        return None

    def _is_old(self, state: Video) -> bool:
        return state.finished and self._expires(state) <= time.time()
