"""Stored motions and their pose extraction.

A motion's id is the hash of the file that was uploaded. Layout of one motion's folder:

    motion.json          who uploaded it and what is known of it; absent where the poses were only
                         read for a video, in which case they go after a while
    upload.*             the video; absent where the upload was a motion file
    HxW-ESTIMATOR.npz    the poses
    HxW-ESTIMATOR.mp4    the poses drawn over the video, made when first asked for
"""

import asyncio
import logging
import re
import time
from typing import Any, Literal

from pydantic import BaseModel

from dreampose.config import Recipe
from dreampose.errors import InputError
from dreampose.io.paths import Place, modified, on_disk, place, remove_tree, touch
from dreampose.poses.motion import Motion
from serve.config import Settings
from serve.service import previews
from serve.service.backend import Backend
from serve.service.limits import LiveLimits
from serve.service.metrics import log
from serve.service.records import JobError, Status
from serve.service.request_errors import RequestError, busy, fault, not_found
from serve.service.store import copy_atomically, digest, in_thread, write_atomically
from serve.service.uploads import MotionInfo, ReceivedMotion, check_aspect

ESTIMATOR = "blazepose"
PREFIX = "motion_"
ID = re.compile(PREFIX + "[0-9a-f]{32}")


class StoredMotion(BaseModel):
    """The motion object of the HTTP interface. Times are Unix seconds."""

    id: str
    object: Literal["motion"] = "motion"
    status: Status = "queued"
    created_at: int
    completed_at: int | None = None
    num_frames: int
    num_filled: int = 0
    """Frames without a pose of their own, filled from neighbours."""
    fps: float
    seconds: str
    error: JobError | None = None


class Entry(BaseModel):
    """What lies in `motion.json`."""

    motion: StoredMotion
    owners: list[str]


class MotionFolder:
    """One motion in storage."""

    def __init__(self, path: str | Place) -> None:
        self.path = place(path)

    @property
    def id(self) -> str:
        """Of the motion."""
        return self.path.name

    @property
    def upload(self) -> Place | None:
        """The video, if one was uploaded."""
        return next(iter(sorted(self.path.glob("upload.*"))), None)

    def track(self, height: int, width: int, estimator: str = ESTIMATOR) -> Place:
        """Where the poses are, or will be."""
        return self.path / f"{height}x{width}-{estimator}.npz"

    def is_kept(self) -> bool:
        """Whether somebody uploaded it for keeping."""
        return (self.path / "motion.json").is_file()

    def entry(self) -> Entry | None:
        """What is known, None where nobody uploaded it for keeping."""
        try:
            return Entry.model_validate_json((self.path / "motion.json").read_bytes())
        except FileNotFoundError:
            return None

    def write(self, motion: StoredMotion, owners: list[str]) -> StoredMotion:
        """Keeps what is known."""
        text = Entry(motion=motion, owners=owners).model_dump_json(indent=1)
        write_atomically(self.path / "motion.json", text.encode())
        return motion

    def update(self, **changes: Any) -> StoredMotion:
        """Writes some fields of the motion."""
        entry = self.entry()
        if entry is None:
            raise FileNotFoundError(str(self.path))
        motion = StoredMotion.model_validate(entry.motion.model_dump() | changes)
        return self.write(motion, entry.owners)


def motion_id(content: bytes | Place) -> str:
    """The id of a file's content."""
    return PREFIX + digest(content)[:32]


class MotionLibrary:
    """Keeps motions and has their poses read in the background."""

    def __init__(self, settings: Settings, live: LiveLimits, backend: Backend) -> None:
        self.live = live
        self.backend = backend
        self.root = place(settings.motions)
        recipe = settings.recipe()
        self.size = recipe.height, recipe.width
        self.slots = asyncio.Semaphore(settings.motions_at_once)
        self.most_at_once = settings.motions_at_once
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.drawing = asyncio.Lock()
        self.owning = asyncio.Lock()
        """Held while an entry is read and written, which would else undo another's change."""

    async def open(self) -> None:
        """Takes up what is unfinished in storage."""
        for entry in await in_thread(self._entries):
            if entry.motion.status in ("queued", "in_progress"):
                self._start(MotionFolder(self.root / entry.motion.id))

    async def close(self) -> None:
        """Lets go; what is unfinished is taken up later."""
        for task in list(self.tasks.values()):
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def add(self, owner: str, received: ReceivedMotion) -> StoredMotion:
        """Keeps a motion that was looked at; the same content is kept once, whoever sends it.

        Raises:
            RequestError: too many wait for their poses to be read.
        """
        folder = MotionFolder(self.root / motion_id(received.path))
        async with self.owning:
            motion = await in_thread(self._add, folder, owner, received)
            if motion.status == "queued" and folder.id not in self.tasks:
                self._start(folder)
        return motion

    def _add(self, folder: MotionFolder, owner: str, received: ReceivedMotion) -> StoredMotion:
        info = received.info
        entry = folder.entry()
        if entry and entry.motion.status != "failed":
            owners = entry.owners if owner in entry.owners else [*entry.owners, owner]
            return folder.write(entry.motion, owners)
        is_track = info.suffix == ".npz"
        most = self.live.limits.motions_waiting + self.most_at_once
        if not is_track and len(self.tasks) >= most:
            raise busy(f"motions must have room, got {len(self.tasks)} whose poses are unread", 10)
        target = folder.track(*self.size) if is_track else folder.path / f"upload{info.suffix}"
        copy_atomically(received.path, target)
        now = int(time.time())
        motion = StoredMotion(
            id=folder.id,
            status="completed" if is_track else "queued",
            created_at=now,
            completed_at=now if is_track else None,
            num_frames=info.num_frames,
            num_filled=Motion.load(on_disk(target)).num_filled if is_track else 0,
            fps=info.fps,
            seconds=f"{info.seconds:g}",
        )
        log("motion accepted", motion=folder.id)
        return folder.write(motion, [owner])

    def find(self, name: str, owner: str) -> MotionFolder:
        """An owner's motion.

        Raises:
            RequestError: there is none of that id.
        """
        # Anything but such an id might name another folder.
        folder = MotionFolder(self.root / name) if ID.fullmatch(name) else None
        entry = folder.entry() if folder else None
        if folder is None or entry is None or owner not in entry.owners:
            raise not_found("motion", name)
        return folder

    def get(self, name: str, owner: str) -> StoredMotion:
        """What is known of an owner's motion; raises as `find`."""
        entry = self.find(name, owner).entry()
        assert entry is not None
        return entry.motion

    def content(self, name: str, owner: str, recipe: Recipe) -> tuple[Place, MotionInfo]:
        """What a video needs of a motion: its poses, or its video where they are to be read yet.

        Args:
            name: id of the motion.
            owner: who asks.
            recipe: of the video's frames; poses of another size come from the motion's video.

        Raises:
            RequestError: there is none of that id.
            InputError: its poses could not be read, or are of another aspect and there is no video.
        """
        folder, motion = self.find(name, owner), self.get(name, owner)
        if motion.error is not None:
            raise InputError(f"motion must show a pose, got: {motion.error.message}")
        track = folder.track(recipe.height, recipe.width)
        path = track if track.is_file() else folder.upload
        if path is None:
            path = folder.track(*self.size)
            if not path.is_file():
                raise RequestError(409, "not_ready", "motion must be uploaded again for this model")
            check_aspect(Motion.load(on_disk(path)), recipe)
        info = MotionInfo(suffix=path.suffix, num_frames=motion.num_frames, fps=motion.fps)
        touch(folder.path)
        return path, info

    async def preview(self, name: str, owner: str) -> Place:
        """The poses of an owner's motion, drawn over the video they were read from.

        Raises:
            RequestError: there is none of that id, or its poses are not read yet.
        """

        def look() -> tuple[Place, Place | None]:
            folder = self.find(name, owner)
            track = folder.track(*self.size)
            if not track.is_file():
                status = self.get(name, owner).status
                message = f"id must be of a motion whose poses are read, got one {status}"
                raise RequestError(409, "not_completed", message, field="id")
            return track, folder.upload

        return await self._draw(*await in_thread(look))

    async def preview_of(self, path: Place) -> Place:
        """The same of a motion file that nobody need have uploaded."""
        track = MotionFolder(self.root / motion_id(path)).track(*self.size)
        if not await in_thread(track.is_file):
            await in_thread(copy_atomically, path, track)
        return await self._draw(track, None)

    async def _draw(self, track: Place, upload: Place | None) -> Place:
        # One at a time: it takes a core, and the same one might be asked for twice.
        async with self.drawing:
            return await asyncio.to_thread(previews.poses_over_video, track, upload)

    def all(self, owner: str) -> list[StoredMotion]:
        """An owner's motions, the newest first."""
        mine = [entry.motion for entry in self._entries() if owner in entry.owners]
        return sorted(mine, key=lambda motion: motion.created_at, reverse=True)

    async def delete(self, name: str, owner: str) -> None:
        """Takes an owner's motion away; videos that were asked for with it keep their copy.

        Raises:
            RequestError: there is none of that id.
        """

        def disown() -> MotionFolder | None:
            folder = self.find(name, owner)
            entry = folder.entry()
            assert entry is not None
            owners = [other for other in entry.owners if other != owner]
            if not owners:
                return folder
            folder.write(entry.motion, owners)
            return None

        async with self.owning:
            unowned = await in_thread(disown)
            if unowned is None:
                return
            if task := self.tasks.get(name):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await in_thread(remove_tree, unowned.path)

    async def sweep(self) -> None:
        """Takes away poses that were read for a video long ago and that nobody keeps."""
        oldest = time.time() - 3600 * self.live.limits.keep_hours

        def clear() -> None:
            for folder in self._folders():
                if not folder.is_kept() and modified(folder.path) < oldest:
                    remove_tree(folder.path)

        await in_thread(clear)

    def _folders(self) -> list[MotionFolder]:
        return [MotionFolder(path) for path in self.root.glob(f"{PREFIX}*") if path.is_dir()]

    def _entries(self) -> list[Entry]:
        """What is known of each motion that somebody keeps, as far as it can be read."""
        entries: list[Entry] = []
        for folder in self._folders():
            try:
                entry = folder.entry()
            except (OSError, ValueError):
                # Such as a later version's, which must not keep others waiting.
                logging.getLogger("ray.serve").exception("%s cannot be read", folder.id)
                continue
            entries += [entry] if entry else []
        return entries

    def _start(self, folder: MotionFolder) -> None:
        task = asyncio.create_task(self._run(folder))
        self.tasks[folder.id] = task
        task.add_done_callback(lambda _: self.tasks.pop(folder.id, None))

    async def _run(self, folder: MotionFolder) -> None:
        async with self.slots:
            await self._read(folder)

    async def _read(self, folder: MotionFolder) -> None:
        target = folder.track(*self.size)
        upload = await in_thread(lambda: folder.upload)
        assert upload is not None
        await self._update(folder, status="in_progress")
        timeout = self.live.limits.render_timeout_s
        try:
            if not await in_thread(target.is_file):
                async with asyncio.timeout(timeout):
                    await self.backend.extract(str(upload), str(target), ESTIMATOR)
            motion = await in_thread(lambda: Motion.load(on_disk(target)))
        except Exception as error:
            logging.getLogger("ray.serve").exception("%s failed", folder.id)
            told, now = fault(error, "extraction_failed", timeout), int(time.time())
            await self._update(folder, status="failed", completed_at=now, error=told)
            return
        await self._update(
            folder,
            status="completed",
            completed_at=int(time.time()),
            num_frames=motion.num_frames,
            num_filled=motion.num_filled,
        )
        log("motion completed", motion=folder.id)

    async def _update(self, folder: MotionFolder, **changes: Any) -> None:
        async with self.owning:
            await in_thread(folder.update, **changes)
