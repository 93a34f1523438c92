"""Reader and validation of a catalogue of videos to render.

A catalogue is a table (`dreampose.io.tables`). Columns `item`, `photos` (several joined by ';', or
a list) and `motion` (a pose track `.npz`, or a video) must be there; `subject`, `seed`, `preset`
and `truth` (the true video, where one exists, shown beside the result) may be. Paths are relative
to the catalogue's folder, or else to the current one.

An error in the table rejects all of it; an error in one item fails that item alone.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dreampose.config import PRESETS, Recipe
from dreampose.errors import InputError
from dreampose.io import tables, video
from dreampose.poses.motion import Motion
from jobs.common.failures import reason_of
from serve.config import Settings
from serve.service.store import checked_name, digest

REQUIRED = ("item", "photos", "motion")
OPTIONAL = ("subject", "seed", "preset", "truth")
REASON = "reason"
"""Column of `failed.csv`; ignored on reading, so that the file can be fed back."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line of a catalogue.

    Attributes:
        name: unique name of the item and its files.
        photos: photos of one person.
        motion: a pose track or a video.
        subject: name of finetuned weights; empty for the base model.
        seed: seed of the initial noise.
        preset: sampling preset.
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

    def cells(self) -> dict[str, str]:
        """Cells of the item for a catalogue in any folder."""
        return {
            "item": self.name,
            "photos": ";".join(str(path.absolute()) for path in self.photos),
            "motion": str(self.motion.absolute()),
            "subject": self.subject,
            "seed": str(self.seed),
            "preset": self.preset,
            "truth": str(self.truth.absolute()) if self.truth else "",
        }


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A line that cannot be rendered.

    Attributes:
        name: name of the item.
        cells: cells of the line by column; paths are absolute.
        reason: one sentence.
    """

    name: str
    cells: Mapping[str, str]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """A catalogue: valid items and broken lines, each in the order of the file."""

    items: list[Item]
    broken: list[Broken]


class Contents:
    """Cache of file checks by content: equal files are read once."""

    def __init__(self) -> None:
        self.digest = cache(digest)
        self._photos: set[str] = set()
        self._lengths: dict[str, int] = {}

    def preload(self, photos: Iterable[Path]) -> None:
        """Decodes photos in parallel; errors are raised when a photo is checked."""

        def load(photo: Path) -> None:
            with contextlib.suppress(InputError, OSError):
                self.check_photo(photo)

        with ThreadPoolExecutor() as pool:
            list(pool.map(load, dict.fromkeys(photos)))

    def check_photo(self, photo: Path) -> None:
        """Checks that a file is a photo.

        Raises:
            InputError: the file is missing or cannot be decoded.
        """
        key = self.digest(photo) if tables.is_there(photo) and photo.is_file() else ""
        if key not in self._photos:
            video.read_photo(photo)
            self._photos.add(key)

    def check_truth(self, truth: Path) -> None:
        """Checks that a file is a video, since the page shows all of it.

        Raises:
            InputError: the file cannot be decoded.
        """
        key = self.digest(truth)
        if key not in self._lengths:
            self._lengths[key] = video.count(truth)

    def num_frames(self, motion: Path) -> int:
        """Frames of a pose track or a video.

        Raises:
            InputError: the file is missing or is neither.
        """
        if not motion.is_file():
            raise InputError(f"motion must be an existing file, got {str(motion)!r}")
        key = self.digest(motion) + motion.suffix
        if key not in self._lengths:
            is_track = motion.suffix == ".npz"
            length = Motion.load(motion).num_frames if is_track else video.count(motion)
            self._lengths[key] = length
        return self._lengths[key]


def read_catalog(
    path: Path, *, settings: Settings, preset: str, contents: Contents | None = None
) -> Catalog:
    """Reads a catalogue and checks every file that it names.

    Args:
        path: the CSV or Parquet file.
        settings: model and subjects.
        preset: default preset of items.
        contents: cache of file checks.

    Raises:
        InputError: the table has a wrong column, a wrong or repeated name, or no items.
    """
    recipe = settings.recipe()
    table = tables.read(
        path, required=REQUIRED, optional=(*OPTIONAL, REASON), unique="item", name="catalog"
    )
    check_columns(table.columns)
    if not table.rows:
        raise InputError(f"catalog must hold at least one item, got none in {str(path)!r}")
    rows = [(row, resolve_paths(row.cells, path.parent)) for row in table.rows]
    contents = contents or Contents()
    contents.preload(
        Path(photo) for _, cells in rows for photo in cells["photos"].split(";") if photo
    )
    items: list[Item] = []
    broken: list[Broken] = []
    names: set[str] = set()
    for row, cells in rows:
        name = cells["item"]
        if not name or name.casefold() in names:
            name = f"{name} (line {row.line})".lstrip()
        names.add(name.casefold())
        try:
            if row.error:
                raise InputError(row.error)
            items.append(read_item(cells, settings, recipe, preset, contents))
        except Exception as error:  # noqa: BLE001 - one odd item must not end the job
            broken.append(Broken(name=name, cells=cells, reason=reason_of(error)))
    return Catalog(items=items, broken=broken)


def resolve_paths(cells: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Cells of a line by column, with absolute paths and without an earlier reason."""
    resolved = {column: cell for column, cell in cells.items() if column != REASON}

    def find(cell: str) -> str:
        # A missing file is looked for beside the catalogue when failed.csv is given back.
        found = tables.find_file(folder, cell) or tables.find_file(".", cell)
        return str((found or folder / cell).absolute())

    photos = [cell.strip() for cell in cells["photos"].split(";") if cell.strip()]
    resolved["photos"] = ";".join(map(find, photos))
    for column in ("motion", "truth"):
        if cells.get(column):
            resolved[column] = find(cells[column])
    return resolved


def check_columns(columns: Sequence[str]) -> None:
    """Rejects a catalogue that lacks a column or has an unknown one."""
    unknown = [column for column in columns if column not in (*REQUIRED, *OPTIONAL, REASON)]
    if unknown:
        raise InputError(
            f"catalog may have the columns {', '.join((*REQUIRED, *OPTIONAL))}, "
            f"got {', '.join(map(repr, unknown))}"
        )


def read_item(
    cells: Mapping[str, str], settings: Settings, recipe: Recipe, preset: str, contents: Contents
) -> Item:
    """One line as an item.

    Raises:
        InputError: a cell is not valid.
    """
    checked_name("item", cells["item"])
    photos = tuple(Path(cell) for cell in cells["photos"].split(";") if cell)
    if not photos:
        raise InputError("photos must name at least one file, got none")
    for photo in photos:
        contents.check_photo(photo)
    subject = cells.get("subject", "")
    if subject:
        settings.subject_folder(subject)
    # Tables of numbers with blanks become 7.0 on their way through pandas.
    seed = (cells.get("seed") or "0").removesuffix(".0")
    if not seed.isdecimal() or len(seed) > 19 or int(seed) >= 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    preset = cells.get("preset") or preset
    if preset not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    motion = Path(cells["motion"])
    num_frames = contents.num_frames(motion)
    if num_frames < recipe.num_poses:
        raise InputError(
            f"motion must hold at least {recipe.num_poses} frames, the model's pose window, "
            f"got {num_frames} in {str(motion)!r}"
        )
    truth = Path(cells["truth"]) if cells.get("truth") else None
    if truth and not truth.is_file():
        raise InputError(f"truth must be an existing file, got {str(truth)!r}")
    if truth:
        contents.check_truth(truth)
    return Item(
        name=cells["item"],
        photos=photos,
        motion=motion,
        subject=subject,
        seed=int(seed),
        preset=preset,
        truth=truth,
        num_frames=num_frames,
    )
