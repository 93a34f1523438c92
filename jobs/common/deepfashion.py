"""Photo sets of DeepFashion's In-shop folder.

The data set is given out by its authors against an agreement, for research that is not commercial;
nothing is fetched here. Layout of the folder: `img/` or `img_highres/` with
`WOMEN/Dresses/id_00000002/02_1_front.jpg`, where 02 is the outfit and 1_front the view, and
`list_eval_partition.txt`, in `Eval/` or beside them.
"""

import re
from collections import defaultdict
from pathlib import Path

from dreampose.errors import InputError

VIEWS = ("front", "side", "back", "full")
"""Views of a person; `additional` ones are details, `flat` ones show the garment alone."""
_SPLITS = {"train": "train", "query": "test", "gallery": "test"}


def photo_sets(folder: Path) -> list[tuple[str, str, list[Path]]]:
    """Split, subject and photos of each outfit that is seen at least twice.

    An outfit's split is that of the partition's file; without one everything is for training.

    Raises:
        InputError: the folder has no such photos, or the partition's file has another form.
    """
    root = next(
        (folder / name for name in ("img_highres", "img") if (folder / name).is_dir()), None
    )
    if root is None:
        raise InputError(
            f"deepfashion must be a folder with img_highres or img, got {str(folder)!r}"
        )
    splits = _read_partition(folder)
    sets: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*.jpg")):
        found = re.fullmatch(r"(\d+)_\d+_([a-z]+)", path.stem)
        if found is None or found[2] not in VIEWS:
            continue
        # The file names the photos below img/ whatever the size.
        name = f"img/{path.relative_to(root).as_posix()}"
        if splits is not None and name not in splits:
            continue
        subject = "-".join((*path.relative_to(root).parts[:-1], found[1]))
        sets["train" if splits is None else splits[name], subject].append(path)
    found_sets = [(*key, paths) for key, paths in sorted(sets.items()) if len(paths) > 1]
    if not found_sets:
        raise InputError(
            "deepfashion must hold outfits seen at least twice, such as "
            f"WOMEN/Dresses/id_00000002/02_1_front.jpg, got none in {str(root)!r}"
        )
    return found_sets


def _read_partition(folder: Path) -> dict[str, str] | None:
    """Split of each photo: lines `PHOTO ITEM train|query|gallery` below a count and a header."""
    path = next(iter(sorted(folder.rglob("list_eval_partition*.txt"))), None)
    if path is None:
        return None
    splits: dict[str, str] = {}
    for line in path.read_text("utf-8").splitlines()[2:]:
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or words[2] not in _SPLITS:
            raise InputError(
                "partition must have lines 'PHOTO ITEM train|query|gallery' from the third on, "
                f"got {line!r} in {str(path)!r}"
            )
        splits[words[0].replace("img_highres/", "img/", 1)] = _SPLITS[words[2]]
    return splits
