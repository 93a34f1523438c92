"""Encoding of a video while its frames arrive."""

import io
import itertools
import threading
import time
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dreampose.io import provenance
from dreampose.io.paths import new_file
from serve.service.backend import StoppedError
from serve.service.store import VideoFolder, write_atomically

POLL_SECONDS = 1.0
"""Interval at which storage is listed when no chunk is reported."""
PROGRESS_SECONDS = 0.25
"""Minimum interval between two writes of a video's progress."""


class ChunkTracker:
    """Finished chunks of a video, shared between event loop and writer thread."""

    def __init__(self, num_existing: int = 0) -> None:
        """Starts with what is in storage.

        Args:
            num_existing: frames that were rendered before.
        """
        self.num_existing = num_existing
        self.num_rendered = 0
        self.chunks_by_start: dict[int, range] = {}
        """Known finished chunks by their first frame."""
        self._more = threading.Event()
        self._ended = False

    def add(self, indices: range) -> None:
        """Reports frames that are now in storage."""
        self.chunks_by_start[indices.start] = indices
        self.num_rendered += len(indices)
        self._more.set()

    def close(self) -> None:
        """Ends the video: no more frames will come."""
        self._ended = True
        self._more.set()

    def wait(self) -> bool:
        """Waits for more frames; False if it timed out and storage should be listed.

        Raises:
            StoppedError: the video was closed.
        """
        reported = self._more.wait(POLL_SECONDS)
        self._more.clear()
        self.check()
        return reported

    def check(self) -> None:
        """Raises `StoppedError` if the video was closed."""
        if self._ended:
            raise StoppedError


def write_result(
    folder: VideoFolder, num_frames: int, fps: float, tracker: ChunkTracker | None = None
) -> str:
    """Writes the MP4 and its poster from the finished chunks; returns the size as WIDTHxHEIGHT.

    Args:
        folder: of the video.
        num_frames: of the whole video.
        fps: frames per second.
        tracker: reports missing frames as they arrive; without it all must exist.

    Raises:
        RuntimeError: frames are missing and there is no tracker.
        StoppedError: the tracker was closed.
    """
    frames = frames_in_order(folder, num_frames, tracker)
    first = next(frames)
    buffer = io.BytesIO()
    Image.fromarray(first).save(buffer, format="PNG")
    write_atomically(folder.poster, buffer.getvalue())
    with new_file(folder.result, durable=True) as part:
        provenance.write(part, itertools.chain([first], frames), fps, code=folder.mark())
    return f"{first.shape[1]}x{first.shape[0]}"


def frames_in_order(
    folder: VideoFolder, num_frames: int, tracker: ChunkTracker | None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """All frames in order, one chunk in memory at a time; see `write_result`."""
    following, written = 0, float("-inf")
    known: Mapping[int, range] | None = None
    if tracker is not None:
        tracker.chunks_by_start.update((each.start, each) for each, _ in folder.finished_chunks())
        known = tracker.chunks_by_start
    while following < num_frames:
        for frame in folder.frames(following, known):
            if tracker is not None:
                tracker.check()
            yield frame
            following += 1
        if following < num_frames:
            if tracker is None:
                raise RuntimeError(f"only {following} of {num_frames} frames are in storage")
            known = tracker.chunks_by_start if tracker.wait() else None
            if time.monotonic() - written >= PROGRESS_SECONDS:
                write_progress(folder, num_frames, tracker)
                written = time.monotonic()


def write_progress(folder: VideoFolder, num_frames: int, tracker: ChunkTracker) -> None:
    """Writes the progress of a video; 100 is reported only once the file exists."""
    num_rendered = tracker.num_rendered
    done = min(99, 100 * (tracker.num_existing + num_rendered) // num_frames)
    folder.update(progress=done, num_frames_rendered=num_rendered)
