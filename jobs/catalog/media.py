"""Small copies of photos, motions and true videos for the catalogue page."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreampose import poses
from dreampose.io import video
from dreampose.poses.motion import Motion
from jobs.catalog.page import Entry
from serve.service.store import write_atomically

PHOTO_HEIGHT = 640
"""Maximum height of the copies of photos in pixels."""


class Media:
    """The folder `media/` with small copies that every browser can show, one per content.

    Args:
        root: folder of the page.
        digest_of: digest of the content of a file.
    """

    def __init__(self, root: Path, digest_of: Callable[[Path], str]) -> None:
        self.root = root
        self.digest_of = digest_of

    def files(
        self, photos: Sequence[Path], motion: Path | str, truth: Path | None
    ) -> dict[str, Any]:
        """Paths relative to the page; missing files are made.

        Args:
            photos: of the item.
            motion: its pose track, or the preview's path where it no longer exists.
            truth: the true video, if there is one.
        """
        return {
            "photos": [self._photo(photo) for photo in photos],
            "motion": motion if isinstance(motion, str) else self._motion_preview(motion),
            "truth": self._truth(truth) if truth else None,
        }

    def _photo(self, photo: Path) -> str:
        target = self._target("photo", photo, ".jpg")
        if not target.exists():
            image = Image.fromarray(video.read_photo(photo))
            image.thumbnail((PHOTO_HEIGHT, PHOTO_HEIGHT))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=90)
            write_atomically(target, buffer.getvalue())
        return target.relative_to(self.root).as_posix()

    def _motion_preview(self, path: Path) -> str:
        target = self._target("motion", path, ".mp4")
        if not target.exists():
            motion = Motion.load(path)
            shape = (motion.num_frames, motion.height, motion.width, 3)
            dark = np.full(shape, 24, np.uint8)
            video.write(target, poses.draw_preview(dark, motion), motion.fps)
        return target.relative_to(self.root).as_posix()

    def _truth(self, truth: Path) -> str:
        """Re-encodes the true video, so that every browser can play it."""
        target = self._target("truth", truth, ".mp4")
        if not target.exists():
            clip = video.read(truth)
            video.write(target, clip.frames, clip.fps)
        return target.relative_to(self.root).as_posix()

    def _target(self, kind: str, source: Path, suffix: str) -> Path:
        return self.root / "media" / f"{kind}-{self.digest_of(source)[:16]}{suffix}"


def entry(manifest: Mapping[str, Any], media: Mapping[str, Any]) -> Entry:
    """Page entry of a finished item, from its manifest and media files."""
    name = manifest["item"]
    width, height = (int(side) for side in manifest["size"].split("x"))
    settings = [
        f"model {manifest['model']}",
        f"finetuned on {manifest['subject']}" if manifest["subject"] else "not finetuned",
        manifest["preset"],
        f"seed {manifest['seed']}",
        f"{manifest['num_frames']} frames at {manifest['fps']:g} fps",
    ]
    return Entry(
        name=name,
        photos=media["photos"],
        motion=media["motion"],
        result=f"{name}.mp4",
        poster=f"{name}.png",
        sheet=f"{name}.jpg",
        truth=media["truth"],
        manifest=f"{name}.json",
        settings=settings,
        warnings=manifest["warnings"],
        width=width,
        height=height,
    )
