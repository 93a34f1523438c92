"""Leases of workers on folders in storage."""

import threading
from collections import Counter

import pytest

from serve.service.lease import LeaseLostError, LeaseManager


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "video_1").mkdir()
    return tmp_path / "video_1"


@pytest.fixture
def workers(tmp_path, clock):
    return [
        LeaseManager(tmp_path, worker=f"worker_{name}", clock=clock, lease_seconds=10)
        for name in "ab"
    ]


def test_one_worker_holds_a_folder(workers, folder):
    first, second = workers
    lease = first.claim(folder)
    assert second.claim(folder) is None
    lease.check()
    lease.release()
    assert second.claim(folder).generation == 1


def test_dead_workers_folder_is_taken_over_with_a_newer_token(workers, folder, clock):
    first, second = workers
    old = first.claim(folder)
    assert second.claim(folder) is None
    clock.now += 6
    first.beat()
    assert second.claim(folder) is None
    clock.now += 9
    assert second.claim(folder) is None, "its last heartbeat was seen 9 s ago"
    clock.now += 2
    second.beat()
    new = second.claim(folder)
    assert new.generation > old.generation
    # The first one wakes up: neither its heartbeat nor its claim gives it the folder back.
    first.beat()
    with pytest.raises(LeaseLostError):
        old.check()
    new.check()
    assert first.claim(folder) is None


def test_worker_without_heartbeats_fences_itself(workers, folder, clock):
    lease = workers[0].claim(folder)
    clock.now += 10
    with pytest.raises(LeaseLostError):
        lease.check()


def test_stopped_workers_folder_is_taken_over_at_once(workers, folder):
    first, second = workers
    first.claim(folder)
    first.stop()
    assert second.claim(folder) is not None


def test_deleted_folder_is_not_recreated(workers, tmp_path):
    with pytest.raises(FileNotFoundError):
        workers[0].claim(tmp_path / "video_2")
    assert not (tmp_path / "video_2").exists()


def test_simultaneous_claims_have_at_most_one_winner(tmp_path):
    managers = [LeaseManager(tmp_path) for _ in range(8)]
    wins = Counter()
    for number in range(30):
        folder = tmp_path / f"video_{number}"
        folder.mkdir()
        start = threading.Barrier(len(managers))
        won = []

        def claim(manager, folder=folder, start=start, won=won):
            start.wait()
            while not won:
                if manager.claim(folder):
                    won.append(manager.worker)
                    return

        threads = [threading.Thread(target=claim, args=(manager,)) for manager in managers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wins[len(won)] += 1
    assert wins == {1: 30}
