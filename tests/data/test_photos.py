"""Photo sets of one person as clips."""

from dataclasses import dataclass

import numpy as np
import pytest

from dreampose.config import replace
from dreampose.data import Dataset, encode_clip, join_photos, write_rows
from dreampose.errors import InputError
from dreampose.poses import Track


@dataclass
class Squares:
    """Sees a person where a photo is not grey: U tells the column, V the photo's own colour."""

    name: str = "squares"

    def __call__(self, clip, *, height, width, progress=None):
        assert len(clip.frames) == 1, "photos are read one by one"
        colour = int(clip.frames[0, height // 2, width // 2, 0])
        maps = np.zeros((1, 2, height, width), np.float32)
        if colour != 128:
            maps[0, 0, 8:-8], maps[0, 1, 8:-8] = 0.5, colour / 255
        found = maps.any(axis=(1, 2, 3))
        return Track(
            maps=maps,
            joints=np.zeros((1, 1, 4), np.float32),
            confidence=found.astype(np.float32),
            found=found,
        )


def photo(colour, height=64, width=48):
    return np.full((height, width, 3), colour, np.uint8)


def test_each_photo_keeps_its_own_pose_in_training(tiny_recipe, tmp_path):
    photos = [photo(51), photo(128), photo(102, 200, 90), photo(204)]
    clip, motion = join_photos(photos, Squares(), tiny_recipe)
    assert clip.frames.shape == (3, 64, 48, 3) and motion.num_frames == 3
    row = encode_clip(clip, motion, recipe=tiny_recipe, seed=0, clip_id="outfit", subject="outfit")
    film = encode_clip(
        replace(clip, fps=30.0), motion, recipe=tiny_recipe, seed=0, clip_id="video", subject="v"
    )
    write_rows(tmp_path / "data.parquet", [row, film])
    data = Dataset(tmp_path / "data.parquet", recipe=tiny_recipe)
    assert [clip["clip_id"] for clip in data.clips] == ["outfit", "video"]
    for frame, level in enumerate((0.2, 0.4, 0.8)):
        window = data.window(0, frame)
        assert window.tolist() == [frame] * tiny_recipe.num_poses
        maps = data.array(0, "poses")[0, window]
        assert np.allclose(maps[:, 1, 4, 3], level, atol=0.01)
    assert data.window(1, 0).tolist() == [0, 0, 0, 1, 2]


def test_fewer_than_two_photos_with_a_person_are_rejected(tiny_recipe):
    with pytest.raises(InputError, match="at least 2 of them, got 1 of 3 with a pose"):
        join_photos([photo(51), photo(128), photo(128)], Squares(), tiny_recipe)
