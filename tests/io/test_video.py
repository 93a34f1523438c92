"""Videos on disk."""

import hashlib

import cv2
import numpy as np
import pytest
from PIL import Image

from dreampose.errors import InputError
from dreampose.io import video


def test_equal_frames_give_equal_files(tmp_path):
    """Neither threads of the encoder nor what lies in memory beside a picture may show."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(9, 247, (8, 6, 3)) + rng.integers(-9, 9, (30, 8, 6, 3))
    frames = [cv2.resize(picture.astype(np.uint8), (48, 64)) for picture in coarse]
    files: set[bytes] = set()
    for _ in range(60):
        sizes = rng.integers(1, 100_000, 20)
        litter = [np.full(size, rng.integers(0, 255), np.uint8) for size in sizes]
        del litter
        video.write(tmp_path / "video.mp4", frames, 12.5)
        files.add((tmp_path / "video.mp4").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_video_is_upright_as_opencv_shows_it(tmp_path, turn, quarters):
    path = tmp_path / "clip.mp4"
    frames = np.zeros((6, 64, 128, 3), np.uint8)
    frames[:, :16, :32] = (250, 20, 20)
    video.write(path, frames, 12.5)
    turn(path, quarters)
    capture = cv2.VideoCapture(str(path))
    shown = capture.read()[1][:, :, ::-1]
    assert shown.shape == ((64, 128, 3) if quarters == 2 else (128, 64, 3))
    got = video.read(path).frames
    assert video.count(path) == len(got) == 6
    np.testing.assert_array_equal(np.stack([*video.frames_of(path)]), got)
    assert np.abs(got[0].astype(int) - shown).max() <= 3


def test_what_is_transparent_shows_white_and_16_bits_are_scaled(tmp_path):
    cut_out = np.zeros((8, 6, 4), np.uint8)
    cut_out[2:6, 2:4] = (10, 120, 200, 255)
    cut_out[0, 0] = (0, 0, 0, 128)
    Image.fromarray(cut_out).save(tmp_path / "cut_out.png")
    got = video.read_photo(tmp_path / "cut_out.png")
    assert got[7, 5].tolist() == [255, 255, 255]
    assert got[3, 3].tolist() == [10, 120, 200]
    assert got[0, 0].tolist() == [127, 127, 127]
    grey = np.array([[0, 257 * 7], [257 * 200, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert video.read_photo(tmp_path / "grey.png")[..., 0].tolist() == [[0, 7], [200, 255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.gif", transparency=0)
    assert video.read_photo(tmp_path / "palette.gif")[0, :, 0].tolist() == [255, 9]


def test_an_unknown_codec_is_an_input_error(tmp_path):
    path = tmp_path / "video.mp4"
    video.write(path, np.zeros((5, 64, 48, 3), np.uint8), 12.5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"none"))
    with pytest.raises(InputError, match="cannot decode the codec of"):
        video.read(path)


def test_portable_files_have_the_bytes_that_were_recorded(tmp_path):
    """Whatever processor this runs on; the frames are drawn with whole numbers alone."""
    t, y, x = np.mgrid[0:12, 0:96, 0:80]
    distance = (x - 30 - 2 * t) ** 2 + (y - 50) ** 2
    stripes = 40 * ((x + y - t) // 5 % 2) * (distance < 900)
    grain = (x * 7919 + y * 104729 + t * 1299709) % 7
    grey = 60 + y // 2 + x // 3 + 90 * (distance < 400) + stripes + grain
    frames = np.stack([grey, grey * 3 // 4, 255 - grey // 2], axis=-1).clip(0, 255)
    path = tmp_path / "video.mp4"
    video.write(path, frames.astype(np.uint8), 12.5, portable=True)
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == "b187106995f03c58"
