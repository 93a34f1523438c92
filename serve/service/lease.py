"""Fenced leases of workers on folders in storage.

Storage is the only shared state, and offers neither locks nor clocks: a claim is a file
`lease/GENERATION.WORKER` in the folder, and a worker proves that it is alive by rewriting its
heartbeat `.workers/WORKER`. A claim is won by the worker that, after writing its file, lists no
other of the same generation; if two list each other, both withdraw. This needs only that a listing
shows every completed write (local disks, S3, GCS and Azure do). The generation is the fencing
token: whoever is not in the newest one has lost the lease and must not write results.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreampose.io.paths import Place, remove_tree
from serve.service.store import new_id, write_atomically

HEARTBEAT_SECONDS = 2.0
LEASE_SECONDS = 12.0
"""A worker whose heartbeat has not changed for this long is dead."""


BEAT_ATTEMPTS = 5


class LeaseLostError(Exception):
    """Another worker has taken the folder over."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A claim that was won.

    Attributes:
        manager: of the worker.
        folder: that is leased.
        generation: fencing token, larger than that of every earlier lease on the folder.
    """

    manager: "LeaseManager"
    folder: Place
    generation: int

    def is_held(self) -> bool:
        """Whether the lease is still this worker's."""
        newest = max(self.manager.claims(self.folder), default=None)
        return newest == (self.generation, self.manager.worker) and self.manager.is_current()

    def check(self) -> None:
        """Must be called before results are written.

        Raises:
            LeaseLostError: another worker may have taken over.
        """
        if not self.is_held():
            raise LeaseLostError(f"{self.folder.name}: lease {self.generation} was lost")

    def release(self) -> None:
        """Gives the folder back; it may be gone."""
        self.manager.drop(self.folder, self.generation)
        self.manager.leave()


class LeaseManager:
    """Leases of one worker on folders under one root.

    Args:
        root: of the folders.
        worker: name of the worker, unique in the cluster; by default a new one.
        clock: monotonic time in seconds.
        lease_seconds: time without a heartbeat after which a worker is dead.
    """

    def __init__(
        self,
        root: Place,
        *,
        worker: str = "",
        clock: Callable[[], float] = time.monotonic,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.worker = worker or new_id("worker")
        self.heartbeats = root / ".workers"
        self.lease_seconds = lease_seconds
        self._clock = clock
        self._beats, self._last_beat = 0, float("-inf")
        self._observed: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self.held = 0
        """Leases that this worker holds or is claiming."""

    def beat(self) -> None:
        """Rewrites the heartbeat; call it every `HEARTBEAT_SECONDS`."""
        now = self._clock()
        self._beats += 1
        path, content = self.heartbeats / self.worker, str(self._beats).encode()
        for attempt in range(BEAT_ATTEMPTS):
            try:
                write_atomically(path, content, durable=False)
                break
            except FileNotFoundError:
                # The last other worker has just removed the folder.
                if attempt == BEAT_ATTEMPTS - 1:
                    raise OSError(f"cannot write the heartbeat {path}") from None
        # The time before the write: others cannot have seen it earlier.
        self._last_beat = now

    def is_current(self) -> bool:
        """Whether, by its own clock, no other worker can have declared this one dead."""
        return self._clock() - self._last_beat < self.lease_seconds

    def is_alive(self, worker: str) -> bool:
        """Whether a worker's heartbeat exists and has changed recently, by this worker's clock."""
        if worker == self.worker:
            return self.is_current()
        try:
            content = (self.heartbeats / worker).read_bytes()
        except FileNotFoundError:
            return False
        now = self._clock()
        previous, since = self._observed.get(worker, (b"", now))
        if content != previous:
            since = now
        self._observed[worker] = content, since
        return now - since < self.lease_seconds

    def claim(self, folder: Place) -> Lease | None:
        """Tries to lease a folder; None while another live worker holds it.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        with self._lock:
            self.held += 1
            if not self.is_current():
                self.beat()
        lease = None
        try:
            lease = self._claim(folder)
        finally:
            if lease is None:
                self.leave()
        return lease

    def _claim(self, folder: Place) -> Lease | None:
        claims = self.claims(folder)
        newest = max(claims, default=(0, ""))
        if newest[1] and self.is_alive(newest[1]):
            return None
        if not folder.is_dir():
            raise FileNotFoundError(str(folder))
        generation = newest[0] + 1
        write_atomically(self._path(folder, generation, self.worker), b"", durable=False)
        rivals = [claim for claim in self.claims(folder) if claim[0] >= generation]
        if rivals != [(generation, self.worker)]:
            self.drop(folder, generation)
            time.sleep(random.uniform(0, 0.05))
            return None
        for old, worker in claims:
            self._path(folder, old, worker).unlink(missing_ok=True)
        return Lease(manager=self, folder=folder, generation=generation)

    def claims(self, folder: Place) -> list[tuple[int, str]]:
        """Generations and workers of all claims on a folder."""
        found: list[tuple[int, str]] = []
        for path in (folder / "lease").glob("*.worker_*"):
            generation, _, worker = path.name.partition(".")
            if generation.isdecimal():
                found.append((int(generation), worker))
        return found

    def drop(self, folder: Place, generation: int) -> None:
        """Removes a claim of this worker."""
        self._path(folder, generation, self.worker).unlink(missing_ok=True)

    def leave(self) -> None:
        """Counts a lease as given back; without any, the heartbeat is removed."""
        with self._lock:
            self.held -= 1
            if self.held == 0:
                self.stop()

    def stop(self) -> None:
        """Ends this worker: others take its folders over at once."""
        self._last_beat = float("-inf")
        (self.heartbeats / self.worker).unlink(missing_ok=True)
        if isinstance(self.heartbeats, Path):
            with contextlib.suppress(OSError):
                self.heartbeats.rmdir()

    def clear(self, folder: Place) -> None:
        """Removes all claims on a finished folder."""
        remove_tree(folder / "lease")

    def _path(self, folder: Place, generation: int, worker: str) -> Place:
        return folder / "lease" / f"{generation:08d}.{worker}"
