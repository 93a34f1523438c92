"""Thumbnails, sprite sheets and pose previews, cached beside their source."""

import io
import math

import numpy as np
from PIL import Image

from dreampose import poses
from dreampose.io import video
from dreampose.io.paths import Place, new_file, on_disk
from dreampose.poses.motion import Motion
from serve.service.store import VideoFolder, write_atomically

SHEET_FRAMES = 25
SHEET_COLUMNS = 5


def thumbnail(folder: VideoFolder) -> Place:
    """The first frame as WebP."""
    path = folder.path / "thumbnail.webp"
    if not path.exists():
        with Image.open(on_disk(folder.poster)) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, format="WEBP", quality=85)
        write_atomically(path, buffer.getvalue())
    return path


def spritesheet(folder: VideoFolder) -> Place:
    """JPEG of up to 25 evenly spaced frames, five per row."""
    path = folder.path / "spritesheet.jpg"
    if not path.exists():
        result = on_disk(folder.result)
        number = video.count(result)
        chosen = np.linspace(0, number - 1, min(SHEET_FRAMES, number)).round().astype(int)
        # Streams, since the whole video may be a hundred times larger.
        frames = [frame for index, frame in enumerate(video.frames_of(result)) if index in chosen]
        height, width = frames[0].shape[:2]
        rows = math.ceil(len(chosen) / SHEET_COLUMNS)
        sheet = Image.new("RGB", (SHEET_COLUMNS * width, rows * height), (255, 255, 255))
        for place, frame in enumerate(frames):
            row, column = divmod(place, SHEET_COLUMNS)
            sheet.paste(Image.fromarray(frame), (column * width, row * height))
        buffer = io.BytesIO()
        sheet.save(buffer, format="JPEG", quality=85)
        write_atomically(path, buffer.getvalue())
    return path


def poses_over_video(track: Place, upload: Place | None) -> Place:
    """MP4 of a motion's poses over its video, or over black.

    One frame is in memory at a time.

    Args:
        track: file of the poses; the MP4 is cached beside it.
        upload: the checked video; `None` if the motion was uploaded as a file of poses.
    """
    path = track.with_suffix(".mp4")
    if not path.exists():
        motion = Motion.load(on_disk(track))
        blank = np.zeros((motion.height, motion.width, 3), np.uint8)
        frames = (
            video.frames_of(on_disk(upload))
            if upload
            else (blank for _ in range(motion.num_frames))
        )
        drawn = (
            poses.draw_preview(frame[None], motion.between(index, index + 1))[0]
            for index, frame in enumerate(frames)
        )
        with new_file(path) as part:
            video.write(part, drawn, motion.fps)
    return path


def jpeg(frame: np.ndarray) -> bytes:
    """One frame (H W 3, 8-bit RGB) as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def smaller(picture: bytes, height: int) -> bytes:
    """A picture of our own, no higher than so many pixels, as JPEG."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.thumbnail((16 * height, height))
        image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
