"""Tables in CSV, Excel or Parquet."""

import csv
import glob
import io
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dreampose.errors import InputError
from dreampose.io import formats

DELIMITERS = (",", ";", "\t", "|")
MAX_BYTES = 256 * 2**20
"""Of a table; more is taken for another kind of file."""

_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        line: in the file, the first is 1; of Parquet the number of the row.
        cells: text by column, stripped and in Unicode's NFC form; empty where there is none.
        error: why the row cannot be used; empty where nothing is wrong with its form.
    """

    line: int
    cells: Mapping[str, str]
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as text.

    Attributes:
        columns: names, known ones as they are asked for, the others as they are written.
        rows: those that are not empty, in order.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read(
    path: str | Path,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    unique: str = "",
    case_sensitive: bool = False,
    name: str = "table",
) -> Table:
    """Reads a table from a file; see `parse`.

    Raises:
        InputError: the file is missing, or as `parse`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{name}: no such file {str(path)!r}")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{name}: {str(path)!r} is too large for a table")
    return parse(
        path.read_bytes(),
        str(path),
        required=required,
        optional=optional,
        unique=unique,
        case_sensitive=case_sensitive,
        name=name,
    )


def parse(
    content: bytes,
    source: str,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    unique: str = "",
    case_sensitive: bool = False,
    name: str = "table",
) -> Table:
    """Reads a table: CSV in UTF-8, or in UTF-16 with its mark; Excel (.xlsx); Parquet.

    Commas, semicolons, tabs and bars separate cells, whichever the header uses (or a first line
    `sep=;` names). Upper case, blanks around and byte order marks do not matter in the header.
    Empty rows, and columns without a name and without content, are passed over.

    What is wrong with a row is in its `error`: it has more cells than the header or lacks a
    required one, or repeats the cell of column `unique` of an earlier row.

    Args:
        content: of the file.
        source: its name, for messages.
        required: columns that must be there, and whose cells must not be empty.
        optional: columns that may be there; others are kept under their own names.
        unique: column whose cells must differ.
        case_sensitive: whether cells that differ in upper and lower case alone differ there.
        name: what the table is, for messages.

    Raises:
        InputError: the file is no table, a required column is missing, or a column is there twice.
    """
    if found := formats.describe(content[: formats.HEAD_BYTES]):
        raise InputError(f"{name}: {source!r} is {found}")
    kind = formats.sniff(content[: formats.HEAD_BYTES])
    if kind == "parquet":
        header, lines = _parquet(content, source, name)
    elif kind == "npz":
        header, lines = _excel(content, source, name)
    elif kind == "xls":
        raise InputError(
            f"{name}: {source!r} is in Excel's old format; save it as .xlsx or as CSV UTF-8"
        )
    elif kind or (b"\0" in content[:4096] and not content.startswith(tuple(_BYTE_ORDER_MARKS))):
        raise InputError(f"{name}: {source!r} is no table ({kind or 'binary'}); save it as CSV "
                         "UTF-8")  # fmt: skip
    else:
        header, lines = _csv(content, source, name, known=(*required, *optional))
    columns = _columns(header, lines, source, name, required, optional)
    rows = [_row(columns, line, cells, required) for line, cells in lines if any(cells)]
    named = tuple(column for column in columns if column)
    return Table(columns=named, rows=tuple(_mark_repeated(rows, unique, case_sensitive)))


def match(folder: str | Path, cell: str) -> list[Path]:
    r"""Files that a cell names: a path, or a pattern with `*`, `?` or `[..]`, sorted.

    An existing file is itself, whatever signs are in its name. Names with accents are found in
    either of Unicode's forms (NFC, NFD), and `\` of Windows is taken for `/` where there is no
    file of that very name. Relative paths start at `folder`.
    """
    if found := find_file(folder, cell):
        return [found]
    found = {
        Path(path)
        for text in _forms(cell)
        if set(text) & set("*?[")
        for path in glob.glob(str(_escaped(folder, text)))  # noqa: PTH207 - keeps absolute patterns
    }
    return sorted(found)


def find_file(folder: str | Path, cell: str) -> Path | None:
    """The existing file or folder that a cell names, in any of the forms that `match` accepts."""
    return next((path for text in _forms(cell) if is_there(path := Path(folder) / text)), None)


def _forms(cell: str) -> list[str]:
    """A name as it is written, in NFC and NFD, and with `/` for a backslash."""
    texts = (cell, cell.replace("\\", "/"))
    forms = [unicodedata.normalize(form, text) for text in texts for form in ("NFC", "NFD")]
    return list(dict.fromkeys([cell, *forms]))


def is_there(path: Path) -> bool:
    """Whether there is such a file; of a path that no filesystem can hold there is none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _escaped(folder: str | Path, pattern: str) -> Path:
    """The pattern below the folder, whose own name is no pattern."""
    return Path(glob.escape(str(folder))) / pattern


def _csv(
    content: bytes, source: str, name: str, known: Sequence[str]
) -> tuple[Sequence[str], list[tuple[int, Sequence[str]]]]:
    text = decode(content, source, name)
    first, _, rest = text.partition("\n")
    offset, delimiter = 0, ""
    if first.strip().lower().startswith("sep=") and len(first.strip()) <= len("sep=") + 1:
        delimiter, text, offset = first.strip("\r\n ")[len("sep=") :] or "\t", rest, 1
    start = next((line for line in text.splitlines() if line.strip(" \t,;|")), "")
    if not delimiter:
        delimiter = max(DELIMITERS, key=lambda sign: _fitness(start, sign, known))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, Sequence[str]]] = []
    header: Sequence[str] | None = None
    before = 0
    try:
        for cells in reader:
            line, before = before + 1 + offset, reader.line_num
            cells = [_clean(cell) for cell in cells]
            if header is None and any(cells):
                header = cells
            elif header is not None:
                lines.append((line, cells))
    except csv.Error as error:
        raise InputError(
            f"{name}: line {reader.line_num + offset} of {source!r} is no CSV ({error})"
        ) from error
    return header or [], lines


def _fitness(header: str, sign: str, known: Sequence[str]) -> tuple[int, int]:
    """How many known columns a delimiter finds in a header, and how often it is there."""
    cells = {_clean(cell).strip('"').casefold() for cell in header.split(sign)}
    return len(cells & {column.casefold() for column in known}), header.count(sign)


def decode(content: bytes, source: str, name: str) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Args:
        content: of a file.
        source: its name, for the message.
        name: what the file is, likewise.

    Raises:
        InputError: it is in another encoding.
    """
    encoding = next(
        (form for mark, form in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8"
    )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name}: {source!r} is not in UTF-8 (byte 0x{content[error.start]:02X} in line "
            f"{line}); save it as CSV UTF-8"
        ) from error


def _excel(
    content: bytes, source: str, name: str
) -> tuple[Sequence[str], list[tuple[int, Sequence[str]]]]:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise InputError(
            f"{name}: {source!r} may be an Excel file, which needs the package openpyxl; save it "
            "as CSV UTF-8, or install it: pip install 'dreampose[excel]'"
        ) from error
    try:
        book = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheet: Any = book.worksheets[0]
        # What a file claims of its size may be all rows that Excel knows.
        sheet.reset_dimensions()
        rows = [
            (line, [_text(value) for value in row])
            for line, row in enumerate(sheet.iter_rows(values_only=True), start=1)
        ]
    except Exception as error:
        raise InputError(
            f"{name}: cannot read {source!r} as an Excel file ({type(error).__name__}); save it as "
            "CSV UTF-8"
        ) from error
    filled = [(line, cells) for line, cells in rows if any(cells)]
    return (filled[0][1], list(filled[1:])) if filled else ([], [])


def _parquet(
    content: bytes, source: str, name: str
) -> tuple[Sequence[str], list[tuple[int, Sequence[str]]]]:
    try:
        table = pq.read_table(pa.BufferReader(content))
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name}: cannot read {source!r} as Parquet ({error})") from error
    names: list[str] = table.column_names
    lines = [
        (line, [_text(row[column]) for column in names]) for line, row in enumerate(rows, start=1)
    ]
    return names, list(lines)


def _text(value: Any) -> str:
    """A cell as text: 7.0 is '7', nothing is '', lists are joined by ';'."""
    if value is None or value != value:
        return ""
    if isinstance(value, list | tuple):
        return ";".join(map(_text, value))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return str(int(value))
    return _clean(str(value))


def _clean(cell: str) -> str:
    """A cell without blanks around (no-break spaces of Excel too), in NFC."""
    return unicodedata.normalize("NFC", cell.strip().strip("\ufeff\u200b").strip())


def _columns(
    header: Sequence[str],
    lines: Sequence[tuple[int, Sequence[str]]],
    source: str,
    name: str,
    required: Sequence[str],
    optional: Sequence[str],
) -> list[str]:
    """Names of the columns by their place; '' for columns without a name and content."""
    known = {column.casefold(): column for column in (*required, *optional)}
    columns = [known.get(cell.casefold(), cell) for cell in header]
    if missing := [column for column in required if column not in columns]:
        shown = ", ".join(filter(None, columns)) or "none"
        raise InputError(
            f"{name}: {source!r} must have the columns {', '.join(required)}, got no "
            f"{' and no '.join(missing)} but {shown}"
        )
    repeated = [column for column, number in Counter(columns).items() if column and number > 1]
    if repeated:
        raise InputError(f"{name}: {source!r} must have each column once, got {repeated[0]!r} "
                         "more than once")  # fmt: skip
    for place, column in enumerate(columns):
        filled = [line for line, cells in lines if len(cells) > place and cells[place]]
        if not column and filled:
            raise InputError(
                f"{name}: {source!r} has a column without a name (the {place + 1}th), filled in "
                f"line {filled[0]}; name it or empty it"
            )
    return columns


def _row(columns: Sequence[str], line: int, cells: Sequence[str], required: Sequence[str]) -> Row:
    named = dict.fromkeys(filter(None, columns), "")
    named |= {column: cell for column, cell in zip(columns, cells, strict=False) if column}
    if any(cells[len(columns) :]):
        error = (
            f"line {line}: {len(cells)} cells where the header has {len(columns)}; put quotes "
            "around a cell with the delimiter in it"
        )
        return Row(line=line, cells=named, error=error)
    empty = [column for column in required if not named[column]]
    error = f"line {line}: no {' and no '.join(empty)}" if empty else ""
    return Row(line=line, cells=named, error=error)


def _mark_repeated(rows: Sequence[Row], unique: str, case_sensitive: bool) -> list[Row]:
    first: dict[str, int] = {}
    marked: list[Row] = []
    for row in rows:
        cell = row.cells.get(unique, "")
        before = (
            first.setdefault(cell if case_sensitive else cell.casefold(), row.line)
            if cell
            else row.line
        )
        if before != row.line and not row.error:
            error = f"line {row.line}: {unique} {cell!r} is in line {before} already"
            row = Row(line=row.line, cells=row.cells, error=error)
        marked.append(row)
    return marked
