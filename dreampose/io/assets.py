"""Large files of the repository that job uploads leave out."""

import os
from pathlib import Path

HOME = "DREAMPOSE_HOME"
"""Environment variable of a cluster's nodes: a checkout of the repository."""
ROOT = Path(__file__).resolve().parents[2]


def find(path: Path) -> Path:
    """The path, or where it is missing, the same path in the node's checkout of the repository.

    Args:
        path: absolute below this package's own root, or relative to the repository.
    """
    home = os.environ.get(HOME)
    if path.exists() or not home:
        return path
    absolute = path.absolute()
    for root in (Path.cwd(), ROOT):
        if absolute.is_relative_to(root):
            found = Path(home) / absolute.relative_to(root)
            if found.exists():
                return found
    return path
