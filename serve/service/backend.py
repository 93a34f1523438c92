"""What the service needs done elsewhere. Knows nothing of how: Ray does it, or a stand-in."""

from typing import Protocol

from serve.service.records import Video


class StoppedError(Exception):
    """Nobody waits for the work any more, so it was left."""


class Backend(Protocol):
    """Work on folders in storage; every method may be called again for what was done halfway."""

    async def render(self, folder: str) -> Video:
        """Renders a video's folder to its end and gives its final state.

        Ends early, as 'cancelled', once the folder is marked as deleted.
        """
        ...

    async def extract(self, upload: str, target: str, estimator: str) -> None:
        """Writes the pose track of a video.

        Raises:
            InputError: the video shows no pose.
        """
        ...

    async def finetune(self, job: str) -> None:
        """Finetunes on the photos of a subject's job folder, or joins that work; see `people`."""
        ...

    async def ready(self) -> None:
        """Goes the way of a request through renderer and sampler.

        Raises:
            Exception: it is blocked; which one does not matter.
        """
        ...
