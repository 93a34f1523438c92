"""Paths on any pyarrow filesystem: this disk, S3, GCS, Azure. Knows nothing of files' contents.

On this disk a place is a `pathlib.Path`. Elsewhere it is a `RemotePath`, which has those methods of
paths that the service needs; the functions here do what differs. A folder of an object store is
there while something is in it.
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
"""Filesystems whose files appear whole by themselves, when their writing ends."""
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
"""Of a file that is replaced while it is read."""
MAX_COPIED_BYTES = 2 * 2**30
"""Of remote files that a process keeps on this disk."""


def split_uri(uri: str) -> tuple[str, str, str]:
    """Scheme and authority, path within it, and options of a URI: parts that make it when joined.

    Paths are taken as they are written, not percent-decoded, since `#`, `?`, `%` and blanks may
    stand in the keys of object stores. Options are what follows the last `?` where that is a list
    of options that pyarrow knows, such as `?region=eu-west-1`.
    """
    scheme, _, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    found = _OPTION_LIST.search(path if slash else authority)
    options = found.group() if found else ""
    if slash:
        return f"{scheme}://{authority}", slash + path.removesuffix(options), options
    return f"{scheme}://{authority.removesuffix(options)}", "", options


def resolve(uri: str | Path) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path within it (absolute on this disk).

    Paths of URIs are not percent-decoded, but for those of `file:`.

    Raises:
        InputError: the URI's scheme is not one that pyarrow supports.
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
    """The filesystem of a storage's root, once for all its paths: connecting takes a while."""
    try:
        return fs.FileSystem.from_uri(root)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"path must be on this disk or a known storage, got {root!r} ({error})"
        ) from error


@functools.total_ordering
class RemotePath:
    """A path on a filesystem that is not this disk's; what it has of `pathlib.Path` is alike.

    Args:
        uri: such as `s3://bucket/folder`; its options hold for paths below as well.
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
        """The last part."""
        return self._inside.name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self._inside.stem

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return self._inside.suffix

    @property
    def parent(self) -> "RemotePath":
        """The folder that this is in."""
        return RemotePath(self._uri(self._inside.parent))

    def with_suffix(self, suffix: str) -> "RemotePath":
        """The same with another end of the name."""
        return RemotePath(self._uri(self._inside.with_suffix(suffix)))

    @property
    def filesystem(self) -> fs.FileSystem:
        """Where it is."""
        return self._connection()[0]

    @property
    def path(self) -> str:
        """What the filesystem calls it."""
        return str(PurePosixPath(self._connection()[1]) / self._inside)

    def info(self) -> fs.FileInfo:
        """What the filesystem knows of it."""
        return self.filesystem.get_file_info(self.path)

    def is_file(self) -> bool:
        """Whether there is a file of that name."""
        return self.info().type == fs.FileType.File

    def is_dir(self) -> bool:
        """Whether there is a folder of that name, with something in it."""
        return self.info().type == fs.FileType.Directory

    def exists(self) -> bool:
        """Whether there is a file or a folder of that name."""
        return self.info().type != fs.FileType.NotFound

    def glob(self, pattern: str) -> list["RemotePath"]:
        """What is below and has names like the pattern's, part by part; sorted."""
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
        """All of the file.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it changes all the time.
        """
        for _ in range(MAX_READS):
            with self.filesystem.open_input_file(self.path) as file:
                content = file.read()
            # That ends where the file ended when it was opened, though a longer one may have taken
            # its place before it was read.
            if self.info().size == len(content):
                return content
        raise OSError(f"{self} changes while it is read")

    def unlink(self, missing_ok: bool = False) -> None:
        """Takes the file away.

        Raises:
            FileNotFoundError: it is not there, and must be.
        """
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def upload(self, source: Path) -> None:
        """Puts a file of this disk in this place; it appears whole."""
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
    """The path that a name or URI stands for.

    Raises:
        InputError: the URI's scheme is not one that pyarrow knows.
    """
    if not isinstance(uri, str):
        return uri
    if "://" not in uri:
        return Path(uri)
    filesystem, path = resolve(uri) if uri.startswith("file:") else (None, "")
    return Path(path) if isinstance(filesystem, fs.LocalFileSystem) else RemotePath(uri)


@contextmanager
def new_file(target: Place, *, durable: bool = False) -> Generator[Path, None, None]:
    """Yields a path of this disk; when the block ends well, what is written there is in `target`.

    It appears whole, in place of what was there. After an error nothing is left behind.

    Args:
        target: of the file.
        durable: wait until this disk has it; other storage keeps what it has taken.
    """
    if isinstance(target, Path):
        with files.new_file(target, durable=durable) as part:
            yield part
        return
    with tempfile.TemporaryDirectory() as folder:
        # A name that nobody else's has.
        part = Path(folder) / Path(folder).name
        yield part
        target.upload(part)


def modified(where: Place) -> float:
    """Unix time of the last change; of a remote folder, of that of the newest file in it.

    Raises:
        FileNotFoundError: there is nothing.
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
    """Makes a folder as new as if something in it had just been written.

    Raises:
        FileNotFoundError: there is none.
    """
    if isinstance(folder, Path):
        folder.touch()
        return
    # There folders have no time of their own.
    name = next(iter(folder.glob("*")), folder)
    with new_file(name) as part:
        part.write_bytes(name.read_bytes())


def remove_tree(folder: Place) -> None:
    """Takes away a folder and all that is in it, as far as that can be done."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(OSError):
        folder.filesystem.delete_dir(folder.path)


class Copies:
    """Copies of remote files on this disk; those used last are kept, up to some number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._known: OrderedDict[tuple[str, int | None, int], Path] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, source: RemotePath) -> Path:
        """A copy of a file as it is now; its name ends like the file's.

        Raises:
            FileNotFoundError: the file is not there.
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
    """A path of this disk with the file's content: its own, or that of a copy. Not to be changed.

    Raises:
        FileNotFoundError: a remote file is not there.
    """
    return source if isinstance(source, Path) else _copies.get(source)
