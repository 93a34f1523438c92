"""Stored motions and their pose extraction.

The id of a motion is the hash of its content. Layout of a motion's folder:

    motion.json          owners and state; absent if the poses were only extracted for one video, in
                         which case they expire
    upload.*             the video; absent if the upload was a motion file
    HxW-ESTIMATOR.npz    the poses
    HxW-ESTIMATOR.mp4    the poses drawn over the video, made on first request
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
from serve.service.metrics import Metrics, log
from serve.service.records import JobError, Status
from serve.service.request_errors import RequestError, busy, job_error
from serve.service.store import copy_atomically, digest, in_thread, write_atomically
from serve.service.uploads import MotionInfo, ReceivedMotion, check_aspect
from serve.service.work_queue import WorkQueue

ESTIMATOR = "blazepose"
PREFIX = "motion_"
ID = re.compile(PREFIX + "[0-9a-f]{32}")


class StoredMotion(BaseModel):
    """Motion object of the API. Times are Unix seconds."""

    id: str
    object: Literal["motion"] = "motion"
    status: Status = "queued"
    created_at: int
    completed_at: int | None = None
    num_frames: int
    num_filled: int = 0
    """Frames without a pose of their own, interpolated from neighbours."""
    fps: float
    seconds: str
    num_bytes: int = 0
    """Of the stored upload."""
    error: JobError | None = None


class MotionRecord(BaseModel):
    """Content of `motion.json`."""

    motion: StoredMotion
    owners: list[str]


class MotionFolder:
    """One motion in storage."""

    def __init__(self, path: str | Place) -> None:
        self.path = place(path)

    @property
    def id(self) -> str:
        """Motion id, the name of the folder."""
        return self.path.name

    @property
    def upload(self) -> Place | None:
        """The video, if one was uploaded."""
        return next(iter(sorted(self.path.glob("upload.*"))), None)

    def track(self, height: int, width: int, estimator: str = ESTIMATOR) -> Place:
        """File of the poses for a frame size, whether or not it exists."""
        return self.path / f"{height}x{width}-{estimator}.npz"

    def exists(self) -> bool:
        """Whether the motion was uploaded to be stored."""
        return (self.path / "motion.json").is_file()

    def owners(self) -> list[str]:
        """Names of the keys that uploaded it."""
        record = self.record()
        return record.owners if record else []

    def record(self) -> MotionRecord | None:
        """Owners and state; None if it was not uploaded to be stored."""
        try:
            return MotionRecord.model_validate_json((self.path / "motion.json").read_bytes())
        except FileNotFoundError:
            return None

    def write(self, motion: StoredMotion, owners: list[str]) -> StoredMotion:
        """Writes owners and state."""
        text = MotionRecord(motion=motion, owners=owners).model_dump_json(indent=1)
        write_atomically(self.path / "motion.json", text.encode())
        return motion

    def update(self, **changes: Any) -> StoredMotion:
        """Writes some fields of the motion."""
        record = self.record()
        if record is None:
            raise FileNotFoundError(str(self.path))
        motion = StoredMotion.model_validate(record.motion.model_dump() | changes)
        return self.write(motion, record.owners)


def motion_id(content: bytes | Place) -> str:
    """Id of a motion with that content."""
    return PREFIX + digest(content)[:32]


class MotionLibrary(WorkQueue[MotionFolder]):
    """Stores motions and extracts their poses in the background.

    Args:
        settings: of the application.
        live: current limits.
        backend: extracts.
        metrics: sink for metrics.
    """

    kind = "motion"

    def __init__(
        self, settings: Settings, live: LiveLimits, backend: Backend, metrics: Metrics
    ) -> None:
        super().__init__(place(settings.motions), settings.motions_at_once, live, backend, metrics)
        recipe = settings.recipe()
        self.size = recipe.height, recipe.width
        self.drawing = asyncio.Lock()
        self.writing = asyncio.Lock()
        """Held from reading a record to writing it."""

    def folder(self, name: str) -> MotionFolder:
        """The folder of an id, whether or not it exists."""
        return MotionFolder(self.root / name)

    def pending(self) -> list[MotionFolder]:
        """Motions whose poses are not extracted."""
        unfinished = [
            record.motion
            for record in self._records()
            if record.motion.status in ("queued", "in_progress")
        ]
        return [self.folder(motion.id) for motion in sorted(unfinished, key=lambda m: m.created_at)]

    async def add(self, owner: str, received: ReceivedMotion) -> StoredMotion:
        """Stores a checked motion; equal content is stored once for all owners.

        Raises:
            RequestError: too many motions wait for extraction, or the key's storage is full.
        """
        folder = self.folder(await in_thread(motion_id, received.path))
        async with self.writing:
            motion = await in_thread(self._add, folder, owner, received)
            if motion.status == "queued" and folder.id not in self.tasks:
                self.start(folder)
        return motion

    def _add(self, folder: MotionFolder, owner: str, received: ReceivedMotion) -> StoredMotion:
        info, record = received.info, folder.record()
        if record and record.motion.status != "failed":
            touch(folder.path)
            owners = record.owners if owner in record.owners else [*record.owners, owner]
            return folder.write(record.motion, owners)
        is_track = info.suffix == ".npz"
        if not is_track and len(self.tasks) >= self.live.limits.motions_waiting + self.max_running:
            raise busy(f"{len(self.tasks)} motions are waiting for pose extraction", 10)
        num_bytes = received.path.stat().st_size
        self._check_quota(owner, num_bytes)
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
            num_bytes=num_bytes,
        )
        log("motion accepted", motion=folder.id)
        return folder.write(motion, [owner])

    def _check_quota(self, owner: str, num_bytes: int) -> None:
        limit = self.live.limits.stored_mb_per_key
        used = sum(motion.num_bytes for motion in self.all(owner))
        if used + num_bytes > limit * 2**20:
            raise RequestError(
                413,
                "storage_full",
                f"stored motions of this key take {used >> 20} of {limit} MB; delete some",
            )

    def find(self, name: str, owner: str) -> MotionFolder:
        """An owner's motion.

        Raises:
            RequestError: it does not exist.
        """
        return self.find_folder(name if ID.fullmatch(name) else "", owner)

    def get(self, name: str, owner: str) -> StoredMotion:
        """State of an owner's motion; raises as `find`."""
        record = self.find(name, owner).record()
        assert record is not None
        return record.motion

    def content(self, name: str, owner: str, recipe: Recipe) -> tuple[Place, MotionInfo]:
        """File that a video needs: the poses, or the motion's video if they must be extracted.

        Args:
            name: id of the motion.
            owner: of the request.
            recipe: of the frames; poses of another size come from the motion's video.

        Raises:
            RequestError: the motion does not exist.
            InputError: the extraction failed, or the poses have another aspect and no video.
        """
        folder, motion = self.find(name, owner), self.get(name, owner)
        if motion.error is not None:
            raise InputError(f"motion has no poses: {motion.error.message}")
        track = folder.track(recipe.height, recipe.width)
        path = track if track.is_file() else folder.upload
        if path is None:
            path = folder.track(*self.size)
            if not path.is_file():
                raise RequestError(409, "not_ready", "motion must be uploaded again for this model")
            check_aspect(Motion.load(on_disk(path)), recipe)
        info = MotionInfo(suffix=path.suffix, num_frames=motion.num_frames, fps=motion.fps)
        # Resets its age.
        touch(folder.path)
        return path, info

    async def preview(self, name: str, owner: str) -> Place:
        """MP4 of the poses of an owner's motion over its video.

        Raises:
            RequestError: the motion does not exist, or its poses are not extracted.
        """

        def look() -> tuple[Place, Place | None]:
            folder = self.find(name, owner)
            track = folder.track(*self.size)
            if not track.is_file():
                status = self.get(name, owner).status
                message = f"the poses of this motion are not extracted, its status is {status}"
                raise RequestError(409, "not_completed", message, field="id")
            return track, folder.upload

        return await self._draw(*await in_thread(look))

    async def preview_of(self, path: Place) -> Place:
        """MP4 of the poses of a motion file that comes with the service."""
        track = self.folder(await in_thread(motion_id, path)).track(*self.size)
        if not await in_thread(track.is_file):
            await in_thread(copy_atomically, path, track)
        return await self._draw(track, None)

    async def _draw(self, track: Place, upload: Place | None) -> Place:
        # One at a time: it takes a core, and the same one might be requested twice.
        async with self.drawing:
            return await asyncio.to_thread(previews.poses_over_video, track, upload)

    def all(self, owner: str) -> list[StoredMotion]:
        """An owner's motions, newest first."""
        mine = [record.motion for record in self._records() if owner in record.owners]
        return sorted(mine, key=lambda motion: motion.created_at, reverse=True)

    async def delete(self, name: str, owner: str) -> None:
        """Deletes an owner's motion; queued videos keep their copy.

        Raises:
            RequestError: the motion does not exist.
        """

        def disown() -> MotionFolder | None:
            folder = self.find(name, owner)
            record = folder.record()
            assert record is not None
            owners = [other for other in record.owners if other != owner]
            if not owners:
                return folder
            folder.write(record.motion, owners)
            return None

        async with self.writing:
            unowned = await in_thread(disown)
            if unowned is None:
                return
            await self.stop(name)
            await in_thread(remove_tree, unowned.path)

    async def sweep(self) -> None:
        """Deletes cached poses and unused motions that have expired; resumes unfinished ones."""
        await self.resume()
        limits, now = self.live.limits, time.time()

        def clear() -> None:
            for folder in self._folders():
                if folder.id in self.tasks:
                    continue
                hours = limits.keep_motions_hours if folder.exists() else limits.keep_hours
                if modified(folder.path) < now - 3600 * hours:
                    log("motion expired", motion=folder.id)
                    remove_tree(folder.path)

        async with self.writing:
            await in_thread(clear)

    def _folders(self) -> list[MotionFolder]:
        return [MotionFolder(path) for path in self.root.glob(f"{PREFIX}*") if path.is_dir()]

    def _records(self) -> list[MotionRecord]:
        """Records of all stored motions that can be read."""
        records: list[MotionRecord] = []
        for folder in self._folders():
            try:
                record = folder.record()
            except (OSError, ValueError):
                # Damaged or of a later version: must not block others.
                logging.getLogger("ray.serve").exception("%s cannot be read", folder.id)
                continue
            records += [record] if record else []
        return records

    async def work(self, folder: MotionFolder) -> None:
        """Extracts the poses of a motion's video."""
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
            await self._update(
                folder,
                status="failed",
                completed_at=int(time.time()),
                error=job_error(error, "extraction_failed", timeout),
            )
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
        async with self.writing:
            await in_thread(folder.update, **changes)
