"""`dreampose` works without Ray.

Nor does it need what the extra `metrics` brings until a score asks for it.

`make test-without-ray` runs all tests of the package in an environment that has no Ray.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dreampose import poses
from dreampose.io import video

PROGRAM = """
import importlib, importlib.abc, pkgutil, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "jobs", "serve", "cluster", "skimage", "torchmetrics"):
            raise ImportError(f"{name} is out of reach")

sys.meta_path.insert(0, Blocker())
try:
    import ray
except ImportError:
    pass
else:
    sys.exit("the blocker does not block")

import dreampose
names = [m.name for m in pkgutil.walk_packages(dreampose.__path__, "dreampose.")]
for name in names:
    if name != "dreampose.__main__":
        importlib.import_module(name)
from dreampose.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_everything_loads_and_a_video_is_made(tiny_model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 48, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    maps = np.zeros((5, 2, 64, 48), np.float32)
    maps[:, :, 10:50, 10:30] = 0.5
    poses.Motion(
        maps=maps,
        joints=np.zeros((5, 1, 4), np.float32),
        confidence=np.ones(5, np.float32),
        fps=10.0,
    ).save(tmp_path / "motion.npz")
    words = ["animate", "--no-align", "--force", "--preset", "fast", "--steps", "1"]
    files = {"--photo": "photo.png", "--motion": "motion.npz", "--out": "video.mp4"}
    for flag, name in files.items():
        words += [flag, str(tmp_path / name)]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, "--model", str(tiny_model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert video.read(tmp_path / "video.mp4").frames.shape == (5, 64, 48, 3)
