"""Subjects and their finetuning.

The id of a subject follows from its owner, photos and model: equal photos are finetuned once, and
weights never change while a video is rendered with them. Weights are in SUBJECTS/ID, where samplers
look for them; record and photos are in SUBJECTS/.jobs/ID.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from dreampose.errors import InputError
from dreampose.io.paths import Place
from serve.config import Settings
from serve.service.backend import Backend
from serve.service.limits import LiveLimits
from serve.service.metrics import Metrics, log
from serve.service.records import JobError, Status
from serve.service.request_errors import RequestError, busy, job_error, not_found
from serve.service.store import SAFE_NAME, digest, in_thread, stamp, write_atomically
from serve.service.work_queue import WorkQueue


class Subject(BaseModel):
    """Subject object of the API. Times are Unix seconds, progress is 0 to 100."""

    id: str
    object: Literal["subject"] = "subject"
    name: str = ""
    status: Status = "queued"
    progress: int = 0
    created_at: int
    completed_at: int | None = None
    num_photos: int
    error: JobError | None = None


class SubjectRecord(BaseModel):
    """Content of `job.json`."""

    subject: Subject
    owner: str


class SubjectFolder:
    """Record and photos of one subject in storage."""

    def __init__(self, path: str | Path) -> None:
        self.path: Place = Path(path)

    @property
    def id(self) -> str:
        """Subject id, the name of the folder."""
        return self.path.name

    @property
    def photos(self) -> list[Path]:
        """Photos in the order of the request."""
        folder = Path(str(self.path), "photos")
        return sorted(folder.glob("*.img"), key=lambda path: int(path.stem))

    @property
    def weights(self) -> Path:
        """Folder of the finetuned weights, created atomically."""
        return Path(str(self.path)).parent.parent / self.id

    def exists(self) -> bool:
        """Whether the subject was accepted."""
        return (self.path / "job.json").is_file()

    def owners(self) -> list[str]:
        """Name of the key that created it."""
        return [self.record().owner]

    def record(self) -> SubjectRecord:
        """Owner and state."""
        return SubjectRecord.model_validate_json((self.path / "job.json").read_bytes())

    def write(self, record: SubjectRecord) -> Subject:
        """Writes owner and state."""
        write_atomically(self.path / "job.json", record.model_dump_json(indent=1).encode())
        return record.subject

    def update(self, **changes: Any) -> Subject:
        """Writes some fields of the subject."""
        record = self.record()
        subject = Subject.model_validate(record.subject.model_dump() | changes)
        return self.write(SubjectRecord(subject=subject, owner=record.owner))

    def remove(self) -> None:
        """Deletes weights, checkpoints and photos, the record last."""
        for folder in (
            self.weights,
            self.weights.with_name(f".{self.id}.training"),
            self.path / "photos",
            self.path,
        ):
            shutil.rmtree(str(folder), ignore_errors=True)


class SubjectLibrary(WorkQueue[SubjectFolder]):
    """Accepts subjects and finetunes on them, a few at a time.

    Args:
        settings: of the application.
        live: current limits.
        backend: finetunes.
        metrics: sink for metrics.
    """

    kind = "subject"

    def __init__(
        self, settings: Settings, live: LiveLimits, backend: Backend, metrics: Metrics
    ) -> None:
        self.enabled = bool(settings.subjects)
        root = Path(settings.subjects or "disabled") / ".jobs"
        super().__init__(root, settings.finetunes_at_once, live, backend, metrics)
        self.settings = settings

    def folder(self, name: str) -> SubjectFolder:
        """The folder of an id, whether or not it exists."""
        return SubjectFolder(str(self.root / name))

    def pending(self) -> list[SubjectFolder]:
        """Subjects whose finetuning is not finished."""
        unfinished = [
            record.subject
            for record in self._records()
            if record.subject.status in ("queued", "in_progress")
        ]
        return [self.folder(one.id) for one in sorted(unfinished, key=lambda s: s.created_at)]

    def add(self, owner: str, name: str, photos: Sequence[bytes]) -> Subject:
        """Starts finetuning on photos, or returns the subject of equal photos.

        Raises:
            RequestError: subjects are disabled, or too many wait.
        """
        if not self.enabled:
            raise RequestError(409, "no_subjects", "subjects are disabled by the operator")
        model = stamp(Path(self.settings.model))
        folder = self.folder(f"subject_{digest(owner, model, *photos)[:24]}")
        if folder.exists() and folder.record().subject.status != "failed":
            return folder.record().subject
        if len(self.tasks) >= self.live.limits.subjects_waiting + self.max_running:
            raise busy(f"{len(self.tasks)} subjects are waiting for finetuning", 60)
        for number, photo in enumerate(photos):
            write_atomically(folder.path / "photos" / f"{number}.img", photo)
        subject = Subject(
            id=folder.id, name=name, created_at=int(time.time()), num_photos=len(photos)
        )
        folder.write(SubjectRecord(subject=subject, owner=owner))
        self.start(folder)
        log("subject accepted", subject=folder.id)
        return subject

    def find(self, subject_id: str, owner: str) -> SubjectFolder:
        """An owner's subject.

        Raises:
            RequestError: it does not exist.
        """
        if not self.enabled:
            raise not_found(self.kind, subject_id)
        return self.find_folder(subject_id, owner)

    def all(self, owner: str) -> list[Subject]:
        """An owner's subjects, newest first."""
        mine = [record.subject for record in self._records() if record.owner == owner]
        return sorted(mine, key=lambda subject: subject.created_at, reverse=True)

    async def delete(self, folder: SubjectFolder) -> None:
        """Stops the work and deletes everything."""
        await self.stop(folder.id)
        await asyncio.to_thread(folder.remove)
        log("subject deleted", subject=folder.id)

    def weights_for(self, subject_id: str, owner: str) -> tuple[str, list[str]]:
        """Name of the weights that a video is rendered with, '' for the base model, and warnings.

        Weights that the operator put into the folder are shared by all keys.

        Raises:
            InputError: there is no such subject, or its finetuning failed.
        """
        if not subject_id:
            return "", []
        try:
            subject = self.find(subject_id, owner).record().subject
        except RequestError:
            return self._shared(subject_id), []
        if subject.status == "completed":
            return subject_id, []
        if subject.error is not None:
            raise InputError(f"subject has no weights: {subject.error.message}")
        return "", [
            f"subject {subject_id} is still being finetuned ({subject.progress}%): "
            "rendered with the base model"
        ]

    def _shared(self, name: str) -> str:
        is_own = self.enabled and SAFE_NAME.fullmatch(name) and (self.root / name).exists()
        try:
            if not is_own:
                self.settings.subject_folder(name)
                return name
        except InputError:
            pass
        # Not the message of the settings, which contains the path.
        raise InputError(f"subject {name[:120]!r} has no finetuned weights")

    def _records(self) -> list[SubjectRecord]:
        """Records of all subjects that can be read."""
        records: list[SubjectRecord] = []
        for path in self.root.glob("*/job.json") if self.enabled else ():
            try:
                records.append(SubjectFolder(str(path.parent)).record())
            except (OSError, ValueError):
                # Damaged or of a later version: must not block others.
                logging.getLogger("ray.serve").exception("%s cannot be read", path.parent.name)
        return records

    async def work(self, folder: SubjectFolder) -> None:
        """Finetunes on a subject's photos."""
        await in_thread(folder.update, status="in_progress", error=None)
        timeout = self.live.limits.finetune_timeout_s
        try:
            async with asyncio.timeout(timeout):
                await self.backend.finetune(str(folder.path))
            changes: dict[str, Any] = {"status": "completed", "progress": 100}
        except Exception as error:
            logging.getLogger("ray.serve").exception("%s failed", folder.id)
            changes = {
                "status": "failed",
                "error": job_error(error, "finetune_failed", timeout),
            }
        await in_thread(folder.update, completed_at=int(time.time()), **changes)
        self.metrics.count("dreampose_finetunes", status=changes["status"])
        log(f"subject {changes['status']}", subject=folder.id)
