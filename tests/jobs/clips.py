"""Small clips with exact poses: a coloured figure that walks across the picture."""

from pathlib import Path

import numpy as np

from dreampose import video


def write_clip(path: Path, *, seed: int, num_frames: int = 6, height: int = 64, width: int = 48):
    """A video and, beside it, the catwalk's ground truth of it."""
    random = np.random.default_rng(seed)
    frames = np.full((num_frames, height, width, 3), 230, np.uint8)
    parts = np.zeros((num_frames, height, width), np.uint8)
    uv = np.zeros((num_frames, height, width, 2), np.float32)
    joints = np.zeros((num_frames, 4, 3), np.float32)
    colour = random.integers(0, 200, 3)
    rows, columns = np.mgrid[0:height, 0:width]
    for index in range(num_frames):
        left = 8 + 2 * index
        body = (slice(10, 54), slice(left, left + 14))
        frames[index][body] = colour
        parts[index][body] = 1 + seed % 24
        uv[index][body] = np.stack([columns / width, rows / height], axis=-1)[body]
        joints[index, :, 0], joints[index, :, 1] = left + 7, np.linspace(10, 54, 4)
    video.write(path, frames, fps=30)
    np.savez_compressed(path.with_suffix(".npz"), parts=parts, uv=uv, joints=joints)
