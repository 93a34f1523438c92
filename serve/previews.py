"""Small pictures of a finished video: a thumbnail, a sheet of frames. Knows nothing of HTTP or Ray.

They are made when they are first asked for and kept beside the video.
"""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from dreampose import video
from serve.store import VideoFolder, write_atomically

SHEET_FRAMES = 25
SHEET_COLUMNS = 5


def thumbnail(folder: VideoFolder) -> Path:
    """The first frame as WebP."""
    path = folder.path / "thumbnail.webp"
    if not path.exists():
        with Image.open(folder.poster) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, format="WEBP", quality=85)
        write_atomically(path, buffer.getvalue())
    return path


def spritesheet(folder: VideoFolder) -> Path:
    """Up to 25 frames, evenly spread, five to a row from left to right, as JPEG."""
    path = folder.path / "spritesheet.jpg"
    if not path.exists():
        frames = video.read(folder.result).frames
        chosen = np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).round().astype(int)
        height, width = frames.shape[1:3]
        rows = math.ceil(len(chosen) / SHEET_COLUMNS)
        sheet = Image.new("RGB", (SHEET_COLUMNS * width, rows * height), (255, 255, 255))
        for place, index in enumerate(chosen.tolist()):
            row, column = divmod(place, SHEET_COLUMNS)
            sheet.paste(Image.fromarray(frames[index]), (column * width, row * height))
        buffer = io.BytesIO()
        sheet.save(buffer, format="JPEG", quality=85)
        write_atomically(path, buffer.getvalue())
    return path


def jpeg(frame: np.ndarray) -> bytes:
    """One frame (H W 3, 8-bit RGB) as a small file, to be shown while others are rendered."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
