"""Writes a video's MP4 while its frames come in. Knows nothing of who renders them."""

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

LOOK_SECONDS = 1.0
"""Storage is looked through this often where nobody tells of news."""
TELL_SECONDS = 0.25
"""At least so long lies between two writings of a video's progress."""


class News:
    """Tells a thread that there are more frames, or that there will be none."""

    def __init__(self, num_found: int = 0) -> None:
        """Begins with what is in storage already.

        Args:
            num_found: frames that were rendered before.
        """
        self.num_found = num_found
        self.num_rendered = 0
        self.stretches: dict[int, range] = {}
        """What is finished as far as it is known, by the first frame."""
        self._more = threading.Event()
        self._ended = False

    def tell(self, indices: range) -> None:
        """These frames are in storage now."""
        self.stretches[indices.start] = indices
        self.num_rendered += len(indices)
        self._more.set()

    def end(self) -> None:
        """There will be no more."""
        self._ended = True
        self._more.set()

    def wait(self) -> bool:
        """Returns when there may be more frames: whether of all that came since it was told.

        Raises:
            StoppedError: there will be none.
        """
        told = self._more.wait(LOOK_SECONDS)
        self._more.clear()
        self.check()
        return told

    def check(self) -> None:
        """Raises `StoppedError` where nobody waits for the video any more."""
        if self._ended:
            raise StoppedError


def write_result(folder: VideoFolder, num_frames: int, fps: float, news: News | None = None) -> str:
    """Writes the MP4 and its poster from the finished chunks; gives the size as WIDTHxHEIGHT.

    Args:
        folder: of the video.
        num_frames: how many there will be.
        fps: frames per second.
        news: where frames that are missing are waited for; without it all must be there.

    Raises:
        RuntimeError: frames are missing and nobody brings them.
        StoppedError: the same, of a video that was given up.
    """
    frames = arriving(folder, num_frames, news)
    first = next(frames)
    buffer = io.BytesIO()
    Image.fromarray(first).save(buffer, format="PNG")
    write_atomically(folder.poster, buffer.getvalue())
    with new_file(folder.result, durable=True) as part:
        provenance.write(part, itertools.chain([first], frames), fps, code=folder.mark())
    return f"{first.shape[1]}x{first.shape[0]}"


def arriving(
    folder: VideoFolder, num_frames: int, news: News | None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """All frames in order, one chunk in memory at a time; see `write_result`."""
    following, told = 0, float("-inf")
    known: Mapping[int, range] | None = None
    if news is not None:
        news.stretches.update((each.start, each) for each, _ in folder.finished_chunks())
        known = news.stretches
    while following < num_frames:
        for frame in folder.frames(following, known):
            if news is not None:
                news.check()
            yield frame
            following += 1
        if following < num_frames:
            if news is None:
                raise RuntimeError(f"{num_frames} frames must be in storage, got {following}")
            known = news.stretches if news.wait() else None
            if time.monotonic() - told >= TELL_SECONDS:
                tell_progress(folder, num_frames, news)
                told = time.monotonic()


def tell_progress(folder: VideoFolder, num_frames: int, news: News) -> None:
    """Writes how far a video is; 100 is kept for the moment when the file is there."""
    num_rendered = news.num_rendered
    done = min(99, 100 * (news.num_found + num_rendered) // num_frames)
    folder.update(progress=done, num_frames_rendered=num_rendered)
