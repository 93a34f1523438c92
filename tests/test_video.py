"""Videos on disk."""

import numpy as np

from dreampose import video


def test_equal_frames_give_equal_files(tmp_path):
    """Two threads of the encoder gave another file for one of thirty."""
    frames = np.random.default_rng(0).integers(0, 256, (10, 64, 48, 3), dtype=np.uint8)
    files: set[bytes] = set()
    for _ in range(60):
        video.write(tmp_path / "video.mp4", frames, 12.5)
        files.add((tmp_path / "video.mp4").read_bytes())
    assert len(files) == 1
