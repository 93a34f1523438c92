"""Where videos live between request and result: one folder each. Knows nothing of Ray or models.

Everything that must outlive a process is a file that was written under a temporary name and then
renamed, so that a reader sees all of it or nothing; what was accepted, what came of it and how it
ended outlast a power cut too, frames under way need not. Layout of one video's folder:

    request.json            what was asked; written last, so a folder without it was never accepted
    video.json              the video object: status, progress, error
    photos/0.img …          the photos as they came, in order
    motion.npz | upload.*   the motion; extracted from the uploaded video once
    prepared.safetensors    what samplers render frames from, while they do
    chunks/*.safetensors    finished frames; 000000-000008 are the first eight
    video.mp4, poster.png   the result
    thumbnail.webp, spritesheet.jpg   made from it when first asked for
    deleted                 nobody wants it any more: work on it stops, then the folder goes

A folder may lie on a disk that all replicas see, or on any filesystem that pyarrow knows (S3).
"""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import UInt8

from dreampose.errors import InputError
from dreampose.io import watermark
from dreampose.io.paths import Place, modified, new_file, place, remove_tree
from serve.service.records import Fault, RenderRequest, Video

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What an id, an item or a subject may be called: safe as a file name everywhere."""

OWN_ID = re.compile(r"video_[0-9a-f]{34}")
"""What `new_id` calls videos. Nothing else in storage is the service's to take away."""


PASSING = {"progress", "num_frames_rendered"}
"""Fields of the video object that are written often and need not outlast a power cut."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until storage that refused is tried again; twice as long each time."""
STORAGE_PATIENCE = 3600.0
"""Seconds after which storage is not tried again."""

Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")


async def in_thread(work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Does what touches storage in a thread, since storage may be slow and others wait.

    Whoever is cancelled meanwhile waits for its end, so that nobody writes after their successor.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def until_kept(work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """`in_thread`, again and again while storage refuses: what became of a video is not lost.

    Raises:
        FileNotFoundError: what it is about is gone.
        OSError: storage has refused for an hour.
    """
    pause, until = FIRST_PAUSE, time.monotonic() + STORAGE_PATIENCE
    while True:
        try:
            return await in_thread(work, *args, **kwargs)
        except FileNotFoundError:
            raise
        except OSError as error:
            if time.monotonic() >= until:
                raise
            logger.warning("storage refuses, tried again in %g s: %s", pause, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def write_atomically(
    path: Place, content: bytes, *, mode: int | None = None, durable: bool = True
) -> None:
    """Writes a file that appears whole or not at all, even if the process is killed.

    Args:
        path: of the file; its folder is made.
        content: of the file.
        mode: who may read it, on this disk; by default whom the process's umask lets.
        durable: wait until the disk has it, so that it outlasts a power cut from then on.
    """
    with new_file(path, durable=durable) as part:
        if mode is not None:
            part.touch(mode)
        part.write_bytes(content)


class VideoFolder:
    """One video in storage. Makes no folder until something is written."""

    def __init__(self, path: str | Place) -> None:
        self.path = place(path)

    @property
    def id(self) -> str:
        """Name of the folder, and of the video."""
        return self.path.name

    @property
    def result(self) -> Place:
        """The MP4, once completed."""
        return self.path / "video.mp4"

    @property
    def poster(self) -> Place:
        """The first frame as a PNG, once completed."""
        return self.path / "poster.png"

    @property
    def motion(self) -> Place:
        """The pose track; absent until it is extracted where a video was uploaded."""
        return self.path / "motion.npz"

    @property
    def prepared(self) -> Place:
        """What samplers render frames from; there while they do."""
        return self.path / "prepared.safetensors"

    @property
    def upload(self) -> Place | None:
        """The uploaded motion video, if the motion came as one."""
        return next(iter(sorted(self.path.glob("upload.*"))), None)

    @property
    def photos(self) -> list[Place]:
        """The photos in the order in which they came."""
        return sorted((self.path / "photos").glob("*.img"), key=lambda path: int(path.stem))

    def exists(self) -> bool:
        """Whether the video was accepted, all of its inputs being there, and is still wanted."""
        return (self.path / "request.json").is_file() and not self.is_deleted()

    def mark_deleted(self) -> None:
        """Makes everybody who works on the video stop; `remove` takes the files away."""
        write_atomically(self.path / "deleted", b"")

    def is_deleted(self) -> bool:
        """Whether nobody wants the video any more."""
        return (self.path / "deleted").is_file() or not self.path.is_dir()

    def remove(self) -> None:
        """Takes the folder away, its mark last, so that what is half gone stays deleted."""
        self.drop_chunks()
        for path in sorted(self.path.glob("*"), key=lambda path: path.name == "deleted"):
            remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
        remove_tree(self.path)

    def request(self) -> RenderRequest:
        """What was asked."""
        return RenderRequest.model_validate_json((self.path / "request.json").read_bytes())

    def mark(self) -> str:
        """What the result's watermark carries: equal requests give equal frames, mark included."""
        request = self.request().model_dump_json(exclude={"owner", "notes", "timeout_s"})
        return watermark.code_of(digest(request, *self.photos, self.upload or self.motion).encode())

    def video(self) -> Video:
        """The video object as last written."""
        return Video.model_validate_json((self.path / "video.json").read_bytes())

    def update(self, **changes: Any) -> Video:
        """Writes some fields of the video object; the renderer alone does so once it has begun."""
        video = Video.model_validate(self.video().model_dump() | changes)
        content = video.model_dump_json(indent=1).encode()
        write_atomically(self.path / "video.json", content, durable=not changes.keys() <= PASSING)
        return video

    def fail(self, code: str, message: str) -> Video:
        """Marks the video as failed; `code` is for programs, the sentence for people."""
        error = Fault(code=code, message=message)
        return self.update(status="failed", completed_at=int(time.time()), error=error)

    def chunk(self, indices: range) -> Place:
        """The file of a stretch of frames."""
        name = f"{indices.start:06d}-{indices.stop:06d}.safetensors"
        return self.path / "chunks" / name

    def finished_chunks(self) -> Iterator[tuple[range, Place]]:
        """Stretches of finished frames, by their file names, in order."""
        for path in sorted((self.path / "chunks").glob("*.safetensors")):
            start, stop = (int(number) for number in path.stem.split("-"))
            yield range(start, stop), path

    def drop_torn_chunks(self) -> None:
        """Takes away chunks that cannot be read, as a power cut may leave; they are made again."""
        for _, path in self.finished_chunks():
            try:
                read_chunk(path)
            except (safetensors.SafetensorError, KeyError):
                logger.warning("%s: chunk %s cannot be read, made again", self.id, path.name)
                path.unlink(missing_ok=True)

    def finished_frames(self) -> set[int]:
        """Indices of the frames that need not be rendered again."""
        return {index for indices, _ in self.finished_chunks() for index in indices}

    def write_chunk(self, indices: range, frames: UInt8[np.ndarray, "n H W 3"]) -> None:
        """Keeps a finished stretch of frames."""
        assert len(indices) == len(frames), (indices, frames.shape)
        # A video that was deleted meanwhile must not come back.
        if not self.path.is_dir():
            raise FileNotFoundError(str(self.path))
        # Not compressed: that takes longer than all else that is done with a frame, for files that
        # are gone when the video is there.
        with new_file(self.chunk(indices)) as part:
            safetensors.numpy.save_file({"frames": np.ascontiguousarray(frames)}, part)

    def frames(
        self, following: int = 0, known: Mapping[int, range] | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Finished frames in order, each once, one chunk in memory at a time.

        Args:
            following: index of the first; ends before the first one that is not finished.
            known: finished stretches by their first frame. Without it storage is listed, which
                takes the longer the more chunks there are.
        """
        if known is None:
            chunks = self.finished_chunks()
        else:
            chunks = ((indices, self.chunk(indices)) for indices in successive(following, known))
        for indices, path in chunks:
            if following not in indices:
                continue
            for index, frame in zip(indices, read_chunk(path), strict=True):
                if index == following:
                    following += 1
                    yield frame

    def drop_chunks(self) -> None:
        """Frees what is not needed once the MP4 is there."""
        remove_tree(self.path / "chunks")
        self.prepared.unlink(missing_ok=True)


def successive(following: int, stretches: Mapping[int, range]) -> Iterator[range]:
    """Stretches, given by their first frame, that follow each other from `following` on."""
    while following in stretches:
        yield stretches[following]
        following = stretches[following].stop


def read_chunk(path: Place) -> UInt8[np.ndarray, "n H W 3"]:
    """The frames of one finished stretch."""
    return safetensors.numpy.load(path.read_bytes())["frames"]


class Store:
    """All videos under one root folder."""

    def __init__(self, root: str | Place) -> None:
        self.root = place(root)

    def create(
        self,
        *,
        request: RenderRequest,
        photos: Sequence[bytes],
        motion: bytes,
        motion_suffix: str,
        video_id: str | None = None,
        **known: Any,
    ) -> VideoFolder:
        """Accepts a video: writes its inputs, and the request last.

        Args:
            request: the settings.
            photos: encoded pictures (PNG, JPEG, …).
            motion: a pose track (`.npz`) or an encoded video.
            motion_suffix: ".npz" for a pose track, the video's own suffix otherwise.
            video_id: a name the caller keeps; by default one that cannot be guessed and whose
                order is that of creation.
            known: what can be told of the video object already, such as its size.
        """
        folder = self.folder(video_id or new_id("video"))
        for number, photo in enumerate(photos):
            write_atomically(folder.path / "photos" / f"{number}.img", photo)
        name = "motion.npz" if motion_suffix == ".npz" else f"upload{motion_suffix}"
        write_atomically(folder.path / name, motion)
        video = Video(
            id=folder.id,
            created_at=int(time.time()),
            model=request.model,
            subject=request.subject,
            preset=request.preset,
            seed=request.seed,
            warnings=request.notes,
            **known,
        )
        write_atomically(folder.path / "video.json", video.model_dump_json(indent=1).encode())
        write_atomically(folder.path / "request.json", request.model_dump_json(indent=1).encode())
        return folder

    def folder(self, video_id: str) -> VideoFolder:
        """The folder of that id, whether or not it exists.

        Raises:
            InputError: the id could not be the name of one folder.
        """
        return VideoFolder(self.root / checked_name("id", video_id))

    def folders(self) -> list[VideoFolder]:
        """Every accepted video, in no order."""
        folders = [VideoFolder(path.parent) for path in self.root.glob("*/request.json")]
        return [folder for folder in folders if folder.exists()]

    def clear_abandoned(self, before: float) -> None:
        """Takes away what died while it was being accepted or removed, before that Unix time."""
        for path in self.root.glob("video_*"):
            is_old = OWN_ID.fullmatch(path.name) and path.is_dir() and modified(path) < before
            if is_old and not (path / "request.json").exists():
                remove_tree(path)

    def check(self) -> None:
        """Writes, reads and takes away a file.

        Raises:
            OSError: that cannot be done.
        """
        content = secrets.token_hex(8)
        path = self.root / f".alive-{content}"
        try:
            write_atomically(path, content.encode())
            if path.read_bytes() != content.encode():
                raise OSError("storage must give back what was written")
        finally:
            path.unlink(missing_ok=True)

    def deleted(self) -> list[VideoFolder]:
        """Videos that nobody wants and whose files are still there."""
        marks = self.root.glob("video_*/deleted")
        return [VideoFolder(path.parent) for path in marks if OWN_ID.fullmatch(path.parent.name)]


def new_id(kind: str) -> str:
    """An id that cannot be guessed; ids of one kind sort by the time at which they were made."""
    return f"{kind}_{time.time_ns() // 1000:014x}{secrets.token_hex(10)}"


def checked_name(field: str, name: str) -> str:
    """The name, if it is safe as the name of a file.

    Raises:
        InputError: it is empty, too long, or holds anything but letters, digits, '.', '_', '-'.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"{field} must be 1 to 100 letters, digits, '.', '_' or '-' "
            f"and begin with a letter or digit, got {name[:120]!r}"
        )
    return name


def stamp(folder: Path) -> str:
    """Twelve digits that change when a file in the folder is written; reads no file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return digest(*(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states))[:12]


def digest(*parts: bytes | Place | str) -> str:
    """A name for contents: equal if and only if files' bytes and strings are, in order."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        content = content if isinstance(content, bytes) else content.read_bytes()
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()
