#!/usr/bin/env python
"""Download of the videos and photos of published lists."""

import argparse
import csv
import io
import re
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dreampose.errors import InputError
from dreampose.io import tables
from dreampose.io.files import new_file
from dreampose.options import arguments
from dreampose.options.parser import CommandParser
from dreampose.options.progress import ProgressBar
from jobs.common import deepfashion, driver, planning
from jobs.common.downloads import Fetcher, FetchError, client, sha256

UBC_FASHION = {
    split: f"https://vision.cs.ubc.ca/datasets/fashion/resources/fashion_dataset/fashion_{split}.txt"
    for split in ("train", "test")
}
"""Where the University of British Columbia publishes the lists of its Fashion data set."""
PAPER = {"train": 339, "test": 100}
"""Numbers of UBC Fashion videos in the paper's training and test, which it does not name."""
MOST_AT_ONCE = 8
FILES = "files"
TABLES = (".csv", ".tsv", ".xlsx", ".parquet")
COLUMNS = ("url", "path", "name", "split", "subject", "sha256")
"""Columns of lists that are tables."""
EXAMPLES = """\
  # UBC Fashion from its own lists: OUT/train.csv and OUT/test.csv are for jobs/preprocess.py
  jobs/download.py --ubc-fashion --out data/ubc

  # Any lists: a URL or path a line, or a CSV (columns url or path; name, split, subject, sha256)
  jobs/download.py --list train=fashion_train.txt --list test=fashion_test.txt --out data/ubc
  jobs/download.py --list mine.csv --out data/mine

  # Photos of outfits as further training data, from a folder that you have
  jobs/download.py --deepfashion DeepFashion/In-shop --out data/deepfashion
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of a list: URL or path, name, and metadata."""

    source: str
    name: str
    split: str
    subject: str
    sha256: str = ""
    error: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether the entry must be downloaded; other files are used in place."""
        return "://" in self.source and not self.error


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(download, _parser(), argv, plan=estimate)


def download(args: argparse.Namespace) -> int:
    """Downloads missing files and writes the manifests; returns the exit code."""
    lists = lists_of(args)
    if args.deepfashion is not None:
        return _list_photos(args.deepfashion, Path(args.out))
    out = Path(args.out)
    with client() as http:
        fetcher = Fetcher(http=http, max_tries=args.tries, pause=args.pause)
        entries = read_lists(lists, out, fetcher)
        failures = fetch_all(entries, out, fetcher, parallel=args.parallel)
    write_manifests(entries, out, failures)
    num_of = Counter(entry.split for entry in entries if entry.name not in failures)
    for entry in entries:
        if entry.name in failures:
            print(f"failed {entry.source}: {failures[entry.name]}")
    for split in dict.fromkeys(entry.split for entry in entries):
        listed = sum(entry.split == split for entry in entries)
        note = ""
        if args.ubc_fashion and num_of[split] != PAPER[split]:
            note = f"; the paper has {PAPER[split]} and does not say which"
        print(f"{out / split}.csv: {num_of[split]} of {listed} files{note}")
    return 1 if failures else 0


def lists_of(args: argparse.Namespace) -> list[str]:
    """Requested lists, each `[SPLIT=]FILE`; empty for photos that exist already.

    Raises:
        InputError: a flag is out of range, or not exactly one source is requested.
    """
    if not 1 <= args.parallel <= MOST_AT_ONCE:
        raise InputError(f"parallel must be 1 to {MOST_AT_ONCE}, got {args.parallel}")
    if args.pause < 0:
        raise InputError(f"pause must be at least 0 seconds, got {args.pause:g}")
    chosen = [bool(args.list), args.ubc_fashion, args.deepfashion is not None]
    if sum(chosen) != 1:
        raise InputError(
            f"list must be given, or --ubc-fashion, or --deepfashion, got {sum(chosen)} of them"
        )
    if args.ubc_fashion:
        return [f"{split}={url}" for split, url in UBC_FASHION.items()]
    return list(args.list)


def place_of_list(given: str, out: Path) -> tuple[str, str, Path]:
    """Split (may be empty), URL or path, and file of a list; that of a URL is in `out`."""
    found = re.fullmatch(r"(\w+)=(.+)", given)
    split, place = found.groups() if found else ("", given)
    return split, place, out / "lists" / _name_of(place) if "://" in place else Path(place)


def _list_photos(folder: Path, out: Path) -> int:
    """Writes the manifests of DeepFashion's photos, which exist already."""
    sets = deepfashion.photo_sets(folder)
    for split in dict.fromkeys(split for split, _, _ in sets):
        rows = [
            (";".join(str(path.absolute()) for path in photos), subject, split)
            for set_split, subject, photos in sets
            if set_split == split
        ]
        _write_csv(out / f"{split}.csv", ("path", "subject", "split"), rows)
        num_photos = sum(len(photos) for set_split, _, photos in sets if set_split == split)
        print(f"{out / split}.csv: {len(rows)} outfits, {num_photos} photos")
    return 0


def read_lists(lists: Sequence[str], out: Path, fetcher: Fetcher) -> list[Entry]:
    """Entries of `[SPLIT=]FILE` or `[SPLIT=]URL`, in order.

    The error of an invalid line is in `Entry.error` and does not affect others; of lines with one
    name the first counts.

    Raises:
        InputError: a list cannot be read or is empty, or no line can be used.
    """
    entries: dict[str, Entry] = {}
    for given in lists:
        split, place, path = place_of_list(given, out)
        if "://" in place and not path.exists():
            try:
                fetcher.fetch(place, path)
            except FetchError as error:
                raise InputError(
                    f"list must be reachable, got {place!r} ({error}): on a connected machine "
                    "fetch it, then name the file"
                ) from error
        if not path.is_file():
            raise InputError(f"list must be an existing file, got {str(path)!r}")
        for row in _read_table(path) if path.suffix.lower() in TABLES else _read_lines(path):
            entry = _checked_entry(row, split, path)
            if entry.name in entries:
                reason = entry.error or f"line {row.line}: {entry.name!r} is listed already"
                entry = _failed_entry(row, split, path, reason)
            entries[entry.name] = entry
    if entries and all(entry.error for entry in entries.values()):
        first = next(iter(entries.values()))
        raise InputError(f"list: {first.error} (no line can be used)")
    return list(entries.values())


def _read_lines(path: Path) -> Sequence[tables.Row]:
    lines = tables.decode(path.read_bytes(), str(path), "list").splitlines()
    rows = [
        tables.Row(line=number, cells={"url": line.strip()})
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.strip().startswith("#")
    ]
    if not rows:
        raise InputError(f"list must name at least one file, got none in {str(path)!r}")
    return rows


def _read_table(path: Path) -> Sequence[tables.Row]:
    table = tables.read(path, required=(), optional=COLUMNS, name="list")
    if not {"url", "path"} & set(table.columns):
        raise InputError(
            f"list: {str(path)!r} must have a column 'url' or 'path', got "
            f"{', '.join(table.columns) or 'none'}"
        )
    if not table.rows:
        raise InputError(f"list must name at least one file, got none in {str(path)!r}")
    return table.rows


def _checked_entry(row: tables.Row, split: str, path: Path) -> Entry:
    """Entry of a line, with its error if the line is invalid."""
    try:
        if row.error:
            raise InputError(row.error)
        return _entry(row.cells, split, path)
    except InputError as error:
        return _failed_entry(row, split, path, str(error))


def _failed_entry(row: tables.Row, split: str, path: Path, reason: str) -> Entry:
    source = row.cells.get("url") or row.cells.get("path") or f"line {row.line}"
    return Entry(
        source=source,
        name=f"{source} (line {row.line} of {path.name})",
        split=split or path.stem,
        subject="",
        error=reason,
    )


def _entry(row: Mapping[str, str], split: str, path: Path) -> Entry:
    source = row.get("url") or row.get("path") or ""
    if not source:
        raise InputError(f"list must give a url or path in every line, got none in {str(path)!r}")
    if "://" not in source:
        source = str((path.parent / source).absolute())
    elif urlsplit(source).scheme not in ("http", "https"):
        raise InputError(f"url must begin with http:// or https://, got {source!r}")
    name = row.get("name") or _name_of(source)
    if not name or name != PurePosixPath(name).name or name.startswith("."):
        raise InputError(f"name must be that of a file, got {name!r} in {str(path)!r}")
    digest = row.get("sha256", "")
    if digest and not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise InputError(f"sha256 must be 64 hexadecimal digits, got {digest!r} for {name!r}")
    split = row.get("split") or split or path.stem
    if not re.fullmatch(r"[\w-]+", split):
        raise InputError(f"split must be usable as a name, got {split!r} in {str(path)!r}")
    return Entry(
        source=source,
        name=name,
        split=split,
        subject=row.get("subject") or PurePosixPath(name).stem,
        sha256=digest.lower(),
    )


def _name_of(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(url).path) if "://" in url else url).name
    return re.sub(r"[^\w.+-]", "_", name)


def fetch_all(
    entries: Sequence[Entry], out: Path, fetcher: Fetcher, *, parallel: int
) -> dict[str, str]:
    """Downloads missing files, a few at a time; returns the reasons of failures.

    An existing file is kept, if its digest is unknown or correct.
    """
    failures: dict[str, str] = {}
    stop = threading.Event()

    def work(entry: Entry) -> str:
        if stop.is_set():
            return "stopped"
        if entry.error:
            return entry.error
        path = place_of(entry, out)
        try:
            if not entry.is_remote:
                return _check_local(path, entry.sha256)
            if path.exists():
                if not entry.sha256 or sha256(path) == entry.sha256:
                    return ""
                path.unlink()
            fetcher.fetch(entry.source, path, entry.sha256)
        except (FetchError, OSError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(parallel) as pool, ProgressBar(total=len(entries), unit="file") as bar:
        pending = {pool.submit(work, entry): entry for entry in entries}
        try:
            for done in as_completed(pending):
                if reason := done.result():
                    failures[pending[done].name] = reason
                bar.update()
        except BaseException:
            stop.set()
            raise
    return failures


def _check_local(path: Path, digest: str) -> str:
    if not path.is_file():
        return "no such file"
    if digest and (got := sha256(path)) != digest:
        return f"its SHA-256 is {got[:12]}…, not {digest[:12]}…"
    return ""


def place_of(entry: Entry, out: Path) -> Path:
    """Path of the file of an entry."""
    return out / FILES / entry.split / entry.name if entry.is_remote else Path(entry.source)


def write_manifests(entries: Sequence[Entry], out: Path, failures: Mapping[str, str]) -> None:
    """Writes OUT/SPLIT.csv for `jobs/preprocess.py`, and OUT/failed.csv with failures."""
    for split in dict.fromkeys(entry.split for entry in entries):
        rows = [
            (_relative(place_of(entry, out), out), entry.subject, split, entry.source)
            for entry in entries
            if entry.split == split and entry.name not in failures
        ]
        _write_csv(out / f"{split}.csv", ("path", "subject", "split", "source"), rows)
    rows = [(entry.source, failures[entry.name]) for entry in entries if entry.name in failures]
    _write_csv(out / "failed.csv", ("source", "reason"), rows)


def _relative(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix() if path.is_relative_to(out) else str(path)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    with new_file(path) as part:
        part.write_text(text.getvalue(), "utf-8")


def estimate(args: argparse.Namespace) -> planning.Plan:
    """Cost of the downloads, without network requests.

    Raises:
        InputError: a flag or a list is not valid.
    """
    out, lists = Path(args.out), lists_of(args)
    if args.deepfashion is not None:
        photos = sum(len(found) for *_, found in deepfashion.photo_sets(args.deepfashion))
        return planning.Plan(
            title="lists of DeepFashion's photos",
            work=(f"{photos:,} photos, none is fetched",),
            notes=(f"counted in {str(args.deepfashion)!r}",),
        )
    sources = {given: place_of_list(given, out) for given in lists}
    known = [
        given for given, (_, url, path) in sources.items() if "://" not in url or path.exists()
    ]
    with client() as http:
        # Nothing is fetched, since all of these lists exist.
        entries = read_lists(known, out, Fetcher(http=http))
    number = sum(entry.is_remote and not place_of(entry, out).exists() for entry in entries)
    work = [f"{len(entries):,} files listed, {number:,} of them to be fetched"] if known else []
    for split, url, _ in (source for given, source in sources.items() if given not in known):
        if args.ubc_fashion:
            number += PAPER[split]
            work.append(f"{PAPER[split]:,} files of {split!r}, as many as the paper has")
        else:
            work.append(f"files of {url}, whose list is not fetched yet: their number is unknown")
    return planning.Plan(
        title=f"files of {len(lists)} lists, {args.parallel} at once",
        work=tuple(work),
        notes=(
            "file sizes are unknown until the files are fetched",
            f"hours: {planning.FETCH_SECONDS:g} s a file, a guess, and a pause of "
            f"{args.pause:g} s after each; no retries",
        ),
        waiting_seconds=number * (planning.FETCH_SECONDS + args.pause) / args.parallel,
        written_bytes=None if number or len(known) < len(lists) else 0.0,
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="jobs/download.py",
        description="Fetches the files of lists, a few at a time and politely, on a machine with\n"
        "a network. Run it again for what failed or broke off: it goes on from there.",
        epilog=f"Examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    driver.add_dry_run(parser)
    parser.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="[SPLIT=]FILE",
        help="list of URLs or local files, or the URL of one; the split is by default the file's "
        "name. May be given several times",
    )
    parser.add_argument(
        "--ubc-fashion", action="store_true", help="the published lists of UBC Fashion"
    )
    parser.add_argument(
        "--deepfashion",
        type=Path,
        metavar="FOLDER",
        help="list the photos of DeepFashion's In-shop folder, which its authors give out against "
        "an agreement; nothing is fetched",
    )
    parser.add_argument("--out", required=True, help="folder to fill")
    parser.add_argument(
        "--parallel", type=arguments.positive, default=2, help="files at once (%(default)s)"
    )
    parser.add_argument(
        "--pause", type=float, default=0.5, help="seconds between requests (%(default)s)"
    )
    parser.add_argument(
        "--tries", type=arguments.positive, default=5, help="of each file (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
