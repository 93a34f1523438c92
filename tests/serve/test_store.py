"""Storage of videos."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dreampose.errors import InputError
from dreampose.io.paths import modified
from serve.deployments.video_writer import write_result
from serve.service.records import RenderRequest
from serve.service.store import Store, new_id, write_atomically


@pytest.fixture
def store(anywhere):
    return Store(anywhere)


def new_video(store, video_id=None):
    return store.create(
        request=RenderRequest(seed=7),
        photos=[b"first", b"second"],
        motion=b"PK",
        motion_suffix=".npz",
        video_id=video_id,
    )


def numbered(indices):
    """Frames whose pixels tell their index."""
    return np.stack([np.full((2, 2, 3), index, np.uint8) for index in indices])


def test_created_video_is_found(store):
    folder = Store(store.root).folder(new_video(store).id)
    assert folder.request().seed == 7
    assert [photo.read_bytes() for photo in folder.photos] == [b"first", b"second"]
    assert folder.motion.read_bytes() == b"PK"
    assert folder.video().status == "queued"


def test_requests_and_final_states_are_synced(tmp_path, monkeypatch):
    """The disk has the inputs before the request, and the result; progress it need not have."""
    flushed = []

    def flush(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        flushed.append(name.removeprefix(".").partition(f".{os.getpid()}.")[0])

    monkeypatch.setattr(os, "fsync", flush)
    folder = new_video(Store(tmp_path), "mine")
    files = [name for name in flushed if "." in name]
    assert files == ["0.img", "1.img", "motion.npz", "video.json", "request.json"]
    flushed.clear()
    folder.write_chunk(range(2), np.zeros((2, 32, 32, 3), np.uint8))
    folder.update(progress=10, num_frames_rendered=2)
    assert flushed == []
    write_result(folder, 2, 12.5)
    assert [name for name in flushed if "." in name] == ["poster.png", "video.mp4"]
    flushed.clear()
    folder.update(status="completed", progress=100)
    assert "video.json" in flushed


def test_photo_order_beyond_ten(store):
    photos = [str(number).encode() for number in range(12)]
    folder = store.create(request=RenderRequest(), photos=photos, motion=b"", motion_suffix=".mp4")
    assert [photo.read_bytes() for photo in folder.photos] == photos


def test_partial_files_are_not_photos(store):
    folder = new_video(store)
    write_atomically(folder.path / "photos" / ".0.img.17347.21af3eab.part", b"fir")
    assert [photo.read_bytes() for photo in folder.photos] == [b"first", b"second"]


def test_frames_are_read_in_order_and_once(store):
    folder = new_video(store)
    for indices in (range(4, 6), range(4), range(3, 8), range(8, 9)):
        folder.write_chunk(indices, numbered(indices))
    assert [int(frame[0, 0, 0]) for frame in folder.frames()] == list(range(9))
    assert folder.finished_frames() == set(range(9))


def test_frames_stop_at_the_first_missing_one(store):
    folder = new_video(store)
    folder.write_chunk(range(2), numbered(range(2)))
    folder.write_chunk(range(3, 5), numbered(range(3, 5)))
    assert [int(frame[0, 0, 0]) for frame in folder.frames()] == [0, 1]


def test_only_accepted_undeleted_videos_exist(store):
    wanted, deleted = (new_video(store) for _ in range(2))
    deleted.mark_deleted()
    half_posted = store.root / "half" / "photos" / "0.img"
    write_atomically(half_posted, b"x")
    assert [folder.id for folder in store.folders()] == [wanted.id]
    assert [folder.id for folder in store.deleted()] == [deleted.id]
    deleted.remove()
    assert not deleted.path.exists()
    with pytest.raises(FileNotFoundError):
        deleted.write_chunk(range(1), numbered(range(1)))
    assert not deleted.path.exists(), "a video that is gone must not come back"


def test_abandoned_folders_are_removed(store):
    wanted = new_video(store)
    half_posted = store.root / new_id("video") / "photos" / "0.img"
    others = store.root / "video_clips" / "anna" / "walk.mp4"
    for path in (half_posted, others, store.root / "holiday" / "deleted"):
        write_atomically(path, b"x")
    now = modified(wanted.path)
    store.clear_abandoned(now - 60)
    assert half_posted.exists()
    store.clear_abandoned(now + 60)
    assert not half_posted.exists()
    assert wanted.exists()
    assert others.exists(), "what is not the service's own stays, whoever put it there"
    assert store.deleted() == []


def test_ids_sort_by_age_and_are_random(store):
    ids = [new_video(store).id for _ in range(20)]
    assert ids == sorted(ids)
    assert len({video_id[-20:] for video_id in ids}) == 20


@pytest.mark.parametrize(
    "video_id", ["", ".", "..", "../secret", "a/b", "a\\b", "/etc", "-rf", "a" * 101, "ü", "a\n"]
)
def test_ids_cannot_escape_the_root(store, video_id):
    with pytest.raises(InputError, match="id must be"):
        store.folder(video_id)


def test_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    script = (
        "import os, pathlib, signal, sys\n"
        "from serve.service.store import write_atomically\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_atomically(pathlib.Path({str(path)!r}), b'new')\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run([sys.executable, "-c", script], check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
