"""Atomic writing of files and folders, and reading of array files."""

import os
import secrets
import shutil
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

_reading = threading.RLock()


@contextmanager
def new_file(path: str | Path, *, durable: bool = False) -> Generator[Path, None, None]:
    """Writes a file atomically: yields a temporary path, which replaces `path` at the end.

    After an exception the temporary file is removed and `path` is unchanged. The temporary name is
    unique, is hidden and ends in `.part`. Missing folders are created.

    Args:
        path: path of the file.
        durable: flush the file and its folder to the disk, so that it survives a power failure.
    """
    path = Path(path)
    new_folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{os.getpid()}.{secrets.token_hex(4)}"
    part = path.with_name(f".{path.name}.{own}.part")
    try:
        yield part
        if durable:
            flush(part)
        part.replace(path)
        if durable:
            for folder in (path.parent, *(folder.parent for folder in new_folders)):
                flush(folder)
    finally:
        part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flushes the content of a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exclude_from_uploads(folder: str | Path) -> None:
    """Marks a local output folder, so that `ray job submit` does not upload it with the code.

    A folder that holds the working directory or this package is left as it is.
    """
    folder = Path(folder).expanduser().absolute()
    here = (Path.cwd(), Path(__file__).resolve().parents[2])
    marker = folder / ".rayignore"
    if folder.is_dir() and not marker.exists() and not any(p.is_relative_to(folder) for p in here):
        marker.write_text("*\n", "utf-8")


@contextmanager
def new_folder(folder: str | Path) -> Generator[Path, None, None]:
    """Writes a folder atomically: yields a temporary folder, which replaces `folder` at the end.

    After an exception the temporary folder is removed and `folder` is unchanged.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def open_arrays(path: str | Path) -> Generator[NpzFile, None, None]:
    """Opens an `.npz` file without pickles, in one thread of the process at a time.

    numpy reads array headers with `ast.literal_eval`, which is not thread-safe in Python 3.11
    (https://github.com/python/cpython/issues/106905).
    """
    with _reading, np.load(path, allow_pickle=False) as file:
        yield file
