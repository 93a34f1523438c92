"""Upload of the working directory by `ray job submit`."""

import subprocess
import sys
from pathlib import Path

import pytest

from dreampose.io.files import exclude_from_uploads
from jobs import download

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTE = 2**20


@pytest.fixture
def checkout(tmp_path):
    """The tracked and new files of the repository, as a fresh clone holds them."""
    target = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).hardlink_to(ROOT / name)
    return target


def uploaded(folder):
    """Files that Ray packs, and their bytes."""
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    from ray._private.ray_constants import get_runtime_env_default_excludes

    found = {}

    def take(path):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.stat().st_size

    excludes = packaging._get_excludes(folder, get_runtime_env_default_excludes())
    packaging._dir_travel(folder, [excludes], take, include_gitignore=True)
    return found


def test_a_clone_uploads_the_code_in_less_than_10_mebibytes(checkout):
    found = uploaded(checkout)
    assert sum(found.values()) < 10 * MEBIBYTE
    for name in ("jobs/train.py", "serve/application.py", "cluster/capacity.py",
                 "dreampose/__main__.py", "dreampose/synthetic/data/mesh.npz"):  # fmt: skip
        assert name in found
    assert not [name for name in found if name.startswith("models/")]


def test_output_folders_of_jobs_are_not_uploaded(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    before = uploaded(checkout)
    (checkout / "a.txt").write_text("clip.mp4\n")
    (checkout / "clip.mp4").write_bytes(b"x")
    code = download.main(["--list", "a.txt", "--out", "anything"])
    assert code == 0
    (checkout / "anything" / "weights.bin").write_bytes(bytes(20 * MEBIBYTE))
    assert set(uploaded(checkout)) - set(before) == {"a.txt"}


def test_a_folder_that_holds_the_code_is_never_left_out(checkout, monkeypatch):
    monkeypatch.chdir(checkout / "jobs")
    exclude_from_uploads(checkout)
    exclude_from_uploads(".")
    assert not list(checkout.glob("jobs/.rayignore"))
    assert "jobs/train.py" in uploaded(checkout)


if __name__ == "__main__":
    sizes = uploaded(ROOT)
    print(f"{sum(sizes.values()) / MEBIBYTE:.1f} MiB in {len(sizes)} files", file=sys.stderr)
