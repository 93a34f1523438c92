"""Service logic behind the HTTP API."""

import asyncio
import contextlib
import logging
import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from dreampose.config import Recipe
from dreampose.errors import InputError
from dreampose.io.paths import place
from serve.config import Settings
from serve.keys import Keys
from serve.service.backend import Backend
from serve.service.idempotency import IdempotencyStore
from serve.service.lease import LEASE_SECONDS
from serve.service.limits import ConcurrencyLimiter, LiveLimits, RateLimiter
from serve.service.metrics import Metrics, log
from serve.service.moderation import PhotoModerator
from serve.service.motion_library import MotionLibrary
from serve.service.store import make_private
from serve.service.subject_library import SubjectLibrary
from serve.service.uploads import (
    ReceivedMotion,
    check_motion,
    normalize_photo,
    rewrite_motion,
)
from serve.service.video_queue import VideoQueue

SWEEP_SECONDS = 600.0
"""Interval of the deletion of expired objects."""
FIRST_SWEEP_SECONDS = 10.0
RESUME_SECONDS = 5.0
"""Interval at which work of other replicas is looked for."""
MAX_PARALLEL_CHECKS = 4
"""Uploads that are checked at a time; bounds memory."""
MIN_PHOTO_SIDE = 1024
"""Photos are stored with this side at least: enough to detect a pose, whatever the model."""
SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class Service:
    """Everything the HTTP API needs: queues, limits, keys.

    Args:
        settings: of the application.
        backend: renders, extracts poses and finetunes.
        metrics: sink for metrics.
    """

    def __init__(self, settings: Settings, backend: Backend, metrics: Metrics) -> None:
        self.settings = settings
        self.backend = backend
        self.metrics = metrics
        self.recipe = settings.recipe()
        self.live = live = LiveLimits(settings.limits())
        self.keys = Keys(settings.keys)
        self.moderator = PhotoModerator(settings.nsfw_model, settings.nsfw_threshold)
        self.videos = VideoQueue(settings, live, backend, metrics)
        self.motions = MotionLibrary(settings, live, backend, metrics)
        self.subjects = SubjectLibrary(settings, live, backend, metrics)
        self.requests = RateLimiter(lambda: live.limits.requests_per_minute, "requests")
        self.posts = RateLimiter(lambda: live.limits.posts_per_minute, "uploads")
        self.streams_per_key = ConcurrencyLimiter(
            lambda: live.limits.streams_per_key, "event streams per key"
        )
        self.streams = ConcurrencyLimiter(lambda: live.limits.streams, "event streams")
        self.uploads_per_key = ConcurrencyLimiter(
            lambda: live.limits.uploads_per_key, "parallel uploads per key"
        )
        self.uploads = ConcurrencyLimiter(lambda: live.limits.uploads, "parallel uploads")
        self.checking = asyncio.Semaphore(MAX_PARALLEL_CHECKS)
        self.idempotency = IdempotencyStore(place(settings.storage) / ".idempotency")
        self.photo_side = max(MIN_PHOTO_SIDE, 2 * max(self.recipe.height, self.recipe.width))
        self.model_changed = int(Path(settings.model, "model_index.json").stat().st_mtime)
        self.sweeper: asyncio.Task[None] | None = None
        self._default: dict[tuple[int, int], ReceivedMotion] = {}

    @property
    def size(self) -> str:
        """Default frame size as WIDTHxHEIGHT."""
        return f"{self.recipe.width}x{self.recipe.height}"

    def recipe_for(self, text: str) -> Recipe:
        """The recipe for a frame size as WIDTHxHEIGHT; `recipe` itself for its own size or ''.

        Raises:
            InputError: the size is malformed, or not one that the model can render.
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
        """Resumes what is unfinished in storage.

        Raises:
            InputError: the key file cannot be read.
        """
        self.keys.hashes()
        settings = self.settings
        for path in filter(None, (settings.storage, settings.motions, settings.subjects)):
            # Storage that cannot be reached is reported by the probes.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(make_private, place(path))
        await self.videos.open()
        await self.motions.open()
        await self.subjects.open()
        self.sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """Stops; unfinished work stays in storage."""
        if self.sweeper:
            self.sweeper.cancel()
        await self.videos.close()
        await self.motions.close()
        await self.subjects.close()

    async def _sweep(self) -> None:
        """Resumes what other replicas left, and deletes what has expired."""
        swept = time.monotonic() - SWEEP_SECONDS + FIRST_SWEEP_SECONDS
        # The leases of a replica that crashed before this one started are free by then.
        settled_at = time.monotonic() + 5 * LEASE_SECONDS
        while True:
            try:
                if time.monotonic() - swept > SWEEP_SECONDS:
                    await self.videos.sweep()
                    await self.motions.sweep()
                    await asyncio.to_thread(self.idempotency.expire)
                    swept = time.monotonic()
                elif self.settings.ingress_replicas > 1 or time.monotonic() < settled_at:
                    for queue in (self.videos, self.motions, self.subjects):
                        await queue.resume()
            except OSError:
                # Storage errors may be transient.
                logging.getLogger("ray.serve").exception("sweep")
            await asyncio.sleep(RESUME_SECONDS)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Applies new limits.

        Raises:
            InputError: a limit has an unknown name or an invalid value.
        """
        try:
            self.live.limits = self.settings.limits(user_config)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError(f"{name} must be a limit of the service: {first['msg']}") from error
        log("limits set", **dict(user_config))

    async def normalize_photos(self, files: Sequence[BinaryIO], field: str) -> list[bytes]:
        """Checks the photos of a request and reduces them to what the model can use.

        Raises:
            InputError: there is none, there are too many, or one cannot be used.
        """
        limits = self.live.limits
        if not 1 <= len(files) <= limits.max_photos:
            raise InputError(
                f"{field} must hold 1 to {limits.max_photos} photos as files, got {len(files)}"
            )

        def normalize() -> list[bytes]:
            found: list[bytes] = []
            for number, file in enumerate(files, start=1):
                photo = normalize_photo(
                    file.read(), limits, max_side=self.photo_side, number=number
                )
                self.moderator.check(photo, number)
                found.append(photo)
            return found

        async with self.checking:
            return await asyncio.to_thread(normalize)

    @asynccontextmanager
    async def received_motion(
        self, file: BinaryIO, recipe: Recipe
    ) -> AsyncGenerator[ReceivedMotion, None]:
        """Checks an uploaded motion; gives a temporary file with the part that is stored.

        Args:
            file: the upload.
            recipe: of the frames; a pose track must have their aspect.

        Raises:
            InputError: it cannot be used.
        """

        def receive(folder: str) -> ReceivedMotion:
            upload = Path(folder, "upload")
            with upload.open("wb") as copy:
                shutil.copyfileobj(file, copy, 2**20)
            info = check_motion(upload, self.live.limits, recipe)
            kept = Path(folder, f"motion{info.suffix}")
            rewrite_motion(upload, kept, info)
            return ReceivedMotion(path=kept, info=info)

        with tempfile.TemporaryDirectory() as folder:
            async with self.checking:
                received = await asyncio.to_thread(receive, folder)
            yield received

    async def default_motion(self, recipe: Recipe) -> ReceivedMotion:
        """The motion of requests without one.

        Raises:
            InputError: there is none, or it does not fit the recipe.
        """
        path = Path(self.settings.default_motion or ".")
        if not path.is_file():
            raise InputError("motion must be given: a file, or the id of a stored motion")
        size = recipe.height, recipe.width
        if size not in self._default:
            try:
                info = await asyncio.to_thread(check_motion, path, self.live.limits, recipe)
            except InputError as error:
                raise InputError(f"motion must be given; the default one: {error}") from error
            self._default[size] = ReceivedMotion(path=path, info=info)
        return self._default[size]

    async def ready(self) -> None:
        """Checks storage, renderer and sampler.

        Raises:
            Exception: one of them does not work.
        """
        await self.alive()
        async with asyncio.timeout(self.settings.ready_timeout_s):
            await self.backend.ready()

    async def alive(self) -> None:
        """Checks storage.

        Raises:
            OSError: it does not work.
        """
        async with asyncio.timeout(self.settings.ready_timeout_s):
            await asyncio.to_thread(self.videos.store.check)
