"""Interface of the service to rendering, extraction and finetuning."""

from typing import Protocol

from serve.service.records import Video


class StoppedError(Exception):
    """The work was cancelled."""


class Backend(Protocol):
    """Work on folders in storage; every method resumes what was left unfinished."""

    async def render(self, folder: str) -> Video:
        """Renders a video folder and returns its final state.

        Ends early as 'cancelled' once the folder is marked as deleted.
        """
        ...

    async def extract(self, upload: str, target: str, estimator: str) -> None:
        """Writes the pose track of a video.

        Raises:
            InputError: the video shows no person.
        """
        ...

    async def finetune(self, job: str) -> None:
        """Finetunes on the photos of a subject folder."""
        ...

    async def ready(self) -> None:
        """Checks that a request can reach renderer and sampler.

        Raises:
            Exception: it cannot.
        """
        ...
