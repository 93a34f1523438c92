"""Pairs of predicted and true clips on disk.

A clip is a video file, or a folder with PNGs and without videos, at any depth; its name is its path
without the suffix. Every node must be able to read the folders.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8
from PIL import Image

from dreampose.errors import InputError
from dreampose.io import tables, video
from jobs.common.video_list import SUFFIXES

MANIFEST = "manifest.csv"
_COLUMN = "column:"
_PNG_FPS = 30.0
"""Frame rate at which PNGs are shown; no score depends on it."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A clip of a method and the corresponding true clip.

    Attributes:
        method: name of the method.
        clip: name of the clip, equal in both folders.
        pred: file or folder of PNGs.
        truth: file or folder of PNGs.
        num_frames: number of frames of both clips.
        height: height in pixels at which they are compared.
        width: width in pixels at which they are compared.
        fitted: whether frames are resized to that size first.
    """

    method: str
    clip: str
    pred: Path
    truth: Path
    num_frames: int
    height: int
    width: int
    fitted: bool = False

    @property
    def size(self) -> tuple[int, int] | None:
        """Size argument of `read`; `None` without resizing."""
        return (self.height, self.width) if self.fitted else None


def methods(flags: Sequence[str]) -> dict[str, str]:
    """Folder of each method; a folder without a name is called by its own.

    Raises:
        InputError: a flag is not DIR or NAME=DIR, or names a method again.
    """
    found: dict[str, str] = {}
    for flag in flags:
        name, separator, folder = flag.partition("=")
        if not separator or Path(flag).is_dir():
            name, folder = Path(flag).absolute().name, flag
        if not name or not folder:
            raise InputError(f"pred must be DIR or NAME=DIR, got {flag!r}")
        if name in found:
            raise InputError(f"pred must name each method once, got {name!r} twice")
        found[name] = folder
    return found


def pair(
    preds: Mapping[str, str],
    truth: str,
    *,
    common: bool = False,
    size: tuple[int, int] | None = None,
) -> list[Pair]:
    """Every clip of every method with its true one, by method and name.

    Args:
        preds: folder of each method.
        truth: folder of the true clips.
        common: leave out clips that not all of the folders hold, instead of refusing them.
        size: height and width in pixels that all frames are brought to, whole (`video.fit`), before
            they are compared; without it both must have the same.

    Raises:
        InputError: a folder or a counterpart is missing, or frames differ in number or size.
    """
    if size is not None and min(size) < 1:
        raise InputError(f"size must be at least 1x1, got {size[0]}x{size[1]}")
    true_clips = find(truth, "truth")
    all_found = {method: find(folder, "pred") for method, folder in preds.items()}
    if common:
        shared = set(true_clips).intersection(*all_found.values())
        if not shared:
            raise InputError("pred and truth must have a clip in common, got none")
        true_clips = {clip: path for clip, path in true_clips.items() if clip in shared}
    sizes = {clip: measure(path) for clip, path in true_clips.items()}
    pairs: list[Pair] = []
    for method, found in all_found.items():
        if common:
            found = {clip: path for clip, path in found.items() if clip in true_clips}
        folder = preds[method]
        _require_all(true_clips, found, f"pred must hold every clip of truth ({method})", folder)
        _require_all(found, true_clips, f"truth must hold every clip of pred ({method})", truth)
        for clip, path in found.items():
            got, expected = measure(path), sizes[clip]
            if got[0] != expected[0] or (size is None and got != expected):
                hint = "" if got[0] != expected[0] else "; --size brings both to one size"
                raise InputError(
                    f"pred must have the truth's {_describe(expected)}, got {_describe(got)} "
                    f"in {str(path)!r}{hint}"
                )
            num_frames, height, width = got if size is None else (got[0], *size)
            pairs.append(
                Pair(
                    method=method,
                    clip=clip,
                    pred=path,
                    truth=true_clips[clip],
                    num_frames=num_frames,
                    height=height,
                    width=width,
                    fitted=size is not None,
                )
            )
    return pairs


def left_out(pairs: Sequence[Pair], preds: Mapping[str, str], truth: str) -> list[str]:
    """Names of the clips that are in a folder but in no pair."""
    paired = {pair.clip for pair in pairs}
    folders = [(truth, "truth"), *((folder, "pred") for folder in preds.values())]
    return sorted({clip for folder in folders for clip in find(*folder)} - paired)


def other_rates(pairs: Sequence[Pair]) -> list[str]:
    """Descriptions of clips whose frame rate differs from that of the true ones.

    Scores do not depend on the frame rate, so this is not an error.
    """
    truths = {path: _rate(path) for path in dict.fromkeys(pair.truth for pair in pairs)}
    found: list[str] = []
    for pair in pairs:
        pred, truth = _rate(pair.pred), truths[pair.truth]
        if pred and truth and abs(pred - truth) > 0.01 * truth:
            found.append(f"{pair.method}/{pair.clip} ({pred:g} instead of {truth:g})")
    return found


def find(folder: str, field: str) -> dict[str, Path]:
    """Clips of a folder by their names, sorted.

    Raises:
        InputError: the folder is missing or empty, or contains two clips of the same name.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{field} must be an existing folder on this disk, got {folder!r}")
    root = root.absolute()
    files: list[Path] = []
    for inside, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(inside, name) for name in names if not name.startswith(".")]
    videos = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
    with_video = {file.parent for file in videos}
    with_pictures = {file.parent for file in files if file.suffix.lower() == ".png"} - with_video
    clips: dict[str, Path] = {}
    for path in sorted([*videos, *with_pictures]):
        inside = path.relative_to(root)
        name = (inside.with_suffix("") if path in videos else inside).as_posix()
        if name in clips:
            raise InputError(f"{field} must hold each clip once, got {name!r} twice in {folder!r}")
        clips[name] = path
    if not clips:
        raise InputError(f"{field} must hold videos or folders of PNGs, got neither in {folder!r}")
    return clips


def measure(path: Path) -> tuple[int, int, int]:
    """Number, height and width of the frames of a clip, from the header of a video.

    Raises:
        InputError: the clip cannot be read, or its pictures differ in size.
    """
    if path.is_dir():
        sizes = {file: _picture_size(file) for file in _pictures(path)}
        first = next(iter(sizes.values()))
        for file, size in sizes.items():
            if size != first:
                raise InputError(
                    f"pictures of a clip must have one size, got {size[0]}x{size[1]} after "
                    f"{first[0]}x{first[1]} in {str(file)!r}"
                )
        return (len(sizes), *first)
    # A file that is cut off is rejected when it is scored.
    try:
        reader = video.VideoReader(path)
        return reader.stated_frames, reader.height, reader.width
    except InputError:
        return _stated_size(path)


def _stated_size(path: Path) -> tuple[int, int, int]:
    """Number, height and width of the frames that the header of a damaged video states.

    Raises:
        InputError: the header states none.
    """
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            if stream.frames:
                return stream.frames, stream.height, stream.width
    except (FFmpegError, IndexError) as error:
        raise InputError(f"video: cannot decode {str(path)!r} ({error})") from error
    raise InputError(f"video: cannot decode any frame of {str(path)!r}")


def read(
    path: Path, size: tuple[int, int] | None = None
) -> tuple[UInt8[np.ndarray, "t H W 3"], float]:
    """Frames of a clip and frames per second.

    Args:
        path: file or folder of PNGs.
        size: height and width to which frames are fitted; `None` keeps them.

    Raises:
        InputError: the clip cannot be decoded.
    """
    if path.is_dir():
        frames, fps = np.stack([video.read_photo(file) for file in _pictures(path)]), _PNG_FPS
    else:
        clip = video.read(path, strict=True)
        frames, fps = clip.frames, clip.fps
    return (frames if size is None else video.fit(frames, *size)), fps


def fingerprint(path: Path) -> str:
    """SHA-256 of the file of a clip, or of its pictures in order."""
    digest = hashlib.sha256()
    for file in _pictures(path) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def identities(clips: Sequence[str], truth: str, rule: str | None) -> dict[str, str]:
    """Person in each clip.

    Args:
        clips: names of clips.
        truth: folder of the true clips, with a `manifest.csv` if the rule is a column.
        rule: `column:NAME` for a column of the manifest; or a regular expression that is searched
            in the name of the clip, whose first group (or whole match) is the person. `None` means
            the manifest's column `subject` if it exists, else one person per clip.

    Raises:
        InputError: the rule cannot be applied to every clip.
    """
    manifest = Path(truth).expanduser() / MANIFEST
    if rule is None:
        rows = _manifest(manifest) if manifest.is_file() else []
        if not rows or "subject" not in rows[0]:
            return {clip: clip for clip in clips}
        rule = f"{_COLUMN}subject"
    if rule.startswith(_COLUMN):
        column = rule.removeprefix(_COLUMN)
        if not manifest.is_file():
            raise InputError(f"truth must have a {MANIFEST} for identity {rule!r}, got none")
        rows = _manifest(manifest)
        if not rows or column not in rows[0] or "path" not in rows[0]:
            raise InputError(
                f"{MANIFEST} must have the columns 'path' and {column!r}, got "
                f"{', '.join(rows[0]) if rows else 'no row'}"
            )
        people = {Path(row["path"]).with_suffix("").as_posix(): row[column] for row in rows}
        people |= {row["path"]: row[column] for row in rows}
        for clip in clips:
            if not people.get(clip):
                raise InputError(
                    f"{MANIFEST} must name a {column} for every clip, not for {clip!r}"
                )
        return {clip: people[clip] for clip in clips}
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise InputError(
            f"identity must be a regular expression, got {rule!r} ({error})"
        ) from error
    found: dict[str, str] = {}
    for clip in clips:
        match = pattern.search(clip)
        person = match and (match.group(1) if pattern.groups else match.group(0))
        if not person:
            raise InputError(
                f"identity must be found in every clip's name, got {rule!r} for {clip!r}"
            )
        found[clip] = person
    return found


def _require_all(
    wanted: Mapping[str, Path], found: Mapping[str, Path], rule: str, folder: str
) -> None:
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{rule}, got no {missing[0]!r}{more} in {folder!r}")


def _rate(path: Path) -> float | None:
    """Frames per second in the header of a video; None for pictures."""
    if path.is_dir():
        return None
    try:
        return video.VideoReader(path).fps
    except InputError:
        return None


def _describe(size: tuple[int, int, int]) -> str:
    return f"{size[0]} frames of {size[1]}x{size[2]}"


def _pictures(folder: Path) -> list[Path]:
    """PNGs of a folder in the order of the numbers in their names: 2 comes before 10."""
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() == ".png" and not file.name.startswith(".")
    ]

    def key(file: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", file.name)
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    return sorted(files, key=key)


def _picture_size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"picture must be one that can be decoded, got {str(file)!r} ({error})"
        ) from error


def _manifest(path: Path) -> list[Mapping[str, str]]:
    table = tables.read(path, required=(), optional=("path", "subject"), name="manifest")
    return [row.cells for row in table.rows]
