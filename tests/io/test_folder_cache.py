"""Local copies of remote folders: once a node, bounded, renewed."""

import os
import uuid

import pytest
from pyarrow import fs

from dreampose.errors import InputError
from dreampose.io import assets, folder_cache
from dreampose.io.folder_cache import local_folder


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv(folder_cache.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(uri, files):
    filesystem, path = folder_cache.resolve(uri)
    for name, content in files.items():
        with filesystem.open_output_stream(f"{path}/{name}") as file:
            file.write(content)


@pytest.fixture
def remote(bucket):
    return f"{bucket}/{uuid.uuid4().hex}"


def test_a_remote_folder_is_copied_once_and_again_when_it_changes(cache, remote, monkeypatch):
    upload(f"{remote}/tiny", {"model_index.json": b"{}", "unet/w.bin": b"abc"})
    copies = []
    copy = fs.copy_files
    monkeypatch.setattr(fs, "copy_files", lambda *a, **k: copies.append(a) or copy(*a, **k))
    first = local_folder(f"{remote}/tiny")
    assert first.name == "tiny"
    assert (first / "unet" / "w.bin").read_bytes() == b"abc"
    assert local_folder(f"{remote}/tiny") == first
    assert len(copies) == 2
    upload(f"{remote}/tiny", {"unet/w.bin": b"abcd"})
    assert (local_folder(f"{remote}/tiny") / "unet" / "w.bin").read_bytes() == b"abcd"


def test_the_folders_used_longest_ago_go_first(cache, remote, monkeypatch):
    monkeypatch.setenv(folder_cache.MAX_BYTES, "250")
    folders = []
    for number, name in enumerate(("a", "b", "c")):
        upload(f"{remote}/{name}", {"w.bin": bytes(100)})
        folders.append(local_folder(f"{remote}/{name}"))
        os.utime(folders[-1].parent, (number, number))
        if name == "b":
            os.utime(local_folder(f"{remote}/a").parent, (2, 2))
    assert [folder.is_dir() for folder in folders] == [True, False, True]


def test_a_failed_copy_leaves_nothing(cache, remote, monkeypatch):
    upload(f"{remote}/tiny", {"w.bin": b"abc"})
    with monkeypatch.context() as patched:
        patched.setattr(fs, "copy_files", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
        with pytest.raises(OSError, match="gone"):
            local_folder(f"{remote}/tiny")
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert local_folder(f"{remote}/tiny").is_dir()


def test_missing_folders_and_wrong_bounds_are_rejected(cache, remote, monkeypatch):
    with pytest.raises(InputError, match="model must be a folder"):
        local_folder(f"{remote}/nothing")
    upload(f"{remote}/tiny", {"w.bin": b"abc"})
    monkeypatch.setenv(folder_cache.MAX_BYTES, "much")
    with pytest.raises(InputError, match="whole number of bytes, got 'much'"):
        local_folder(f"{remote}/tiny")


def test_what_an_upload_left_out_is_found_in_the_checkout(monkeypatch, tmp_path):
    upload_copy, checkout = tmp_path / "upload", tmp_path / "checkout"
    (checkout / "models" / "m").mkdir(parents=True)
    upload_copy.mkdir()
    monkeypatch.chdir(upload_copy)
    assert str(local_folder("models/m")) == "models/m"
    monkeypatch.setenv(assets.HOME, str(checkout))
    assert local_folder("models/m") == checkout / "models" / "m"
    (upload_copy / "models" / "m").mkdir(parents=True)
    assert str(local_folder("models/m")) == "models/m"
