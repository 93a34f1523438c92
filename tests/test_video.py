"""Videos on disk."""

import numpy as np
import pytest

from dreampose import video
from dreampose.errors import InputError


def test_equal_frames_give_equal_files(tmp_path):
    """Two threads of the encoder gave another file for one of thirty."""
    frames = np.random.default_rng(0).integers(0, 256, (10, 64, 48, 3), dtype=np.uint8)
    files: set[bytes] = set()
    for _ in range(60):
        video.write(tmp_path / "video.mp4", frames, 12.5)
        files.add((tmp_path / "video.mp4").read_bytes())
    assert len(files) == 1


def test_a_codec_that_nobody_knows_is_a_sentence(tmp_path):
    path = tmp_path / "video.mp4"
    video.write(path, np.zeros((5, 64, 48, 3), np.uint8), 12.5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"none"))
    with pytest.raises(InputError, match="of a codec that can be decoded"):
        video.read(path)
