"""Remote paths against local ones."""

import os
import shutil
from pathlib import Path

import pytest

from dreampose.errors import InputError
from dreampose.io import paths
from dreampose.io.paths import Copies, RemotePath, modified, new_file, on_disk, place, remove_tree


def write(path, content):
    with new_file(path) as part:
        part.write_bytes(content)


@pytest.fixture
def root(anywhere):
    return place(anywhere)


def below(root, *patterns):
    return [
        str(path).removeprefix(str(root)) for pattern in patterns for path in root.glob(pattern)
    ]


def test_what_is_written_is_found_and_read(root):
    assert not root.exists()
    write(root / "one" / "a.json", b"a")
    write(root / "one" / "b.bin", b"old")
    write(root / "one" / "b.bin", b"new")
    write(root / "two" / "c d.json", b"c")
    assert (root / "one" / "b.bin").read_bytes() == b"new"
    assert sorted(below(root, "*/*.json", "*")) == ["/one", "/one/a.json", "/two", "/two/c d.json"]
    assert below(root / "one", "b.*") == ["/b.bin"]
    assert below(root / "nowhere", "*") == []
    kinds = [(path.exists(), path.is_dir(), path.is_file()) for path in (root / "one", root / "x")]
    assert kinds == [(True, True, False), (False, False, False)]
    assert (root / "one" / "a.json").is_file()


def test_parts_of_a_name_are_those_of_pathlib(root):
    path = root / "one" / "a.tar.gz"
    twin = Path("/one/a.tar.gz")
    assert (path.name, path.stem, path.suffix) == (twin.name, twin.stem, twin.suffix)
    assert str(path.with_suffix(".mp4")) == f"{root}/one/a.tar.mp4"
    assert str(path.parent) == f"{root}/one"
    assert path == root / "one" / "a.tar.gz"
    assert len({path, root / "one" / "a.tar.gz", path.parent}) == 2
    assert sorted([root / "b", root / "a"]) == [root / "a", root / "b"]


@pytest.mark.parametrize(
    "name",
    ["Look 12 front.mp4", "a+b.mp4", "50%.mp4", "100%25.mp4", "n#1.mp4", "what?.mp4",
     "x=1&y.mp4", "Größe.mp4", "it's.mp4", "[1].mp4", "a:b.mp4", "what?region=1.mp4 "],
)  # fmt: skip
def test_every_name_can_be_read_back(root, name):
    write(root / name, name.encode())
    write(root / f"{name} (folder)" / "x", b"x")
    assert name in [path.name for path in root.glob("*")]
    assert place(str(root / name)).read_bytes() == name.encode()
    assert below(root, "*/x") == [f"/{name} (folder)/x"]


def test_options_of_a_uri_are_no_part_of_the_path():
    path = RemotePath("s3://studio/a b/c?region=eu-west-1&scheme=http") / "d?e"
    assert str(path) == "s3://studio/a b/c/d?e?region=eu-west-1&scheme=http"
    assert RemotePath(str(path)) == path and path.name == "d?e"
    assert paths.split_uri("s3://studio/what?.mp4") == ("s3://studio", "/what?.mp4", "")
    assert paths.split_uri("s3://studio?region=x") == ("s3://studio", "", "?region=x")


def test_what_is_taken_away_is_gone(root):
    for name in ("a", "b"):
        write(root / "one" / name, b"x")
    (root / "one" / "a").unlink()
    with pytest.raises(FileNotFoundError):
        (root / "one" / "a").unlink()
    with pytest.raises(FileNotFoundError):
        (root / "one" / "a").read_bytes()
    (root / "one" / "a").unlink(missing_ok=True)
    assert below(root / "one", "*") == ["/b"]
    remove_tree(root / "one")
    remove_tree(root / "one")
    assert not (root / "one").exists()


def test_a_failed_write_keeps_the_old_file(root):
    write(root / "a", b"old")

    def fail(part):
        part.write_bytes(b"ne")
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"), new_file(root / "a") as part:
        fail(part)
    assert (root / "a").read_bytes() == b"old"
    assert below(root, "*") == ["/a"]


def test_folders_age_and_are_made_young_again(root, monkeypatch):
    write(root / "one" / "a", b"x")
    before = modified(root / "one")
    assert before == pytest.approx(modified(root / "one" / "a"), abs=2)
    monkeypatch.setattr("time.sleep", lambda _: None)
    while modified(root / "one") == before:
        paths.touch(root / "one")
    assert modified(root / "one") > before
    assert (root / "one" / "a").read_bytes() == b"x"
    with pytest.raises(FileNotFoundError):
        modified(root / "nowhere")


def test_a_file_can_be_had_on_this_disk(root):
    write(root / "one" / "motion.npz", b"x" * 10)
    found = on_disk(root / "one" / "motion.npz")
    assert isinstance(found, Path)
    assert (found.name, found.read_bytes()) == ("motion.npz", b"x" * 10)
    write(root / "one" / "motion.npz", b"longer than before")
    assert on_disk(root / "one" / "motion.npz").read_bytes() == b"longer than before"


class TestCopies:
    def test_no_more_than_some_bytes_are_kept_the_last_used(self, bucket, tmp_path):
        root = place(f"{bucket}/{tmp_path.name}")
        for name in "abc":
            write(root / name, name.encode() * 10)
        copies = Copies(max_bytes=20)
        first, second = (copies.get(root / name) for name in "ab")
        assert copies.get(root / "a") == first, "copied twice"
        third = copies.get(root / "c")
        assert [path.exists() for path in (first, second, third)] == [True, False, True]
        assert copies.get(root / "b").read_bytes() == b"b" * 10

    def test_what_is_not_there_is_said(self, bucket):
        with pytest.raises(FileNotFoundError):
            Copies(max_bytes=20).get(place(bucket) / "nothing")


def test_what_is_replaced_by_something_longer_while_it_is_read_is_read_again(
    bucket, tmp_path, monkeypatch
):
    path = place(f"{bucket}/{tmp_path.name}") / "video.json"
    write(path, b"short")
    longer = [b"a longer one", b"one that is longer still"]

    class Racing:
        """Whoever opens a file gets its length, then somebody replaces it."""

        def __init__(self, filesystem):
            self.filesystem = filesystem

        def __getattr__(self, name):
            return getattr(self.filesystem, name)

        def open_input_file(self, name):
            file = self.filesystem.open_input_file(name)
            if longer:
                file.size()
                with self.filesystem.open_output_stream(name) as stream:
                    stream.write(longer.pop(0))
            return file

    racing = Racing(path.filesystem)
    with monkeypatch.context() as patched:
        patched.setattr(RemotePath, "filesystem", racing)
        assert path.read_bytes() == b"one that is longer still"
    assert not longer


def test_settings_after_the_path_hold_below_it(bucket, tmp_path, monkeypatch):
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?scheme=http&endpoint_override={endpoint}&region=us-east-1"
    root = place(f"{bucket}/{tmp_path.name}{options}")
    write(root / "one" / "a", b"x")
    (found,) = root.glob("*/a")
    assert str(found) == f"{bucket}/{tmp_path.name}/one/a{options}"
    assert place(str(found)).read_bytes() == b"x"


def test_names_of_this_disk_are_paths(tmp_path):
    assert place("a/b") == Path("a/b")
    assert place(tmp_path) is tmp_path
    assert place(tmp_path.as_uri()) == tmp_path
    assert isinstance(place("s3://bucket/a"), RemotePath)


def test_where_files_do_not_appear_whole_they_are_moved(tmp_path, monkeypatch):
    """As on HDFS, of which this disk, seen through a URI, is the stand-in."""
    target = RemotePath(f"file://{tmp_path}/folder/a")
    copied = []
    copy = paths.fs.copy_files

    def note(source, target, **kwargs):
        copied.append(Path(target).name)
        copy(source, target, **kwargs)

    monkeypatch.setattr(paths.fs, "copy_files", note)
    write(target, b"x")
    assert copied != ["a"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a"]
    assert target.read_bytes() == b"x"
    shutil.rmtree(tmp_path / "folder")
    assert not target.exists()


def test_an_unknown_storage_is_rejected():
    with pytest.raises(
        InputError, match=r"path must be a local path or a URI of a supported storage, got 'x:"
    ):
        place("x://bucket/a").exists()
