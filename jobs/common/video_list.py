"""Videos that a job works on, from folders, patterns and manifests."""

import csv
import io
from dataclasses import dataclass
from pathlib import PurePosixPath

from dreampose.errors import InputError
from jobs.common import storage

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video to work on.

    clip_id: its unique name, the same from run to run. path: of a set of photos, all of them with
    ';' between. row_file: Parquet file of its row in
    earlier data; empty without.
    """

    clip_id: str
    path: str
    subject: str
    row_file: str = ""


def find(source: str) -> list[Video]:
    """Videos of a folder (searched whole), a pattern, one file, or a `manifest.csv`.

    A manifest has a column `path` (relative ones start at the manifest) and may have `subject`;
    without one, each video is a subject of its own, named after the file. A cell may also list
    several photos of one subject, separated by ';', instead of a video.

    Raises:
        InputError: nothing is there, no video is among it, or the manifest is not usable.
    """
    if source.lower().endswith(".csv"):
        return _read_manifest(source)
    if storage.is_file(source):
        found = [source]
        root = PurePosixPath(source).parent
    else:
        is_pattern = bool(set(source) & set("*?["))
        found = [
            path for path in storage.find(source) if is_pattern or path.lower().endswith(SUFFIXES)
        ]
        root = _common_folder(found) if is_pattern else PurePosixPath(source)
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
        raise InputError(
            f"videos must be a folder, pattern or manifest with videos, got {source!r}"
        )
    reader = csv.DictReader(io.StringIO(storage.read_text(source)))
    if "path" not in (reader.fieldnames or ()):
        raise InputError(
            f"manifest must have a column 'path', got {reader.fieldnames or 'none'} in {source!r}"
        )
    videos: dict[str, Video] = {}
    scheme, separator, rest = source.rpartition("://")
    for line, row in enumerate(reader, start=2):
        name = (row["path"] or "").strip()
        if not name:
            raise InputError(f"manifest must give a path in every line, got none in line {line}")
        if name in videos:
            raise InputError(
                f"manifest must name each video once, got {name!r} in line {line} again"
            )
        parts = [part.strip() for part in name.split(";") if part.strip()]
        folder = PurePosixPath(rest).parent
        paths = [
            part if "://" in part else scheme + separator + str(folder / part) for part in parts
        ]
        subject = (row.get("subject") or "").strip() or _stem(parts[0])
        path = ";".join(storage.absolute(path) for path in paths)
        videos[name] = Video(clip_id=name, path=path, subject=subject)
    if not videos:
        raise InputError(f"manifest must name at least one video, got none in {source!r}")
    return list(videos.values())


def is_photo_set(path: str) -> bool:
    """Whether the path lists photos of one subject instead of a video."""
    return ";" in path


def _common_folder(paths: list[str]) -> PurePosixPath:
    folders = [PurePosixPath(path).parent for path in paths]
    common = folders[0] if folders else PurePosixPath()
    while not all(folder.is_relative_to(common) for folder in folders):
        common = common.parent
    return common


def _stem(path: str) -> str:
    return PurePosixPath(path).stem
