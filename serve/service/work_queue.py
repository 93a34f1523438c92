"""Queue of work on folders in storage, resumable and shared by replicas."""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Protocol, TypeVar

from dreampose.io.paths import Place
from serve.service.backend import Backend
from serve.service.lease import HEARTBEAT_SECONDS, LeaseManager
from serve.service.limits import LiveLimits
from serve.service.metrics import Metrics
from serve.service.request_errors import not_found
from serve.service.store import SAFE_NAME, in_thread

logger = logging.getLogger("ray.serve")


class WorkFolder(Protocol):
    """A folder with a request, its owners and its state."""

    path: Place

    @property
    def id(self) -> str:
        """Name of the folder."""
        ...

    def exists(self) -> bool:
        """Whether the request was accepted."""
        ...

    def owners(self) -> list[str]:
        """Names of the keys that may see it."""
        ...


Folder = TypeVar("Folder", bound=WorkFolder)


class WorkQueue(ABC, Generic[Folder]):
    """Runs work on folders with limited concurrency and resumes what others left unfinished.

    All state that must survive is in storage. Several replicas may run queues on the same storage:
    each folder is worked on by the replica that holds its lease.

    Args:
        root: of the folders.
        slots: folders that are worked on at a time.
        live: current limits.
        backend: does the work.
        metrics: sink for metrics.
    """

    kind: ClassVar[str]
    """Noun for error messages and the log."""
    leased: ClassVar[bool] = True
    """Whether this replica leases the folders that it works on."""

    def __init__(
        self, root: Place, slots: int, live: LiveLimits, backend: Backend, metrics: Metrics
    ) -> None:
        self.root, self.live, self.backend, self.metrics = root, live, backend, metrics
        self.max_running = slots
        self.slots = asyncio.Semaphore(slots)
        self.leases = LeaseManager(root)
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.waiting: set[str] = set()
        self._heart: asyncio.Task[None] | None = None

    @abstractmethod
    def folder(self, name: str) -> Folder:
        """The folder of an id, whether or not it exists."""

    @abstractmethod
    def pending(self) -> list[Folder]:
        """Folders in storage whose work is not finished, in the order of their requests."""

    @abstractmethod
    async def work(self, folder: Folder) -> None:
        """Does the work and writes the final state, whatever happens."""

    async def open(self) -> None:
        """Resumes unfinished work."""
        if self.leased:
            self._heart = asyncio.create_task(self._beat())
        await self.resume()

    async def close(self) -> None:
        """Stops; unfinished work is resumed by the next replica."""
        tasks = [*self.tasks.values(), *([self._heart] if self._heart else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.leased:
            with contextlib.suppress(OSError):
                await in_thread(self.leases.stop)

    async def resume(self) -> None:
        """Starts work in storage that no task of this replica is for."""
        for folder in await in_thread(self.pending):
            if folder.id not in self.tasks:
                self.start(folder)

    def start(self, folder: Folder) -> None:
        """Queues a folder."""
        self.waiting.add(folder.id)
        task = asyncio.create_task(self._run(folder))
        self.tasks[folder.id] = task

        def end(_: asyncio.Task[None]) -> None:
            self.tasks.pop(folder.id, None)
            self.waiting.discard(folder.id)
            self.changed()

        task.add_done_callback(end)
        self.changed()

    async def stop(self, name: str) -> None:
        """Cancels the work on a folder and waits for its end."""
        if task := self.tasks.get(name):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def changed(self) -> None:
        """Called whenever the numbers of waiting and running folders change."""

    def find_folder(self, name: str, owner: str) -> Folder:
        """An owner's folder; reads storage.

        Raises:
            RequestError: it does not exist.
        """
        # Anything but a safe name might be the path of another folder.
        folder = self.folder(name) if SAFE_NAME.fullmatch(name) else None
        if folder is None or not folder.exists() or owner not in folder.owners():
            raise not_found(self.kind, name)
        return folder

    async def _run(self, folder: Folder) -> None:
        async with self.slots:
            self.waiting.discard(folder.id)
            self.changed()
            await self.work_with_lease(folder)

    async def work_with_lease(self, folder: Folder) -> None:
        """Works on a folder unless another replica does."""
        try:
            lease = await in_thread(self.leases.claim, folder.path)
        except FileNotFoundError:
            return
        if lease is None:
            return
        try:
            await self.work(folder)
        finally:
            with contextlib.suppress(OSError):
                await in_thread(lease.release)

    async def _beat(self) -> None:
        while True:
            if self.leases.held:
                try:
                    await in_thread(self.leases.beat)
                except OSError:
                    logger.exception("%s: heartbeat", self.kind)
            await asyncio.sleep(HEARTBEAT_SECONDS)
