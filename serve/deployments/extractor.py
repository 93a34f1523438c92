"""Replicas that read poses from videos. Knows nothing of what the poses are for, nor of HTTP."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from dreampose.errors import InputError
from dreampose.io.paths import Place, new_file, on_disk, place
from serve.service.backend import StoppedError


class Extractor:
    """Reads the poses of one video at a time, in a thread of its own."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1)

    async def extract(self, upload: str, target: str, estimator: str) -> None:
        """Writes a video's pose track under the name that tells its size.

        A caller that is cancelled frees the replica within one frame.

        Args:
            upload: the video.
            target: `HEIGHTxWIDTH-….npz`; appears whole, and is left alone where it exists.
            estimator: name of the pose estimator.

        Raises:
            InputError: the video shows no pose, or is none.
        """
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(
                self.thread, extract, place(upload), place(target), estimator, stop
            )
        finally:
            stop.set()


def extract(upload: Place, target: Place, estimator: str, stop: threading.Event) -> None:
    """Writes the poses of a video, unless they are there or `stop` is set meanwhile."""
    # Here and not above: it takes seconds, and whoever deploys this class does not need it.
    from dreampose import poses

    def check(_: int) -> None:
        if stop.is_set():
            raise StoppedError

    if target.exists():
        return
    source = on_disk(upload)
    height, width = (int(side) for side in target.name.partition("-")[0].split("x"))
    try:
        motion = poses.extract(
            source, poses.estimator(estimator), height=height, width=width, progress=check
        )
    except InputError as error:
        # Where the server keeps files is nobody's business.
        raise InputError(str(error).replace(str(source), "the upload")) from error
    with new_file(target) as part:
        motion.save(part)
