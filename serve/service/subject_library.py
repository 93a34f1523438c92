"""Subjects and their finetuning.

A subject's id is made from its owner, its photos and the model, so that the same photos are never
finetuned on twice and weights under an id never change while a video is rendered with them. The
weights lie in SUBJECTS/ID, where every sampler looks for them once they are there; what is known
of the work lies in SUBJECTS/.jobs/ID: job.json and photos/.
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
from serve.config import Settings
from serve.service.backend import Backend
from serve.service.limits import LiveLimits
from serve.service.metrics import Metrics, log
from serve.service.records import JobError, Status
from serve.service.request_errors import RequestError, busy, fault, not_found
from serve.service.store import NAME, digest, stamp, write_atomically


class Subject(BaseModel):
    """The subject object of the HTTP interface. Times are Unix seconds, progress is 0 to 100."""

    id: str
    object: Literal["subject"] = "subject"
    name: str = ""
    status: Status = "queued"
    progress: int = 0
    created_at: int
    completed_at: int | None = None
    num_photos: int
    error: JobError | None = None


class Job(BaseModel):
    """What lies in `job.json`."""

    subject: Subject
    owner: str


class SubjectFolder:
    """One subject's work in storage."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def id(self) -> str:
        """Of the subject."""
        return self.path.name

    @property
    def photos(self) -> list[Path]:
        """In the order in which they came."""
        return sorted((self.path / "photos").glob("*.img"), key=lambda path: int(path.stem))

    @property
    def weights(self) -> Path:
        """Folder of the finetuned weights; appears whole."""
        return self.path.parent.parent / self.id

    def exists(self) -> bool:
        """Whether the subject was accepted."""
        return (self.path / "job.json").is_file()

    def job(self) -> Job:
        """What is known."""
        return Job.model_validate_json((self.path / "job.json").read_bytes())

    def write(self, job: Job) -> Subject:
        """Keeps what is known."""
        write_atomically(self.path / "job.json", job.model_dump_json(indent=1).encode())
        return job.subject

    def update(self, **changes: Any) -> Subject:
        """Writes some fields of the subject."""
        job = self.job()
        subject = Subject.model_validate(job.subject.model_dump() | changes)
        return self.write(Job(subject=subject, owner=job.owner))

    def remove(self) -> None:
        """Takes photos, checkpoints and weights away, what names them last."""
        for folder in (self.weights, self.weights.with_name(f".{self.id}.training")):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.path / "photos", ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)


class SubjectLibrary:
    """Accepts subjects and has them finetuned on, a few at a time."""

    def __init__(
        self, settings: Settings, live: LiveLimits, backend: Backend, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.live = live
        self.backend = backend
        self.metrics = metrics
        self.root = Path(settings.subjects) / ".jobs" if settings.subjects else None
        self.slots = asyncio.Semaphore(settings.finetunes_at_once)
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Takes up what is unfinished in storage."""
        for job in self._jobs():
            if self.root is not None and job.subject.status in ("queued", "in_progress"):
                self._start(SubjectFolder(self.root / job.subject.id))

    async def close(self) -> None:
        """Lets go; work goes on from its last checkpoint when it is taken up."""
        for task in list(self.tasks.values()):
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    def add(self, owner: str, name: str, photos: Sequence[bytes]) -> Subject:
        """Starts finetuning on photos; gives what there is where that was done before.

        Raises:
            RequestError: no subjects are served, or too many wait.
        """
        if self.root is None:
            raise RequestError(
                409, "no_subjects", "subjects must be set to a folder by who runs this"
            )
        model = stamp(Path(self.settings.model))
        subject_id = f"subject_{digest(owner, model, *photos)[:24]}"
        folder = SubjectFolder(self.root / subject_id)
        if folder.exists() and folder.job().subject.status != "failed":
            return folder.job().subject
        if len(self.tasks) >= self.live.limits.subjects_waiting + self.settings.finetunes_at_once:
            raise busy(f"finetuning must have room, got {len(self.tasks)} people waiting", 60)
        for number, photo in enumerate(photos):
            write_atomically(folder.path / "photos" / f"{number}.img", photo)
        subject = Subject(
            id=subject_id, name=name, created_at=int(time.time()), num_photos=len(photos)
        )
        folder.write(Job(subject=subject, owner=owner))
        self._start(folder)
        log("subject accepted", subject=subject_id)
        return subject

    def find(self, subject_id: str, owner: str) -> SubjectFolder:
        """An owner's subject.

        Raises:
            RequestError: there is none of that id.
        """
        folder = SubjectFolder(self.root / subject_id) if self.root else None
        if folder is None or not NAME.fullmatch(subject_id) or not folder.exists():
            raise not_found("subject", subject_id)
        if folder.job().owner != owner:
            raise not_found("subject", subject_id)
        return folder

    def all(self, owner: str) -> list[Subject]:
        """An owner's subjects, the newest first."""
        mine = [job.subject for job in self._jobs() if job.owner == owner]
        return sorted(mine, key=lambda subject: subject.created_at, reverse=True)

    async def delete(self, folder: SubjectFolder) -> None:
        """Stops the work and takes everything away."""
        if task := self.tasks.get(folder.id):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(folder.remove)
        log("subject deleted", subject=folder.id)

    def weights_for(self, subject_id: str, owner: str) -> tuple[str, list[str]]:
        """What a video is rendered with now: a subject's name or '', and what to tell about it.

        Weights that whoever runs this put into the folder are everybody's.

        Raises:
            InputError: there is no such subject, or its finetuning failed.
        """
        if not subject_id:
            return "", []
        try:
            subject = self.find(subject_id, owner).job().subject
        except RequestError:
            return self._shared(subject_id), []
        if subject.status == "completed":
            return subject_id, []
        if subject.error is not None:
            raise InputError(f"subject must have finetuned weights, got: {subject.error.message}")
        return "", [
            f"subject {subject_id} is still being finetuned ({subject.progress}%): "
            "rendered with the base model"
        ]

    def _shared(self, name: str) -> str:
        is_own = self.root is not None and NAME.fullmatch(name) and (self.root / name).exists()
        try:
            if not is_own:
                self.settings.subject_folder(name)
                return name
        except InputError:
            pass
        # Not the sentence of the settings, which tells where they are.
        raise InputError(f"subject must have finetuned weights, got {name[:120]!r}, which has none")

    def _jobs(self) -> list[Job]:
        """What is known of each subject, as far as it can be read."""
        jobs: list[Job] = []
        for path in self.root.glob("*/job.json") if self.root else ():
            try:
                jobs.append(SubjectFolder(path.parent).job())
            except (OSError, ValueError):
                # Such as a later version's, which must not keep others waiting.
                logging.getLogger("ray.serve").exception("%s cannot be read", path.parent.name)
        return jobs

    def _start(self, folder: SubjectFolder) -> None:
        task = asyncio.create_task(self._run(folder))
        self.tasks[folder.id] = task
        task.add_done_callback(lambda _: self.tasks.pop(folder.id, None))

    async def _run(self, folder: SubjectFolder) -> None:
        async with self.slots:
            folder.update(status="in_progress", error=None)
            timeout = self.live.limits.finetune_timeout_s
            try:
                async with asyncio.timeout(timeout):
                    await self.backend.finetune(str(folder.path))
                folder.update(status="completed", progress=100, completed_at=int(time.time()))
            except Exception as error:
                logging.getLogger("ray.serve").exception("%s failed", folder.id)
                told = fault(error, "finetune_failed", timeout)
                folder.update(status="failed", completed_at=int(time.time()), error=told)
        status = folder.job().subject.status
        self.metrics.count("dreampose_finetunes", status=status)
        log(f"subject {status}", subject=folder.id)
