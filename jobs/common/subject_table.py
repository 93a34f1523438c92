"""CSV table of the subjects to finetune on."""

import csv
import glob
import re
from dataclasses import dataclass
from pathlib import Path

from dreampose.errors import InputError
from dreampose.io import video


@dataclass(frozen=True, kw_only=True)
class SubjectPhotos:
    """A subject and its photos, as absolute paths."""

    subject: str
    photos: tuple[str, ...]


def read(path: str | Path) -> list[SubjectPhotos]:
    """Reads a CSV with the columns `subject` and `photos` (paths or patterns, `;` between them).

    Relative paths start at the file. Every photo is decoded once, so that a broken one is known
    before anything starts.

    Raises:
        InputError: file, column or photo is missing; a photo cannot be decoded; a subject is named
            twice or cannot be a folder's name.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"subjects must be an existing CSV file, got {str(path)!r}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if missing := [name for name in ("subject", "photos") if name not in columns]:
            raise InputError(
                f"subjects must have the columns subject and photos, got no "
                f"{' and no '.join(missing)} in {str(path)!r}"
            )
        rows = [(row["subject"] or "", row["photos"] or "") for row in reader]
    if not rows:
        raise InputError(f"subjects must name at least one subject, got none in {str(path)!r}")
    subjects: dict[str, SubjectPhotos] = {}
    for line, (subject, photos) in enumerate(rows, start=2):
        subject = subject.strip()
        if not re.fullmatch(r"[\w-][\w .-]*", subject):
            raise InputError(f"subject must be usable as a name, got {subject!r} in line {line}")
        if subject in subjects:
            raise InputError(f"subject must be named once, got {subject!r} in line {line} again")
        found = [
            photo for part in photos.split(";") if part.strip()
            for photo in _expand(path.parent, part.strip(), line)
        ]  # fmt: skip
        if not found:
            raise InputError(f"photos must be at least one, got none in line {line}")
        for photo in found:
            video.read_photo(photo)
        subjects[subject] = SubjectPhotos(subject=subject, photos=tuple(found))
    return list(subjects.values())


def _expand(folder: Path, part: str, line: int) -> list[str]:
    found = sorted(glob.glob(str(folder / part)))  # noqa: PTH207 - keeps absolute patterns
    if not found:
        raise InputError(f"photos must be existing files, got {part!r} in line {line}")
    return [str(Path(name).resolve()) for name in found]
