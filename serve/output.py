"""The folder that a catalogue is rendered into: what is finished, and the page that shows it.

Knows nothing of Ray. Layout: ITEM.mp4, ITEM.png (first frame) and ITEM.json (manifest) per item,
index.html with its pictures and videos in media/, failed.csv where items failed, and .work/ for
what is under way.
"""

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreampose import poses, video
from dreampose.errors import InputError
from dreampose.poses.motion import Motion
from serve.catalog import OPTIONAL, REASON, REQUIRED, Item
from serve.config import Settings
from serve.page import Entry, page
from serve.records import RenderRequest
from serve.store import Store, VideoFolder, digest, write_atomically

PHOTO_HEIGHT = 640
"""Photos are shown at most this high, in pixels; the originals may be of any size."""


class Output:
    """One output folder.

    Args:
        root: the folder; made when something is written.
        settings: model and subjects.
        align: fit motions to the photos' bodies.
        estimator: pose estimator for motions that are videos.
    """

    def __init__(self, root: Path, *, settings: Settings, align: bool, estimator: str) -> None:
        if root.exists() and not root.is_dir():
            raise InputError(f"out must be a folder, got the file {str(root)!r}")
        self.root = root
        self.settings = settings
        self.align = align
        self.estimator = estimator
        self.estimator_name = poses.identify(estimator)
        self.store = Store(root / ".work" / "videos")
        # Read once a run: a catalogue names the same motion and photo many times.
        self.digest_of = cache(digest)
        self.digest_of_folder = cache(digest_of_folder)
        self.model_digest = self.digest_of_folder(Path(settings.model))

    def inputs(self, item: Item) -> dict[str, Any]:
        """All that an item's frames depend on, by content: equal inputs, equal result."""
        subject = (
            self.digest_of_folder(self.settings.subject_folder(item.subject))
            if item.subject
            else ""
        )
        return {
            "model": self.model_digest,
            "subject": subject,
            "photos": [self.digest_of(photo) for photo in item.photos],
            "motion": self.digest_of(item.motion),
            "estimator": "" if item.motion.suffix == ".npz" else self.estimator_name,
            "preset": item.preset,
            "seed": item.seed,
            "align": self.align,
        }

    def is_finished(self, item: Item) -> bool:
        """Whether the item's files are there and were made from the same inputs."""
        manifest = self.manifest(item)
        return (
            manifest is not None
            and manifest["inputs"] == self.inputs(item)
            and (self.root / f"{item.name}.mp4").is_file()
            and (self.root / f"{item.name}.png").is_file()
        )

    def manifest(self, item: Item) -> dict[str, Any] | None:
        """What was written about the item when it was finished, if it was."""
        try:
            return json.loads((self.root / f"{item.name}.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def motion(self, item: Item) -> Path:
        """The item's pose track: its own file, or where the one of its video will be."""
        if item.motion.suffix == ".npz":
            return item.motion
        name = f"{self.digest_of(item.motion)}-{self.estimator_name}.npz"
        return self.root / ".work" / "motions" / name

    def take_up(self, item: Item) -> VideoFolder:
        """The item's folder in storage: the one of an interrupted run, or a new one."""
        name = f"{item.name[:80]}-{digest(json.dumps(self.inputs(item)))[:16]}"
        folder = self.store.folder(name)
        if folder.exists():
            if folder.video().status == "failed":
                folder.update(status="queued", error=None, completed_at=None)
            return folder
        return self.store.create(
            request=RenderRequest(
                model=self.settings.model_name,
                subject=item.subject,
                preset=item.preset,
                seed=item.seed,
                align=self.align,
                estimator=self.estimator_name,
            ),
            photos=[photo.read_bytes() for photo in item.photos],
            motion=self.motion(item).read_bytes(),
            motion_suffix=".npz",
            video_id=name,
        )

    def publish(self, item: Item, folder: VideoFolder) -> None:
        """Puts a completed video's files in place, the manifest last, and clears its work."""
        state = folder.video()
        write_atomically(self.root / f"{item.name}.mp4", folder.result.read_bytes())
        write_atomically(self.root / f"{item.name}.png", folder.poster.read_bytes())
        motion = Motion.load(folder.motion)
        manifest = {
            "item": item.name,
            "model": self.settings.model_name,
            "subject": item.subject,
            "preset": item.preset,
            "seed": item.seed,
            "photos": [str(photo) for photo in item.photos],
            "motion": str(item.motion),
            "motion_source": motion.source,
            "motion_estimator": motion.estimator,
            "fps": state.fps,
            "num_frames": state.num_frames,
            "num_frames_rendered": state.num_frames_rendered,
            "size": state.size,
            "warnings": state.warnings,
            "seconds": max(0, (state.completed_at or 0) - state.created_at),
            "inputs": self.inputs(item),
            "sha256": digest(self.root / f"{item.name}.mp4"),
            "versions": {name: version(name) for name in ("dreampose", "torch", "diffusers")},
        }
        text = json.dumps(manifest, indent=1) + "\n"
        write_atomically(self.root / f"{item.name}.json", text.encode())
        shutil.rmtree(folder.path)

    def write_page(self, items: Sequence[Item], failures: Mapping[str, str]) -> Path:
        """Writes index.html, its media, and failed.csv (or removes it where nothing failed).

        Args:
            items: of the catalogue, in order.
            failures: name and reason of those that failed.
        """
        entries = [self._entry(item) for item in items if item.name not in failures]
        html = page(entries, failures, title="DreamPose catalogue")
        write_atomically(self.root / "index.html", html.encode())
        failed = self.root / "failed.csv"
        if not failures:
            failed.unlink(missing_ok=True)
            return self.root / "index.html"
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*REQUIRED, *OPTIONAL, REASON])
        writer.writeheader()
        writer.writerows(item.row(failures[item.name]) for item in items if item.name in failures)
        write_atomically(failed, text.getvalue().encode())
        return self.root / "index.html"

    def _entry(self, item: Item) -> Entry:
        manifest = self.manifest(item)
        assert manifest is not None, item.name
        width, height = (int(side) for side in manifest["size"].split("x"))
        settings = [
            f"model {manifest['model']}",
            f"finetuned on {manifest['subject']}" if manifest["subject"] else "not finetuned",
            manifest["preset"],
            f"seed {manifest['seed']}",
            f"{manifest['num_frames']} frames at {manifest['fps']:g} fps",
        ]
        return Entry(
            name=item.name,
            photos=[self._photo(photo) for photo in item.photos],
            motion=self._motion_preview(self.motion(item)),
            result=f"{item.name}.mp4",
            poster=f"{item.name}.png",
            truth=self._truth(item.truth) if item.truth else None,
            manifest=f"{item.name}.json",
            settings=settings,
            warnings=manifest["warnings"],
            width=width,
            height=height,
        )

    def _photo(self, photo: Path) -> str:
        target = self.root / "media" / f"photo-{self.digest_of(photo)[:16]}.jpg"
        if not target.exists():
            image = Image.fromarray(video.read_photo(photo))
            image.thumbnail((PHOTO_HEIGHT, PHOTO_HEIGHT))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=90)
            write_atomically(target, buffer.getvalue())
        return target.relative_to(self.root).as_posix()

    def _motion_preview(self, path: Path) -> str:
        target = self.root / "media" / f"motion-{self.digest_of(path)[:16]}.mp4"
        if not target.exists():
            motion = Motion.load(path)
            shape = (motion.num_frames, motion.height, motion.width, 3)
            dark = np.full(shape, 24, np.uint8)
            video.write(target, poses.draw_preview(dark, motion), motion.fps)
        return target.relative_to(self.root).as_posix()

    def _truth(self, truth: Path) -> str:
        """Encoded anew, so that every browser plays it."""
        target = self.root / "media" / f"truth-{self.digest_of(truth)[:16]}.mp4"
        if not target.exists():
            clip = video.read(truth)
            video.write(target, clip.frames, clip.fps)
        return target.relative_to(self.root).as_posix()


def digest_of_folder(folder: Path) -> str:
    """Digest of the files in a folder and of their names; hidden ones do not count."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts: list[Path | str] = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        if not name.startswith("."):
            parts += [name, path]
    return digest(*parts)
