"""Files and folders on any pyarrow filesystem."""

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from dreampose.io import assets
from dreampose.io.files import new_folder
from dreampose.io.paths import resolve


def absolute(uri: str | Path) -> str:
    """Path independent of the working directory: a URI or an absolute path."""
    return str(uri) if "://" in str(uri) else resolve(uri)[1]


def model_path(uri: str) -> str:
    """Path of a model folder on every node: a URI or an absolute path.

    A relative path that the job's upload left out is looked up in the node's checkout.
    """
    return uri if "://" in uri else str(assets.find(Path(uri).expanduser()).absolute())


def locate(uri: str | Path) -> tuple[fs.FileSystem, fs.FileInfo]:
    """Filesystem and file information of a path or URI.

    A URI is first used literally, and percent-decoded if nothing exists there.
    """
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound and "://" in str(uri) and "%" in path:
        decoded = filesystem.get_file_info(unquote(path))
        info = info if decoded.type == fs.FileType.NotFound else decoded
    return filesystem, info


def is_file(uri: str | Path) -> bool:
    """Whether a file exists."""
    return locate(uri)[1].type == fs.FileType.File


def is_folder(uri: str | Path) -> bool:
    """Whether a folder exists."""
    return locate(uri)[1].type == fs.FileType.Directory


def read_bytes(uri: str | Path) -> bytes:
    """The content of a small file."""
    filesystem, info = locate(uri)
    with filesystem.open_input_file(info.path) as file:
        return file.read()


def read_text(uri: str | Path) -> str:
    """The text of a small UTF-8 file."""
    return read_bytes(uri).decode("utf-8")


def write_text(uri: str | Path, text: str) -> None:
    """Writes a small UTF-8 file atomically."""
    filesystem, path = resolve(uri)
    filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)
    with filesystem.open_output_stream(f"{path}.part") as file:
        file.write(text.encode("utf-8"))
    filesystem.move(f"{path}.part", path)


def find(uri: str) -> list[str]:
    """Files under a folder, or those that match a pattern (`*`, `?`, `[..]`), sorted; or the file.

    An existing file or folder is not interpreted as a pattern.
    The names come back in the form in which the folder was given, URI scheme included.
    """
    filesystem, info = locate(uri)
    if info.type == fs.FileType.File:
        return [uri]
    scheme, separator, rest = uri.rpartition("://")
    prefix = scheme + separator
    parts = PurePosixPath(rest).parts
    fixed = len(parts)
    if info.type == fs.FileType.NotFound:
        fixed = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
        if fixed == len(parts):
            return []
    folder = str(PurePosixPath(*parts[:fixed])) if fixed else "."
    if fixed < len(parts):
        filesystem, info = locate(prefix + folder)
        if info.type != fs.FileType.Directory:
            return []
    listed = filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
    names = sorted(
        str(PurePosixPath(folder) / PurePosixPath(file.path).relative_to(info.path))
        for file in listed
        if file.type == fs.FileType.File
    )
    if fixed < len(parts):
        names = [name for name in names if _matches(name, str(PurePosixPath(rest)))]
    return [prefix + name for name in names]


def folders(folder: str) -> list[str]:
    """Names of the folders in a folder; empty if it does not exist."""
    filesystem, path = resolve(folder)
    listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(item.base_name for item in listed if item.type == fs.FileType.Directory)


def delete_file(uri: str) -> None:
    """Deletes a file, if it exists."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def delete_folder(folder: str) -> None:
    """Deletes a folder with its content."""
    filesystem, path = resolve(folder)
    filesystem.delete_dir(path)


def parquet_files(folder: str) -> list[str]:
    """Sorted Parquet files of a folder; empty if it does not exist."""
    filesystem, path = resolve(folder)
    listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    prefix, separator, _ = folder.rpartition("://")
    return sorted(prefix + separator + file.path for file in listed if file.extension == "parquet")


def read_table(file: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a Parquet file."""
    filesystem, path = resolve(file)
    return pq.read_table(path, columns=list(columns), filesystem=filesystem)


def upload_folder(source: Path, uri: str, *, last: str) -> None:
    """Uploads a folder, replacing the target.

    On a local disk this is atomic. Object stores cannot replace folders atomically: there the file
    `last`, without which the folder is not usable, is written after all others.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with new_folder(path) as part:
            shutil.copytree(source, part, dirs_exist_ok=True)
        return
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        filesystem.delete_dir(path)
    files = sorted(file for file in source.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == source / last):
        target = f"{path}/{file.relative_to(source).as_posix()}"
        filesystem.create_dir(str(PurePosixPath(target).parent), recursive=True)
        fs.copy_files(str(file), target, destination_filesystem=filesystem)


@contextmanager
def local_copy(uri: str, sidecars: tuple[str, ...] = ()) -> Generator[Path, None, None]:
    """Context manager with a local path of a file; a remote one is copied.

    Args:
        uri: the file.
        sidecars: suffixes of files with the same stem that are copied as well, if they exist.
    """
    if "://" not in uri:
        yield Path(uri)
        return
    filesystem, info = locate(uri)
    path = info.path
    with TemporaryDirectory() as folder:
        wanted = [PurePosixPath(path)]
        wanted += [PurePosixPath(path).with_suffix(suffix) for suffix in sidecars]
        for source in wanted:
            if filesystem.get_file_info(str(source)).type == fs.FileType.File:
                target = Path(folder) / source.name
                fs.copy_files(str(source), str(target), source_filesystem=filesystem)
        yield Path(folder) / PurePosixPath(path).name


def _matches(name: str, pattern: str) -> bool:
    """Glob match part by part, so that `*` stays within a folder."""
    names, patterns = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    return len(names) == len(patterns) and all(map(fnmatch, names, patterns))
