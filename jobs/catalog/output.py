"""Output folder of a rendered catalogue.

Layout: ITEM.mp4, ITEM.png (first frame), ITEM.jpg (sheet of frames) and
ITEM.json (manifest) per item, index.html with its pictures and videos in media/, failed.csv where
items failed, and .work/ for what is under way.
"""

import csv
import hashlib
import io
import json
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dreampose import poses
from dreampose.errors import InputError
from dreampose.io.paths import on_disk, remove_tree
from dreampose.io.provenance import Signer
from dreampose.poses.motion import Motion
from jobs.catalog.media import Media, entry
from jobs.catalog.page import page
from jobs.catalog.table import OPTIONAL, REASON, REQUIRED, Broken, Contents, Item
from serve.config import Settings
from serve.service.previews import spritesheet
from serve.service.records import RenderRequest
from serve.service.store import Store, VideoFolder, digest, write_atomically

FILES = (".mp4", ".png", ".jpg")
"""Suffixes of the files of an item, besides its manifest."""
VERSIONS = ("dreampose", "torch", "diffusers", "av", "ray")


class Output:
    """The output folder of a catalogue.

    Args:
        root: path of the folder, created on the first write.
        settings: model and subjects.
        align: fit motions to the photos' bodies.
        estimator: pose estimator for motions that are videos.
        size: height and width of the videos; default: those of the model.
        contents: cache of file checks.
        signer: signs the videos.
    """

    def __init__(
        self,
        root: Path,
        *,
        settings: Settings,
        align: bool,
        estimator: str,
        size: tuple[int, int] | None = None,
        contents: Contents | None = None,
        signer: Signer | None = None,
    ) -> None:
        if root.exists() and not root.is_dir():
            raise InputError(f"out must be a folder, got the file {str(root)!r}")
        self.root = root
        self.settings = settings
        self.align = align
        self.estimator = estimator
        self.estimator_name = poses.identify(estimator)
        self.size = size
        self.store = Store(root.absolute() / ".work" / "videos")
        self.signer = signer
        # Read once a run: a catalogue names the same motion and photo many times.
        self.digest_of = (contents or Contents()).digest
        self.digest_of_folder = cache(digest_of_folder)
        self.media = Media(root, self.digest_of)
        self.subjects: dict[str, str] = {}
        self.model_digest = self.digest_of_folder(Path(settings.model))

    def weights(self, item: Item) -> str:
        """Digest of the item's finetuned weights; empty for the base model."""
        if not item.subject:
            return ""
        return self.digest_of_folder(self.settings.subject_folder(item.subject))

    def inputs(self, item: Item) -> dict[str, Any]:
        """Inputs of an item by content: equal inputs give equal frames."""
        facts: dict[str, Any] = {
            "model": self.model_digest,
            "subject": self.weights(item),
            "photos": [self.digest_of(photo) for photo in item.photos],
            "motion": self.digest_of(item.motion),
            "estimator": "" if item.motion.suffix == ".npz" else self.estimator_name,
            "preset": item.preset,
            "seed": item.seed,
            "align": self.align,
        }
        # Absent where it is the model's own: what was finished before there were others stays so.
        return facts | {"size": list(self.size)} if self.size else facts

    def key(self, item: Item) -> str:
        """Digest of the item's inputs."""
        return digest(json.dumps(self.inputs(item), sort_keys=True))

    def _video_id(self, item: Item) -> str:
        """Id of the item's folder in storage."""
        return self.key(item)[:32]

    def is_finished(self, item: Item) -> bool:
        """Whether the item's files exist and were made from the same inputs."""
        manifest = self.manifest(item)
        return (
            manifest is not None
            and manifest["inputs"] == self.inputs(item)
            and all((self.root / f"{item.name}{suffix}").is_file() for suffix in FILES)
        )

    def unfinished(self, items: Sequence[Item]) -> list[list[Item]]:
        """Items to render, grouped by equal inputs, which share one video.

        Those that equal a finished one are given its files here, and what a killed run left under
        way of finished ones is cleared. Videos that were finished without a signature are signed
        where there is a signer now. Items of the same weights come one after the other, and of
        these the ones of the same motion, so that replicas load weights as seldom as can be; the
        base model's are first.
        """
        done = {item.name for item in items if self.is_finished(item)}
        twins = {self.key(item): item for item in items if item.name in done}
        waiting: dict[str, list[Item]] = {}
        for item in items:
            if item.name in done:
                remove_tree(self.store.folder(self._video_id(item)).path)
                self._sign(item)
                continue
            if twin := twins.get(self.key(item)):
                self.adopt(item, twin)
                self._sign(item)
            else:
                waiting.setdefault(self.key(item), []).append(item)

        def sort_key(group: list[Item]) -> tuple[str, str]:
            return self.weights(group[0]), self.digest_of(group[0].motion)

        return sorted(waiting.values(), key=sort_key)

    def manifest(self, item: Item) -> dict[str, Any] | None:
        """Manifest of a finished item; None if it is not finished."""
        return self._read(self.root / f"{item.name}.json")

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            return json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def motion(self, item: Item) -> Path:
        """Path of the item's pose track, which may still have to be extracted."""
        if item.motion.suffix == ".npz":
            return item.motion
        name = f"{self.digest_of(item.motion)}-{self.estimator_name}"
        if self.size:
            name += f"-{self.size[0]}x{self.size[1]}"
        return self.root / ".work" / "motions" / f"{name}.npz"

    def video_folder(self, item: Item) -> VideoFolder:
        """Folder of the item in storage, new or from an interrupted run."""
        # Weights with two names are loaded under one.
        weights = self.subjects.setdefault(self.weights(item), item.subject)
        name = self._video_id(item)
        folder = self.store.folder(name)
        if folder.exists():
            if folder.video().status == "failed":
                folder.update(status="queued", error=None, completed_at=None)
            return folder
        return self.store.create(
            request=RenderRequest(
                model=self.settings.model_name,
                subject=weights,
                preset=item.preset,
                seed=item.seed,
                align=self.align,
                size=self.size,
                estimator=self.estimator_name,
            ),
            photos=[photo.read_bytes() for photo in item.photos],
            motion=self.motion(item).read_bytes(),
            motion_suffix=".npz",
            video_id=name,
        )

    def publish(
        self, items: Sequence[Item], folder: VideoFolder, timings: Mapping[str, Any]
    ) -> None:
        """Publishes the files of a finished video for its items, manifests last.

        Args:
            items: at least one item; all have equal inputs.
            folder: folder of the video in storage.
            timings: start and durations, for the manifest.
        """
        state, item = folder.video(), items[0]
        result = self.root / f"{item.name}.mp4"
        write_atomically(result, folder.result.read_bytes())
        if self.signer is not None:
            self.signer.sign(result)
        write_atomically(self.root / f"{item.name}.png", folder.poster.read_bytes())
        write_atomically(self.root / f"{item.name}.jpg", spritesheet(folder).read_bytes())
        motion = Motion.load(on_disk(folder.motion))
        self._write_manifest(
            item,
            {
                "model": self.settings.model_name,
                "preset": item.preset,
                "seed": item.seed,
                "motion_source": motion.source,
                "motion_estimator": motion.estimator,
                "fps": state.fps,
                "num_frames": state.num_frames,
                "num_frames_rendered": state.num_frames_rendered,
                "size": state.size,
                "warnings": state.warnings,
                "timings": dict(timings),
                "inputs": self.inputs(item),
                "sha256": digest_of_file(result),
                "watermark": folder.mark(),
                "signed": self.signer is not None,
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in VERSIONS},
                },
            },
        )
        for other in items[1:]:
            self.adopt(other, item)
        remove_tree(folder.path)

    def adopt(self, item: Item, twin: Item) -> None:
        """Copies the files of a finished item with equal inputs to another item."""
        manifest = self.manifest(twin)
        assert manifest is not None, twin.name
        for suffix in FILES:
            content = (self.root / f"{twin.name}{suffix}").read_bytes()
            write_atomically(self.root / f"{item.name}{suffix}", content)
        self._write_manifest(item, manifest | {"num_frames_rendered": 0})

    def _sign(self, item: Item) -> None:
        """Signs a finished, unsigned item, if a certificate is given."""
        manifest = self.manifest(item)
        if self.signer is None or manifest is None or manifest.get("signed"):
            return
        result = self.root / f"{item.name}.mp4"
        self.signer.sign(result)
        facts = {"sha256": digest_of_file(result), "signed": True}
        self._write_manifest(item, manifest | facts)

    def _write_manifest(self, item: Item, facts: Mapping[str, Any]) -> None:
        own = {
            "item": item.name,
            "subject": item.subject,
            "photos": [str(photo) for photo in item.photos],
            "motion": str(item.motion),
            "media": self._media(item, facts.get("media")),
        }
        text = json.dumps(own | {k: v for k, v in facts.items() if k not in own}, indent=1) + "\n"
        write_atomically(self.root / f"{item.name}.json", text.encode())

    def write_page(self, items: Sequence[Item], failures: Mapping[str, str]) -> Path:
        """Writes index.html with all items in the folder, those of the catalogue first.

        Args:
            items: items of the catalogue in order; failed ones are left out.
            failures: reasons of failed items by name.
        """
        current = {item.name: item for item in items if item.name not in failures}
        manifests = {name: self.manifest(item) for name, item in current.items()}
        for path in sorted(self.root.glob("*.json")):
            if path.stem not in manifests and path.stem not in failures:
                manifests[path.stem] = self._read(path)
        entries = [
            # The true video of an item may have come later, or have been changed.
            entry(
                manifest,
                self._media(current[name], manifest["media"])
                if name in current
                else manifest["media"],
            )
            for name, manifest in manifests.items()
            if manifest is not None and "media" in manifest
        ]
        html = page(entries, failures, title="DreamPose catalogue")
        write_atomically(self.root / "index.html", html.encode())
        return self.root / "index.html"

    def write_failed(
        self, items: Sequence[Item], broken: Sequence[Broken], failures: Mapping[str, str]
    ) -> None:
        """Writes failed.csv, a catalogue of failed items with reasons; removes it without failures.

        Args:
            items: items of the catalogue.
            broken: invalid lines of the catalogue.
            failures: reasons of items that could not be rendered, by name.
        """
        rows = [{**line.cells, REASON: line.reason} for line in broken]
        rows += [
            {**item.cells(), REASON: failures[item.name]} for item in items if item.name in failures
        ]
        failed = self.root / "failed.csv"
        if not rows:
            failed.unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*REQUIRED, *OPTIONAL, REASON])
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(failed, text.getvalue().encode())

    def _media(self, item: Item, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Media files of an item; `known` are those of an item with equal inputs."""
        motion = self.motion(item)
        # Extracted poses are in .work/, which is deleted at the end.
        drawn = str(known["motion"]) if known and not motion.exists() else motion
        return self.media.files(item.photos, drawn, item.truth)


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_folder(folder: Path) -> str:
    """Digest of the files of a folder, without hidden ones.

    Name and model card of a subject are left out: equal weights are the same subject.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts: list[Path | str] = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        if name == "subject.json":
            facts = json.loads(path.read_bytes())
            if isinstance(facts, dict):
                facts.pop("name", None)
            parts += [name, json.dumps(facts, sort_keys=True)]
        elif not name.startswith(".") and path.suffix != ".md":
            parts += [name, path]
    return digest(*parts)
