"""Paths on any pyarrow filesystem: local disk, S3, GCS, Azure.

A local path is a `pathlib.Path`, any other one a `RemotePath` with the same methods, as far as they
are needed. Functions of this module cover operations that differ. A folder of an object store
exists while it contains a file.
"""

import functools
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from dreampose.errors import InputError
from dreampose.io import files

OBJECT_STORES = ("s3", "gcs", "abfs")
"""Filesystems that write files atomically."""
_OPTION_NAMES = (
    "access_key|allow_bucket_creation|allow_bucket_deletion|anonymous|background_writes|"
    "blob_storage_authority|blob_storage_scheme|buffer_size|"
    "check_directory_existence_before_creation|client_id|client_secret|connect_timeout|"
    "credential_kind|default_block_size|dfs_storage_authority|dfs_storage_scheme|enable_tls|"
    "endpoint_override|force_virtual_addressing|kerb_ticket|project_id|region|replication|"
    "request_timeout|retry_limit_seconds|scheme|secret_key|session_token|tenant_id|"
    "tls_ca_file_path|user"
)
_OPTION_LIST = re.compile(rf"\?(?:{_OPTION_NAMES})=[^?\s]*$")
MAX_READS = 10
"""Attempts to read a file that is replaced meanwhile."""
MAX_COPIED_BYTES = 2 * 2**30
"""Size of the local cache of remote files of a process."""


def split_uri(uri: str) -> tuple[str, str, str]:
    """Splits a URI into scheme with authority, path, and options.

    Paths are not percent-decoded, because keys of object stores may contain `#`, `?`, `%` and
    spaces. The text after the last `?` is taken as options only if it is a list of pyarrow's
    options, such as `?region=eu-west-1`.
    """
    scheme, _, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    found = _OPTION_LIST.search(path if slash else authority)
    options = found.group() if found else ""
    if slash:
        return f"{scheme}://{authority}", slash + path.removesuffix(options), options
    return f"{scheme}://{authority.removesuffix(options)}", "", options


def resolve(uri: str | Path) -> tuple[fs.FileSystem, str]:
    """Filesystem of a path or URI, and the path on it; local paths become absolute.

    Only URIs with the scheme `file` are percent-decoded.

    Raises:
        InputError: pyarrow does not support the scheme of the URI.
    """
    text = str(uri)
    if "://" not in text:
        return fs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    root, path, options = split_uri(text)
    if root == "file://":
        literal = Path(path + options)
        return fs.LocalFileSystem(), str(literal if literal.exists() else unquote(str(literal)))
    filesystem, base = _connect(f"{root}/{options}")
    return filesystem, str(PurePosixPath(base) / path.lstrip("/"))


@functools.cache
def _connect(root: str) -> tuple[fs.FileSystem, str]:
    """Filesystem of a storage root; cached, because connecting is slow."""
    try:
        return fs.FileSystem.from_uri(root)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"path must be a local path or a URI of a supported storage, got {root!r} ({error})"
        ) from error


@functools.total_ordering
class RemotePath:
    """A path on a remote filesystem, with methods of `pathlib.Path`.

    Args:
        uri: URI such as `s3://bucket/folder`; derived paths keep its options.
    """

    def __init__(self, uri: str) -> None:
        self._root, inside, self._options = split_uri(uri)
        self._inside = PurePosixPath(inside.lstrip("/"))

    def __str__(self) -> str:
        return self._uri(self._inside)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: "RemotePath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self._uri(self._inside / name))

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self._inside.name

    @property
    def stem(self) -> str:
        """Last part of the path without its suffix."""
        return self._inside.stem

    @property
    def suffix(self) -> str:
        """Suffix of the name, with its dot."""
        return self._inside.suffix

    @property
    def parent(self) -> "RemotePath":
        """Parent folder."""
        return RemotePath(self._uri(self._inside.parent))

    def with_suffix(self, suffix: str) -> "RemotePath":
        """Path with another suffix."""
        return RemotePath(self._uri(self._inside.with_suffix(suffix)))

    @property
    def filesystem(self) -> fs.FileSystem:
        """Filesystem of the path."""
        return self._connection()[0]

    @property
    def path(self) -> str:
        """Path on the filesystem."""
        return str(PurePosixPath(self._connection()[1]) / self._inside)

    def info(self) -> fs.FileInfo:
        """Type, size and time of modification."""
        return self.filesystem.get_file_info(self.path)

    def is_file(self) -> bool:
        """Whether the path is an existing file."""
        return self.info().type == fs.FileType.File

    def is_dir(self) -> bool:
        """Whether the path is an existing folder; on object stores, one that is not empty."""
        return self.info().type == fs.FileType.Directory

    def exists(self) -> bool:
        """Whether the path exists."""
        return self.info().type != fs.FileType.NotFound

    def glob(self, pattern: str) -> list["RemotePath"]:
        """Sorted paths below this one that match a pattern, part by part."""
        patterns = PurePosixPath(pattern).parts
        deep = fs.FileSelector(self.path, allow_not_found=True, recursive=len(patterns) > 1)
        found = (
            PurePosixPath(item.path).relative_to(self.path)
            for item in self.filesystem.get_file_info(deep)
        )
        return sorted(
            self / str(inside)
            for inside in found
            if len(inside.parts) == len(patterns) and all(map(fnmatch, inside.parts, patterns))
        )

    def read_bytes(self) -> bytes:
        """Content of the file.

        Raises:
            FileNotFoundError: the file does not exist.
            OSError: the file was replaced during each of `MAX_READS` attempts.
        """
        for _ in range(MAX_READS):
            with self.filesystem.open_input_file(self.path) as file:
                content = file.read()
            # Reading stops at the size at opening, but the file may have been replaced since then.
            if self.info().size == len(content):
                return content
        raise OSError(f"{self} changes while it is read")

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the file.

        Raises:
            FileNotFoundError: the file does not exist and `missing_ok` is false.
        """
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def upload(self, source: Path) -> None:
        """Uploads a local file to this path, atomically."""
        filesystem, target = self.filesystem, self.path
        if filesystem.type_name in OBJECT_STORES:
            fs.copy_files(str(source), target, destination_filesystem=filesystem)
            return
        filesystem.create_dir(str(PurePosixPath(target).parent), recursive=True)
        part = f"{target}.{source.name}.part"
        fs.copy_files(str(source), part, destination_filesystem=filesystem)
        filesystem.move(part, target)

    def _connection(self) -> tuple[fs.FileSystem, str]:
        return _connect(f"{self._root}/{self._options}")

    def _uri(self, inside: PurePosixPath) -> str:
        tail = "" if inside == PurePosixPath() else f"/{inside}"
        return f"{self._root}{tail}{self._options}"


Place = Path | RemotePath


def place(uri: str | Place) -> Place:
    """Path of a name or URI.

    Raises:
        InputError: pyarrow does not support the scheme of the URI.
    """
    if not isinstance(uri, str):
        return uri
    if "://" not in uri:
        return Path(uri)
    filesystem, path = resolve(uri) if uri.startswith("file:") else (None, "")
    return Path(path) if isinstance(filesystem, fs.LocalFileSystem) else RemotePath(uri)


@contextmanager
def new_file(target: Place, *, durable: bool = False) -> Generator[Path, None, None]:
    """Writes a file atomically: yields a local path, whose content replaces `target` at the end.

    After an exception `target` is unchanged.

    Args:
        target: path of the file.
        durable: flush a local file to the disk; remote storage is durable by itself.
    """
    if isinstance(target, Path):
        with files.new_file(target, durable=durable) as part:
            yield part
        return
    with tempfile.TemporaryDirectory() as folder:
        # A unique name.
        part = Path(folder) / Path(folder).name
        yield part
        target.upload(part)


def modified(where: Place) -> float:
    """Unix time of the last modification; for a remote folder, that of its newest file.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    if isinstance(where, Path):
        return where.stat().st_mtime
    info = where.info()
    below = fs.FileSelector(where.path, allow_not_found=True, recursive=True)
    found = [info] if info.type == fs.FileType.File else where.filesystem.get_file_info(below)
    times = [item.mtime_ns for item in found if item.mtime_ns is not None]
    if not times:
        raise FileNotFoundError(str(where))
    return max(times) / 1e9


def touch(folder: Place) -> None:
    """Updates the time of modification of a folder.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if isinstance(folder, Path):
        folder.touch()
        return
    # Remote folders have no time of modification: rewrite a file in the folder.
    name = next(iter(folder.glob("*")), folder)
    with new_file(name) as part:
        part.write_bytes(name.read_bytes())


def remove_tree(folder: Place) -> None:
    """Deletes a folder with its content; errors are ignored."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(OSError):
        folder.filesystem.delete_dir(folder.path)


class Copies:
    """Local cache of remote files, limited in bytes; the least recently used are deleted first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._known: OrderedDict[tuple[str, int | None, int], Path] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, source: RemotePath) -> Path:
        """Path of a current local copy with the same file name.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        info = source.info()
        if info.type != fs.FileType.File:
            raise FileNotFoundError(str(source))
        key = str(source), info.mtime_ns, info.size
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="dreampose-")
            target = Path(tempfile.mkdtemp(dir=self._folder.name)) / source.name
        fs.copy_files(source.path, str(target), source_filesystem=source.filesystem)
        with self._lock:
            self._known[key] = target
            while sum(size for _, _, size in self._known) > self.max_bytes and len(self._known) > 1:
                _, oldest = self._known.popitem(last=False)
                shutil.rmtree(oldest.parent, ignore_errors=True)
        return target


_copies = Copies(MAX_COPIED_BYTES)


def on_disk(source: Place) -> Path:
    """Local path of a file: its own, or that of a cached copy, which must not be modified.

    Raises:
        FileNotFoundError: a remote file does not exist.
    """
    return source if isinstance(source, Path) else _copies.get(source)
