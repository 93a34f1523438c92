"""The service without its surroundings: who may ask, and what is done. Knows neither HTTP nor Ray.

`serve.api` speaks HTTP for it, and a `Backend` does the work; tests bring a backend of their own.
"""

import asyncio
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dreampose.config import Recipe
from dreampose.errors import InputError
from serve.config import Settings
from serve.keys import Keys
from serve.service.backend import Backend
from serve.service.limits import Concurrency, Live, Rate
from serve.service.metrics import Measures, log
from serve.service.moderation import Screen
from serve.service.motion_library import Motions
from serve.service.subject_library import People
from serve.service.uploads import Facts, check_motion
from serve.service.video_queue import Desk

SWEEP_SECONDS = 600.0
"""How often what is too old is looked for."""
INTAKE = 4
"""Uploads that are looked at side by side; bounds memory, since they are read whole."""
SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class Service:
    """All that the interface needs, and the limits in one place.

    Args:
        settings: of the application.
        backend: what renders, reads poses and finetunes.
        measures: where numbers go.
    """

    def __init__(self, settings: Settings, backend: Backend, measures: Measures) -> None:
        self.settings = settings
        self.backend = backend
        self.measures = measures
        self.recipe = settings.recipe()
        self.live = live = Live(settings.limits())
        self.keys = Keys(settings.keys)
        self.screen = Screen(settings.nsfw_model, settings.nsfw_threshold)
        self.desk = Desk(settings, live, backend, measures)
        self.motions = Motions(settings, live, backend)
        self.people = People(settings, live, backend, measures)
        self.requests = Rate(lambda: live.limits.requests_per_minute, "requests")
        self.posts = Rate(lambda: live.limits.posts_per_minute, "uploads")
        self.streams = Concurrency(lambda: live.limits.streams_per_key, "event streams")
        self.intake = asyncio.Semaphore(INTAKE)
        self.sweeper: asyncio.Task[None] | None = None
        self._default: tuple[bytes, Facts] | None = None

    @property
    def size(self) -> str:
        """Of videos that ask for none, as WIDTHxHEIGHT."""
        return f"{self.recipe.width}x{self.recipe.height}"

    def recipe_for(self, text: str) -> Recipe:
        """The recipe at a size such as 512x640, the width first; `recipe` itself for its own or ''.

        Raises:
            InputError: it is none, or the model cannot or may not render frames of it.
        """
        if text in ("", self.size):
            return self.recipe
        if not (found := SIZE.fullmatch(text)):
            raise InputError(
                f"size must be WIDTHxHEIGHT, such as {self.size}, the model's own, "
                f"got {text[:120]!r}"
            )
        width, height = int(found[1]), int(found[2])
        own, least = self.recipe, min(self.recipe.width, self.recipe.height) // 2
        most = int(self.live.limits.max_scale * own.width * own.height)
        if min(width, height) < least or width * height > most:
            raise InputError(
                f"size must have sides of at least {least} and at most {most} pixels in all, "
                f"got {text}"
            )
        return own.at(height, width)

    async def open(self) -> None:
        """Takes up what an earlier service left in storage.

        Raises:
            InputError: the file of keys cannot be used.
        """
        self.keys.hashes()
        await self.desk.open()
        await self.motions.open()
        await self.people.open()
        self.sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """Lets go of what is under way, which stays in storage."""
        if self.sweeper:
            self.sweeper.cancel()
        await self.desk.close()
        await self.motions.close()
        await self.people.close()

    async def _sweep(self) -> None:
        """Takes away now and then what is too old."""
        while True:
            try:
                await self.desk.sweep()
                await self.motions.sweep()
            except OSError:
                # Storage that hiccups is no reason to stop looking.
                logging.getLogger("ray.serve").exception("sweep")
            await asyncio.sleep(SWEEP_SECONDS)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Takes new limits, from now on and without a restart.

        Raises:
            InputError: no limit has such a name or may have such a value.
        """
        try:
            self.live.limits = self.settings.limits(user_config)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError(f"{name} must be a limit of the service: {first['msg']}") from error
        log("limits set", **dict(user_config))

    async def look_at_motion(self, content: bytes, recipe: Recipe) -> Facts:
        """What an uploaded motion is.

        Args:
            content: of the file.
            recipe: of the frames; a pose track must have their aspect.

        Raises:
            InputError: it cannot be used.
        """

        def look() -> Facts:
            with tempfile.TemporaryDirectory() as name:
                path = Path(name, "motion")
                path.write_bytes(content)
                return check_motion(path, self.live.limits, recipe)

        return await asyncio.to_thread(look)

    async def default_motion(self) -> tuple[bytes, Facts]:
        """The motion of requests that name none.

        Raises:
            InputError: there is none, or it does not fit the model.
        """
        if self._default is None:
            path = Path(self.settings.default_motion or ".")
            if not path.is_file():
                raise InputError("motion must be given: a file, or the id of a stored motion")
            content = await asyncio.to_thread(path.read_bytes)
            try:
                self._default = content, await self.look_at_motion(content, self.recipe)
            except InputError as error:
                raise InputError(f"motion must be given; the default one: {error}") from error
        return self._default

    async def ready(self) -> None:
        """Goes the way of a request: storage, renderer, sampler.

        Raises:
            Exception: something is in the way.
        """
        await self.alive()
        async with asyncio.timeout(self.settings.ready_timeout_s):
            await self.backend.ready()

    async def alive(self) -> None:
        """Writes and reads in storage.

        Raises:
            OSError: that cannot be done.
        """
        async with asyncio.timeout(self.settings.ready_timeout_s):
            await asyncio.to_thread(self.desk.store.check)
