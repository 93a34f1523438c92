"""Atomic files and folders, and array files."""

import os
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dreampose.io.files import new_file, new_folder, open_arrays


def test_replaces_only_when_the_block_ends_well(tmp_path):
    target = tmp_path / "deep" / "folder"
    with new_folder(target) as part:
        (part / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(IsADirectoryError), new_folder(target) as part:
        part.write_text("this fails half-way")
    assert [path.name for path in target.iterdir()] == ["a"]
    with new_folder(target) as part:
        (part / "c").write_text("3")
    assert [path.name for path in target.iterdir()] == ["c"]
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_a_file_is_replaced_only_when_the_block_ends_well(tmp_path):
    target = tmp_path / "deep" / "clip.mp4"
    with new_file(target) as part:
        part.write_text("first")
        assert not list(tmp_path.rglob("*.mp4")), "nobody takes what is half-written for a video"
    with pytest.raises(UnicodeEncodeError), new_file(target) as part:
        part.write_text("no text: \ud800", "utf-8")
    assert target.read_text() == "first"
    with new_file(target) as one, new_file(target) as other:
        assert one != other, "two threads may write the same file"
        one.write_text("third")
        other.write_text("fourth")
    assert target.read_text() == "third"
    assert [path.name for path in target.parent.iterdir()] == ["clip.mp4"]


def test_what_is_to_last_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    """The file, then the folder that names it, and those that name new folders."""
    target = tmp_path / "new" / "deep" / "clip.mp4"
    flushed = []

    def flush(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append(path.read_text() if path.is_file() else path)
        assert target.exists() == path.is_dir()

    monkeypatch.setattr(os, "fsync", flush)
    with new_file(target, durable=True) as part:
        part.write_text("frames")
    assert flushed == ["frames", target.parent, tmp_path / "new", tmp_path]
    with new_file(tmp_path / "other") as part:
        part.write_text("passing")
    assert len(flushed) == 4


def test_arrays_are_read_by_one_thread_at_a_time(tmp_path):
    # Two at once break Python 3.11's parser about once in ten thousand times.
    np.savez(tmp_path / "some.npz", frames=np.arange(6))
    entered, leave = threading.Event(), threading.Event()
    seen = []

    def hold():
        with open_arrays(tmp_path / "some.npz"):
            entered.set()
            leave.wait(60)
            seen.append("left")

    def read():
        with open_arrays(tmp_path / "some.npz") as file:
            seen.append(file["frames"].tolist())

    first, second = threading.Thread(target=hold), threading.Thread(target=read)
    first.start()
    assert entered.wait(60)
    second.start()
    second.join(0.2)
    leave.set()
    first.join()
    second.join()
    assert seen == ["left", [0, 1, 2, 3, 4, 5]]


def test_unreadable_files_do_not_stop_others(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(zipfile.BadZipFile), open_arrays(tmp_path / "broken.npz"):
        pass
    np.savez(tmp_path / "some.npz", frames=np.arange(3))
    with pytest.raises(KeyError), open_arrays(tmp_path / "some.npz") as file:
        file["others"]
    with open_arrays(tmp_path / "some.npz") as file:
        assert file["frames"].tolist() == [0, 1, 2]
