"""Paths of jobs: which arguments take URIs, and local paths that other nodes do not see."""

import importlib
import re
from pathlib import Path

import pytest

from dreampose.errors import InputError
from jobs.common import paths

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = {
    "ablate": ["--data", "d", "--vae-model", "m", "--truth", "t", "--out", "o"],
    "catwalk": ["--identities", "1", "--out", "o"],
    "download": ["--out", "o"],
    "evaluate": ["--pred", "p", "--truth", "t", "--out", "o"],
    "finetune": ["--model", "m", "--subjects", "s", "--out", "o"],
    "preprocess": ["--videos", "v", "--out", "o"],
    "render": ["--catalog", "c", "--out", "o"],
    "screen": ["--videos", "v", "--out", "o"],
    "train": ["--stage", "vae", "--data", "d", "--out", "o"],
}
CASES = [
    (job, name, kind) for job, names in paths.ARGUMENTS.items() for name, kind in names.items()
]


def read_table():
    """Argument, by job and name, and what docs/paths.md says that it takes."""
    found = {}
    for line in (ROOT / "docs" / "paths.md").read_text().splitlines():
        row = re.fullmatch(r"\| `(\w+)` \| (.*--.*) \| (.*) \|", line)
        if row:
            for name in re.findall(r"`--([\w-]+)`", row[2]):
                found[row[1], name.replace("-", "_")] = row[3]
    return found


def test_the_documented_table_is_the_one_that_is_checked():
    texts = {paths.ANY: "local or URI", paths.LOCAL: "local"}
    assert read_table() == {(job, name): texts[kind] for job, name, kind in CASES}


@pytest.mark.parametrize(("job", "name", "kind"), CASES)
def test_every_argument_takes_what_the_table_says(job, name, kind, monkeypatch):
    module = importlib.import_module(f"jobs.{job}")
    args = module._parser().parse_args(REQUIRED[job])
    uri = "s3://studio/somewhere"
    setattr(args, name, [f"mine={uri}"] if name == "pred" else uri)
    if kind == paths.ANY:
        paths.check(job, args)
        return
    with pytest.raises(
        InputError, match=r"must be a path on a disk that all nodes share, got .*s3:"
    ):
        paths.check(job, args)


def test_a_uri_that_became_a_path_is_refused_too(capsys):
    code = importlib.import_module("jobs.render").main(["--catalog", "c", "--out", "s3://b/out"])
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "out must be a path on a disk that all nodes share, got 's3:/b/out'" in line
    assert not Path("s3:").exists()


class Nodes:
    """Other nodes that see some paths only, in place of Ray."""

    def __init__(self, monkeypatch, sees):
        import ray

        class Task:
            def options(self, **_):
                return self

            def remote(self, wanted):
                return [name for name, path in wanted.items() if not sees(name, Path(path))]

        class Context:
            def get_node_id(self):
                return "driver"

        nodes = [{"NodeID": name, "Alive": True} for name in ("driver", "ab" * 28)]
        monkeypatch.setattr(ray, "get_runtime_context", Context)
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr(ray, "remote", lambda **_: lambda _: Task())
        monkeypatch.setattr(ray, "get", lambda answer, **_: answer)


@pytest.mark.parametrize("hidden", ["data", "out"])
def test_a_path_that_another_node_does_not_see_is_refused(hidden, monkeypatch, tmp_path):
    Nodes(monkeypatch, lambda name, path: name != hidden and path.exists())
    local = paths.LocalPaths(read={"data": str(tmp_path)}, out=str(tmp_path / "out"))
    with pytest.raises(InputError, match=rf"^{hidden} must be a path that every node sees, got '"):
        paths.require_visible(local)
    assert not list((tmp_path / "out").iterdir())


def test_paths_that_all_nodes_see_are_left_alone(monkeypatch, tmp_path):
    Nodes(monkeypatch, lambda _, path: path.exists())
    paths.require_visible(paths.LocalPaths(read={"data": str(tmp_path)}, out=str(tmp_path / "out")))
    assert not list((tmp_path / "out").iterdir())
