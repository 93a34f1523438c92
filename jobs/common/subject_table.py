"""Table of the subjects to finetune on."""

import re
from dataclasses import dataclass
from pathlib import Path

from dreampose.errors import InputError
from dreampose.io import tables, video


@dataclass(frozen=True, kw_only=True)
class SubjectPhotos:
    """A subject and its photos, as absolute paths.

    error: why the line of the table is invalid; empty for a valid line.
    """

    subject: str
    photos: tuple[str, ...]
    error: str = ""


def read(path: str | Path) -> list[SubjectPhotos]:
    """Reads a table with the columns `subject` and `photos` (paths or patterns, `;` between them).

    See `dreampose.io.tables` for its forms. Relative paths start at the file. Every photo is
    decoded once, so that a broken one is found before anything starts. The error of a line
    is in `SubjectPhotos.error` and does not affect other lines.

    Raises:
        InputError: the file is not a table, a column is missing, or no line is valid.
    """
    path = Path(path)
    table = tables.read(path, required=("subject", "photos"), unique="subject", name="subjects")
    if not table.rows:
        raise InputError(f"subjects: {str(path)!r} names no subject")
    subjects = [_subject(row, path.parent) for row in table.rows]
    if all(subject.error for subject in subjects):
        more = f" (and {len(subjects) - 1} lines more)" if len(subjects) > 1 else ""
        raise InputError(f"subjects: {subjects[0].error}{more}")
    return subjects


def _subject(row: tables.Row, folder: Path) -> SubjectPhotos:
    subject = row.cells["subject"]
    photos: tuple[str, ...] = ()
    error = row.error
    try:
        if not error:
            photos = _photos(row, folder)
    except InputError as failure:
        error = f"line {row.line}: {failure}"
    if error:
        # Several lines may have one name.
        subject = f"{subject} (line {row.line})"
    return SubjectPhotos(subject=subject, photos=photos, error=error)


def _photos(row: tables.Row, folder: Path) -> tuple[str, ...]:
    """Decodable photos of a line.

    Raises:
        InputError: the subject's name is not a valid folder name, or a photo is missing or broken.
    """
    subject = row.cells["subject"]
    if not re.fullmatch(r"[\w-][\w .-]*", subject):
        raise InputError(
            f"subject {subject!r} cannot be a folder's name; use letters, digits, blanks, - . _"
        )
    found: list[str] = []
    # A file may have ';' in its name.
    whole = tables.match(folder, row.cells["photos"])
    cells = [row.cells["photos"]] if whole else row.cells["photos"].split(";")
    for cell in filter(None, map(str.strip, cells)):
        matching = tables.match(folder, cell)
        if not matching:
            raise InputError(f"photos: no such file {cell!r}")
        found += [str(path.resolve()) for path in matching]
    for photo in found:
        video.read_photo(photo)
    if not found:
        raise InputError("photos: none is named")
    return tuple(found)
