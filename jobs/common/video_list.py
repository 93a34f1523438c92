"""Videos that a job works on, from folders, patterns and manifests."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from dreampose.errors import InputError
from dreampose.io import tables
from jobs.common import storage

SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".3gp", ".mts", ".m2ts", ".ts"),
    *(".mpg", ".mpeg", ".wmv", ".flv", ".ogv"),
)
TABLES = (".csv", ".tsv", ".xlsx", ".parquet")
"""Suffixes of manifests."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video to work on.

    clip_id: its unique name, the same from run to run. path: of a set of photos, all of them with
    ';' between. row_file: Parquet file of its row in earlier data; empty without. error: why its
    line of the manifest cannot be used; empty where nothing is wrong.
    """

    clip_id: str
    path: str
    subject: str
    row_file: str = ""
    error: str = ""


def find(source: str) -> list[Video]:
    """Videos of a folder (searched whole), a pattern, one file, or a manifest.

    A manifest is a table (`dreampose.io.tables`) with a column `path` (relative ones start at the
    manifest) and may have `subject`; without one, each video is a subject of its own, named after
    the file. Several photos of one subject, with ';' between, may stand in place of a video. What
    is wrong with a line is in `Video.error` and does not affect other lines.

    Raises:
        InputError: the path is missing or contains no video, or the manifest is not a table.
    """
    if source.lower().endswith(TABLES) and not storage.is_folder(source):
        return _read_manifest(source)
    found = storage.find(source)
    if found == [source]:
        root = PurePosixPath(source).parent
    elif storage.is_folder(source):
        found = [path for path in found if _is_video(path)]
        root = PurePosixPath(source)
    else:
        root = _common_folder(found)
    if not found:
        raise InputError(
            f"videos must be a folder, pattern or manifest with videos, got {source!r}"
        )
    return [
        Video(
            clip_id=str(PurePosixPath(path).relative_to(root)),
            path=storage.absolute(path),
            subject=_stem(path),
        )
        for path in found
    ]


def _read_manifest(source: str) -> list[Video]:
    if not storage.is_file(source):
        raise InputError(f"videos: no such manifest {source!r}")
    table = tables.parse(
        storage.read_bytes(source),
        source,
        required=("path",),
        optional=("subject",),
        unique="path",
        case_sensitive=True,
        name="manifest",
    )
    if not table.rows:
        raise InputError(f"manifest: {source!r} names no video")
    return [_video_of(row, source) for row in table.rows]


def _video_of(row: tables.Row, source: str) -> Video:
    name = row.cells["path"]
    parts = [part.strip() for part in name.split(";") if part.strip()]
    error = row.error or ("" if parts else f"line {row.line}: no path")
    subject = row.cells.get("subject", "") or (_stem(parts[0]) if parts else "")
    if error:
        # Several lines may be wrong in the same way.
        return Video(clip_id=f"{name} (line {row.line})", path=name, subject=subject, error=error)
    scheme, separator, rest = source.rpartition("://")
    folder = PurePosixPath(rest).parent
    paths = [part if "://" in part else _beside(scheme + separator, folder, part) for part in parts]
    return Video(clip_id=name, path=";".join(map(storage.absolute, paths)), subject=subject)


def _beside(prefix: str, folder: PurePosixPath, cell: str) -> str:
    """File of a cell, relative to the manifest."""
    if not prefix and (found := tables.match(str(folder), cell)):
        return str(found[0])
    return prefix + str(folder / cell)


def is_photo_set(path: str) -> bool:
    """Whether the path lists photos of one subject instead of a video."""
    return ";" in path


def _is_video(path: str) -> bool:
    """Whether a file of a folder is a video by its name; those of macOS's `._NAME` are not."""
    return path.lower().endswith(SUFFIXES) and not PurePosixPath(path).name.startswith(".")


def _common_folder(paths: list[str]) -> PurePosixPath:
    folders = [PurePosixPath(path).parent for path in paths]
    common = folders[0] if folders else PurePosixPath()
    while not all(folder.is_relative_to(common) for folder in folders):
        common = common.parent
    return common


def _stem(path: str) -> str:
    return PurePosixPath(path).stem
