"""Files and folders that appear whole, files of arrays. Knows nothing of what is in them."""

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
    """Yields where to write a file; when the block ends well it is moved to `path`.

    A file of that name is replaced then, and only then. After an error nothing is left behind. The
    name to write to is nobody else's, and ends as no file that is looked for; the folder is made.

    Args:
        path: of the file.
        durable: wait until the disk has it, so that it outlasts a power cut from then on.
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
    """Waits until the disk has what a file holds, or which names are in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(folder: str | Path) -> Generator[Path, None, None]:
    """Yields an empty folder beside `folder`; when the block ends well it takes that name.

    A folder of that name is replaced then, and only then. After an error nothing is left behind.
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
    """`numpy.load` of an `.npz` file, without pickles, for one thread of the process at a time.

    numpy reads an array's header with `ast.literal_eval`, and that of Python 3.11 fails now and
    then where another thread is in it (https://github.com/python/cpython/issues/106905).
    """
    with _reading, np.load(path, allow_pickle=False) as file:
        yield file
