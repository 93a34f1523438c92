"""Reads a catalogue of videos to render and checks all of it at once. Knows nothing of Ray.

A catalogue is a CSV file. Columns `item`, `photos` (several joined by ';') and `motion` (a pose
track `.npz`, or a video) must be there; `subject`, `seed`, `preset` and `truth` (the true video,
where one exists, shown beside the result) may be. Paths are relative to the catalogue's folder, or
else to the current one.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreampose import video
from dreampose.config import PRESETS, Recipe
from dreampose.errors import InputError
from dreampose.poses.motion import Motion
from serve.config import Settings
from serve.store import checked_name

REQUIRED = ("item", "photos", "motion")
OPTIONAL = ("subject", "seed", "preset", "truth")
REASON = "reason"
"""Column of `failed.csv`; ignored on reading, so that the file can be fed back."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line of a catalogue.

    Attributes:
        name: names the item's files; unique.
        photos: photos of one person.
        motion: a pose track or a video.
        subject: name of finetuned weights; empty for the base model.
        seed: of the start noise.
        preset: how to sample.
        truth: the true video, if there is one.
        num_frames: frames of the motion.
    """

    name: str
    photos: tuple[Path, ...]
    motion: Path
    subject: str
    seed: int
    preset: str
    truth: Path | None
    num_frames: int

    def row(self, reason: str) -> dict[str, str]:
        """The item as a line of `failed.csv`, which another folder's catalogue may be made of."""
        return {
            "item": self.name,
            "photos": ";".join(str(path.absolute()) for path in self.photos),
            "motion": str(self.motion.absolute()),
            "subject": self.subject,
            "seed": str(self.seed),
            "preset": self.preset,
            "truth": str(self.truth.absolute()) if self.truth else "",
            REASON: reason,
        }


def read_catalog(path: Path, *, settings: Settings, preset: str) -> list[Item]:
    """Every item of a catalogue, after looking at every file that it names.

    Args:
        path: the CSV file.
        settings: which model and which subjects there are.
        preset: for items that name none.

    Raises:
        InputError: the first thing that is wrong, with its line.
    """
    if not path.is_file():
        raise InputError(f"catalog must be an existing file, got {str(path)!r}")
    recipe = settings.recipe()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"catalog must be a CSV file in UTF-8, got {str(path)!r}: {error}"
        ) from error
    check_columns(columns)
    if not rows:
        raise InputError(f"catalog must hold at least one item, got none in {str(path)!r}")
    lengths: dict[Path, int] = {}
    items: dict[str, Item] = {}
    for line, row in rows:
        try:
            item = read_item(row, path.parent, settings, recipe, preset, lengths)
        except InputError as error:
            raise InputError(f"line {line}: {error}") from error
        # Some filesystems do not tell upper from lower case, and the names become files.
        if item.name.lower() in items:
            raise InputError(f"line {line}: item must be unique, got {item.name!r} again")
        items[item.name.lower()] = item
    return list(items.values())


def check_columns(columns: Sequence[str]) -> None:
    """Refuses a catalogue that lacks a column, or has one that would be ignored in silence."""
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise InputError(
            f"catalog must have the columns {', '.join(REQUIRED)}, got no {', '.join(missing)}"
        )
    unknown = [column for column in columns if column not in (*REQUIRED, *OPTIONAL, REASON)]
    if unknown:
        raise InputError(
            f"catalog may have the columns {', '.join((*REQUIRED, *OPTIONAL))}, "
            f"got {', '.join(map(repr, unknown))}"
        )
    if len(set(columns)) < len(columns):
        raise InputError(f"catalog must have each column once, got {', '.join(columns)}")


def read_item(
    row: Mapping[str | None, str | list[str] | None],
    folder: Path,
    settings: Settings,
    recipe: Recipe,
    preset: str,
    lengths: dict[Path, int],
) -> Item:
    """One line; `lengths` remembers the frames of motions that were looked at before."""
    if None in row or None in row.values():
        raise InputError("a line must have as many cells as there are columns")
    cells = {str(key): str(value).strip() for key, value in row.items()}

    def find(cell: str) -> Path:
        beside = folder / cell
        return beside if beside.exists() else Path(cell)

    name = checked_name("item", cells["item"])
    photos = tuple(find(cell.strip()) for cell in cells["photos"].split(";") if cell.strip())
    if not photos:
        raise InputError("photos must name at least one file, got none")
    for photo in photos:
        video.read_photo(photo)
    subject = cells.get("subject", "")
    if subject:
        settings.subject_folder(subject)
    seed = cells.get("seed") or "0"
    if not seed.isdecimal() or int(seed) >= 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    preset = cells.get("preset") or preset
    if preset not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    motion = find(cells["motion"])
    if motion not in lengths:
        lengths[motion] = count_frames(motion)
    if lengths[motion] < recipe.num_poses:
        raise InputError(
            f"motion must hold at least {recipe.num_poses} frames, the model's pose window, "
            f"got {lengths[motion]} in {str(motion)!r}"
        )
    truth = find(cells["truth"]) if cells.get("truth") else None
    if truth and not truth.is_file():
        raise InputError(f"truth must be an existing file, got {str(truth)!r}")
    return Item(
        name=name,
        photos=photos,
        motion=motion,
        subject=subject,
        seed=int(seed),
        preset=preset,
        truth=truth,
        num_frames=lengths[motion],
    )


def count_frames(motion: Path) -> int:
    """Frames of a pose track or a video.

    Raises:
        InputError: the file is missing or is neither.
    """
    if motion.suffix == ".npz":
        return Motion.load(motion).num_frames
    if not motion.is_file():
        raise InputError(f"motion must be an existing file, got {str(motion)!r}")
    return len(video.read(motion).frames)
