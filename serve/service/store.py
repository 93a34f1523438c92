"""Storage layout of videos, one folder each.

Files are written under a temporary name and renamed, so that readers see whole files only; requests
and final states are also synced to disk. Layout of a video folder:

    request.json            parameters; written last, so a folder without it was never accepted
    video.json              video object: status, progress, error
    photos/0.img …          photos, in order
    motion.npz | upload.*   motion; extracted once from an uploaded video
    prepared.safetensors    prepared request, while the video is rendered
    chunks/*.safetensors    finished frames; 000000-000008 are the first eight
    video.mp4, poster.png   result
    thumbnail.webp, spritesheet.jpg   made on first request
    deleted                 marker: work stops, then the folder is removed

Storage is a disk shared by all replicas, or any pyarrow filesystem (S3).
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
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
from dreampose.io.paths import Place, modified, new_file, on_disk, place, remove_tree
from serve.service.records import JobError, RenderRequest, Video

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Ids, items and subjects: safe as file names everywhere."""

VIDEO_ID = re.compile(r"video_[0-9a-f]{34}")
"""Ids from `new_id`; other folders in storage are never deleted."""


TRANSIENT_FIELDS = {"progress", "num_frames_rendered"}
"""Fields of the video object that are written often and not synced to disk."""
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
"""Bounds of the exponential back-off after a storage error, in seconds."""
STORAGE_RETRY_SECONDS = 3600.0
"""Seconds after which a storage error is final."""

Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")


async def in_thread(work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Runs blocking storage access in a thread.

    On cancellation it still waits for the thread, so that no write happens after a successor's.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def with_storage_retries(work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """`in_thread` with retries on storage errors, so that final states are not lost.

    Raises:
        FileNotFoundError: the file or folder does not exist.
        OSError: storage failed for an hour.
    """
    pause, until = FIRST_RETRY_SECONDS, time.monotonic() + STORAGE_RETRY_SECONDS
    while True:
        try:
            return await in_thread(work, *args, **kwargs)
        except FileNotFoundError:
            raise
        except OSError as error:
            if time.monotonic() >= until:
                raise
            logger.warning("storage error, retry in %g s: %s", pause, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_RETRY_SECONDS)


def write_atomically(
    path: Place, content: bytes, *, mode: int | None = None, durable: bool = True
) -> None:
    """Writes a file atomically.

    Args:
        path: of the file; missing folders are created.
        content: of the file.
        mode: permissions on a local disk; by default those of the umask.
        durable: sync to disk before returning.
    """
    with new_file(path, durable=durable) as part:
        if mode is not None:
            part.touch(mode)
        part.write_bytes(content)


def make_private(folder: Place) -> None:
    """Creates a folder on a local disk that only this user may enter; others are left as they are.

    Missing parents are created likewise.
    """
    if not isinstance(folder, Path) or folder.is_dir():
        return
    make_private(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)


def copy_atomically(source: bytes | Place, target: Place) -> None:
    """Writes the content of a file, or bytes, as `write_atomically`, in constant memory."""
    if isinstance(source, bytes):
        write_atomically(target, source)
        return
    with new_file(target, durable=True) as part:
        shutil.copyfile(on_disk(source), part)


class VideoFolder:
    """One video in storage; the folder is created by the first write."""

    def __init__(self, path: str | Place) -> None:
        self.path = place(path)

    @property
    def id(self) -> str:
        """Video id, the name of the folder."""
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
        """Prepared request, while the video is rendered."""
        return self.path / "prepared.safetensors"

    @property
    def upload(self) -> Place | None:
        """The uploaded motion video, if the motion came as one."""
        return next(iter(sorted(self.path.glob("upload.*"))), None)

    @property
    def photos(self) -> list[Place]:
        """Photos in the order of the request."""
        return sorted((self.path / "photos").glob("*.img"), key=lambda path: int(path.stem))

    def exists(self) -> bool:
        """Whether the video was accepted and is not deleted."""
        return (self.path / "request.json").is_file() and not self.is_deleted()

    def owners(self) -> list[str]:
        """Name of the key that created it."""
        return [self.request().owner]

    def mark_deleted(self) -> None:
        """Cancels all work on the video; `remove` deletes the files."""
        write_atomically(self.path / "deleted", b"")

    def is_deleted(self) -> bool:
        """Whether the video was deleted."""
        return (self.path / "deleted").is_file() or not self.path.is_dir()

    def remove(self) -> None:
        """Removes the folder, its marker last, so that a partial removal stays deleted."""
        self.drop_chunks()
        for path in sorted(self.path.glob("*"), key=lambda path: path.name == "deleted"):
            remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
        remove_tree(self.path)

    def request(self) -> RenderRequest:
        """Parameters of the video."""
        return RenderRequest.model_validate_json((self.path / "request.json").read_bytes())

    def mark(self) -> str:
        """Watermark payload, a function of the inputs: equal requests give equal frames."""
        request = self.request().model_dump_json(exclude={"owner", "notes", "timeout_s"})
        return watermark.code_of(digest(request, *self.photos, self.upload or self.motion).encode())

    def video(self) -> Video:
        """The video object as last written."""
        return Video.model_validate_json((self.path / "video.json").read_bytes())

    def update(self, **changes: Any) -> Video:
        """Writes some fields of the video object; once rendering starts, only the renderer does."""
        video = Video.model_validate(self.video().model_dump() | changes)
        content = video.model_dump_json(indent=1).encode()
        write_atomically(
            self.path / "video.json", content, durable=not changes.keys() <= TRANSIENT_FIELDS
        )
        return video

    def fail(self, code: str, message: str) -> Video:
        """Marks the video as failed; `code` is for programs, the message for users."""
        error = JobError(code=code, message=message)
        return self.update(status="failed", completed_at=int(time.time()), error=error)

    def chunk(self, indices: range) -> Place:
        """File of a chunk of frames."""
        name = f"{indices.start:06d}-{indices.stop:06d}.safetensors"
        return self.path / "chunks" / name

    def finished_chunks(self) -> Iterator[tuple[range, Place]]:
        """Finished chunks in order."""
        for path in sorted((self.path / "chunks").glob("*.safetensors")):
            start, stop = (int(number) for number in path.stem.split("-"))
            yield range(start, stop), path

    def drop_torn_chunks(self) -> None:
        """Deletes unreadable chunks, as after a power cut, so that they are rendered again."""
        for _, path in self.finished_chunks():
            try:
                read_chunk(path)
            except (safetensors.SafetensorError, KeyError):
                logger.warning(
                    "%s: chunk %s cannot be read and is rendered again", self.id, path.name
                )
                path.unlink(missing_ok=True)

    def finished_frames(self) -> set[int]:
        """Indices of finished frames."""
        return {index for indices, _ in self.finished_chunks() for index in indices}

    def write_chunk(self, indices: range, frames: UInt8[np.ndarray, "n H W 3"]) -> None:
        """Stores a finished chunk."""
        assert len(indices) == len(frames), (indices, frames.shape)
        # A deleted folder must not be recreated.
        if not self.path.is_dir():
            raise FileNotFoundError(str(self.path))
        # Uncompressed: compression would dominate the time per frame, for files that are deleted
        # with the end of the video.
        with new_file(self.chunk(indices)) as part:
            safetensors.numpy.save_file({"frames": np.ascontiguousarray(frames)}, part)

    def frames(
        self, following: int = 0, known: Mapping[int, range] | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Finished frames in order, each once, one chunk in memory at a time.

        Args:
            following: first index; stops before the first unfinished frame.
            known: finished chunks by first frame; without it storage is listed, which takes
                longer the more chunks there are.
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
        """Deletes intermediate files."""
        remove_tree(self.path / "chunks")
        self.prepared.unlink(missing_ok=True)


def successive(following: int, stretches: Mapping[int, range]) -> Iterator[range]:
    """Consecutive chunks from `following` on."""
    while following in stretches:
        yield stretches[following]
        following = stretches[following].stop


def read_chunk(path: Place) -> UInt8[np.ndarray, "n H W 3"]:
    """Frames of one chunk."""
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
        motion: bytes | Place,
        motion_suffix: str,
        video_id: str | None = None,
        **known: Any,
    ) -> VideoFolder:
        """Stores a new video: its inputs, then the request.

        Args:
            request: parameters.
            photos: encoded images (PNG, JPEG, …).
            motion: a pose track (`.npz`) or an encoded video.
            motion_suffix: ".npz" for a pose track, the video's own suffix otherwise.
            video_id: by default a new, unguessable id that sorts by creation time.
            known: fields of the video object that are known already, such as its size.
        """
        folder = self.folder(video_id or new_id("video"))
        for number, photo in enumerate(photos):
            write_atomically(folder.path / "photos" / f"{number}.img", photo)
        name = "motion.npz" if motion_suffix == ".npz" else f"upload{motion_suffix}"
        copy_atomically(motion, folder.path / name)
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
        """Folder of an id, whether or not it exists.

        Raises:
            InputError: the id is not a valid name.
        """
        return VideoFolder(self.root / checked_name("id", video_id))

    def folders(self) -> list[VideoFolder]:
        """All accepted videos, unordered."""
        folders = [VideoFolder(path.parent) for path in self.root.glob("*/request.json")]
        return [folder for folder in folders if folder.exists()]

    def clear_abandoned(self, before: float) -> None:
        """Deletes folders older than a Unix time that were never accepted."""
        for path in self.root.glob("video_*"):
            is_old = VIDEO_ID.fullmatch(path.name) and path.is_dir() and modified(path) < before
            if is_old and not (path / "request.json").exists():
                remove_tree(path)

    def check(self) -> None:
        """Writes, reads and deletes a file.

        Raises:
            OSError: storage does not work.
        """
        content = secrets.token_hex(8)
        path = self.root / f".alive-{content}"
        try:
            write_atomically(path, content.encode())
            if path.read_bytes() != content.encode():
                raise OSError("storage returned other content than was written")
        finally:
            path.unlink(missing_ok=True)

    def deleted(self) -> list[VideoFolder]:
        """Videos that are marked as deleted and still have files."""
        marks = self.root.glob("video_*/deleted")
        return [VideoFolder(path.parent) for path in marks if VIDEO_ID.fullmatch(path.parent.name)]


def new_id(kind: str) -> str:
    """An unguessable id; ids of one kind sort by creation time."""
    return f"{kind}_{time.time_ns() // 1000:014x}{secrets.token_hex(10)}"


def checked_name(field: str, name: str) -> str:
    """Returns a name that is safe as a file name.

    Raises:
        InputError: it is empty, longer than 100, or has other characters than letters, digits,
            '.', '_' and '-'.
    """
    if not SAFE_NAME.fullmatch(name):
        raise InputError(
            f"{field} must be 1 to 100 letters, digits, '.', '_' or '-' "
            f"and begin with a letter or digit, got {name[:120]!r}"
        )
    return name


def stamp(folder: Path) -> str:
    """Twelve hex digits that change when a file in the folder is written, from file metadata."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return digest(*(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states))[:12]


def digest(*parts: bytes | Place | str) -> str:
    """SHA-256 over strings and the bytes of files, in order; reads files in pieces."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        if isinstance(content, bytes):
            total.update(len(content).to_bytes(8, "big") + content)
            continue
        with on_disk(content).open("rb") as file:
            total.update(os.fstat(file.fileno()).st_size.to_bytes(8, "big"))
            while piece := file.read(2**20):
                total.update(piece)
    return total.hexdigest()
