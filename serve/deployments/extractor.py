"""Serve deployment that extracts poses from videos."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from dreampose.errors import InputError
from dreampose.io.paths import Place, new_file, on_disk, place
from serve.service.backend import StoppedError


class Extractor:
    """Extracts the poses of one video at a time, in a worker thread."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1)

    async def extract(self, upload: str, target: str, estimator: str) -> None:
        """Writes the pose track of a video.

        Cancelling the call stops the extraction within one frame.

        Args:
            upload: the video.
            target: `HEIGHTxWIDTH-….npz`, written atomically; an existing file is kept.
            estimator: name of the pose estimator.

        Raises:
            InputError: the video cannot be read or shows no person.
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
    """Writes the poses of a video unless the target exists or `stop` is set meanwhile."""
    # Imported late: it takes seconds, and the process that deploys this class does not need it.
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
        # Errors go to clients, which must not see paths of the server.
        raise InputError(str(error).replace(str(source), "the upload")) from error
    with new_file(target) as part:
        motion.save(part)
