"""Local copies of remote folders, one a node, in a bounded cache."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pyarrow import fs

from dreampose.errors import InputError
from dreampose.io import assets
from dreampose.io.paths import resolve

CACHE = "DREAMPOSE_CACHE"
"""Environment variable: folder of the cache; by default one in the system's temporary folder."""
MAX_BYTES = "DREAMPOSE_CACHE_BYTES"
"""Environment variable: bytes that the cache may take; the folder used last always stays."""
DEFAULT_BYTES = 20 * 2**30


def local_folder(uri: str | Path, *, name: str = "model") -> Path:
    """The folder itself if it is local, else a copy of it on this node's disk.

    A remote folder is copied once a node, by whichever process comes first, and again when its
    files change. The folders used longest ago are deleted when the cache exceeds its bound. A local
    folder that does not exist is looked up among the repository's files (`assets`).

    Args:
        uri: a path, or a URI of any pyarrow filesystem.
        name: of the argument, for errors.

    Raises:
        InputError: a remote folder is empty or missing, or storage cannot be reached.
    """
    text = str(uri)
    if "://" not in text:
        return assets.find(Path(text).expanduser())
    filesystem, path = resolve(text)
    try:
        listed = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise InputError(f"{name} must be a folder, got {text!r} ({error})") from error
    files = sorted((item for item in listed if item.is_file), key=lambda item: item.path)
    if not files:
        raise InputError(f"{name} must be a folder with files, got nothing in {text!r}")
    facts = [(item.path, item.size, item.mtime_ns) for item in files]
    key = hashlib.sha256(repr((text, facts)).encode()).hexdigest()[:24]
    root = _root()
    # The last part keeps the folder's own name, which models are known by.
    target = root / key / (PurePosixPath(path).name or "folder")
    with _locked(root / f"{key}.lock"):
        if not target.is_dir():
            part = root / f"{key}.{os.getpid()}.part"
            shutil.rmtree(part, ignore_errors=True)
            try:
                for item in files:
                    copy = part / target.name / PurePosixPath(item.path).relative_to(path)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    fs.copy_files(item.path, str(copy), source_filesystem=filesystem)
                shutil.rmtree(root / key, ignore_errors=True)
                part.replace(root / key)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        os.utime(root / key)
    _evict(root, keep=key)
    return target


def _root() -> Path:
    default = Path(tempfile.gettempdir()) / f"dreampose-cache-{os.getuid()}"
    root = Path(os.environ.get(CACHE) or default)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return root


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """Holds a lock among the node's processes; it ends with its process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _evict(root: Path, *, keep: str) -> None:
    text = os.environ.get(MAX_BYTES) or str(DEFAULT_BYTES)
    if not text.isdecimal():
        raise InputError(f"{MAX_BYTES} must be a whole number of bytes, got {text!r}")
    with _locked(root / "evict.lock"):
        folders = [path for path in root.iterdir() if path.is_dir() and path.suffix != ".part"]
        sizes = {path: _size(path) for path in folders}
        total = sum(sizes.values())
        for path in sorted(folders, key=lambda path: path.stat().st_mtime):
            if total <= int(text):
                return
            if path.name != keep:
                shutil.rmtree(path, ignore_errors=True)
                total -= sizes[path]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
