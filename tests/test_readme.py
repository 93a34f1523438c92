"""The README's map names every room of the house, and no room that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("dreampose", "jobs", "serve", "cluster")


def mapped() -> set[str]:
    text = (ROOT / "README.md").read_text().split("## Map of the house", 1)[1]
    table = "".join(line for line in text.splitlines(keepends=True) if line.startswith("|"))
    quoted = re.findall(r"`([^`]+)`", table)
    return {name.strip("· ").rstrip("/").removesuffix(".py").split("/")[-1] for name in quoted}


def test_every_module_is_on_the_map() -> None:
    modules = {
        path.stem
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules - mapped() - {"__main__"} == set()


def test_every_file_on_the_map_exists() -> None:
    text = (ROOT / "README.md").read_text()
    files = set(re.findall(r"`(?:· )?([\w/]+\.(?:py|yaml))`", text))
    there = {path.name for room in ROOMS for path in (ROOT / room).rglob("*.*")}
    there |= {path.name for path in (ROOT / "benchmarks").iterdir()}
    assert {file for file in files if Path(file).name not in there} == set()
