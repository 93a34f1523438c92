"""Backend of the service on Ray deployments and tasks."""

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from cluster import worker_requests
from cluster.capacity import Allocation, Capacity
from dreampose.errors import InputError
from dreampose.io.paths import place
from serve.config import Settings
from serve.deployments.cells import cells_by_preference
from serve.deployments.finetuning import FinetuneRequest, finetune
from serve.deployments.retries import call_with_retries
from serve.service.metrics import Metrics
from serve.service.records import Video

MAX_RETRIES = 3
TRIES_PER_CELL = 4
"""Attempts in one cell before a video moves to the next one."""


class RayBackend:
    """Implementation of `serve.service.backend.Backend` on a cluster.

    Args:
        settings: of the application.
        capacity: of the cluster.
        renderers: deployment handles, one per cell.
        extractor: deployment handle.
        metrics: counts retries.
    """

    def __init__(
        self,
        settings: Settings,
        capacity: Capacity,
        renderers: Sequence[DeploymentHandle[Any]],
        extractor: DeploymentHandle[Any],
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.capacity = capacity
        self.renderers = renderers
        self.extractor = extractor
        self.metrics = metrics

    async def render(self, folder: str) -> Video:
        """Renders a video in its cell, or in the next one if its renderer does not come back."""
        cells = cells_by_preference(place(folder).name, len(self.renderers))
        attempts = itertools.count()

        def call() -> Any:
            cell = cells[next(attempts) // TRIES_PER_CELL % len(cells)]
            return self.renderers[cell].render.remote(folder)

        return await self._try(call, f"{folder}: renderer")

    async def extract(self, upload: str, target: str, estimator: str) -> None:
        """Writes the pose track of a video, retrying on another replica if one dies."""
        await self._try(
            lambda: self.extractor.extract.remote(upload, target, estimator), f"{target}: poses"
        )

    async def finetune(self, job: str) -> None:
        """Runs a finetuning task; cancelling the call cancels the task.

        Raises:
            InputError: a photo shows no person, or no GPU is free.
        """
        allocation = finetune_allocation(self.settings, self.capacity, ray.available_resources())
        request = FinetuneRequest(
            model=self.settings.model,
            num_steps=self.settings.finetune_steps,
            num_vae_steps=self.settings.finetune_vae_steps,
            num_threads=allocation.threads,
        )
        # Ray does not type these options.
        make_task: Any = ray.remote
        task = make_task(
            max_retries=MAX_RETRIES, retry_exceptions=[OSError], **allocation.remote_args
        )(finetune)
        reference = task.remote(job, request)
        try:
            await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise

    async def ready(self) -> None:
        """Checks that at least one cell has a working renderer and sampler."""
        calls = [asyncio.ensure_future(self._ready(renderer)) for renderer in self.renderers]
        try:
            for call in asyncio.as_completed(calls):
                if await call:
                    return
        finally:
            for call in calls:
                call.cancel()
        raise RuntimeError("no cell has a working sampler")

    async def _ready(self, renderer: DeploymentHandle[Any]) -> bool:
        try:
            await renderer.ready.remote()
        except Exception as error:  # noqa: BLE001 - another cell may be ready
            logging.getLogger("ray.serve").warning("cell: %r", error)
            return False
        return True

    async def _try(self, call: Any, what: str) -> Any:
        return await call_with_retries(
            call,
            what=what,
            max_tries=self.settings.max_tries,
            first_delay=self.settings.first_delay,
            metrics=self.metrics,
        )


def finetune_allocation(
    settings: Settings, capacity: Capacity, free: Mapping[str, float]
) -> Allocation:
    """Resources of one finetuning.

    Args:
        settings: of the application.
        capacity: of the cluster.
        free: resources that are free on it now.

    Raises:
        InputError: samplers hold every GPU and no node can be added, or no node type holds it.
    """
    request = worker_requests.stage_request("finetune", capacity.profile)
    gpus = settings.finetune_gpus
    if gpus:
        request = worker_requests.override(request, gpus=gpus)
    found = capacity.allocate(
        "finetune",
        request,
        at_most=settings.finetunes_at_once + 1,
        gpus=None if gpus is None else gpus > 0,
    )
    if gpus is None and not capacity.grows and free.get("GPU", 0) < found.worker.gpus:
        raise InputError(
            "finetuning needs a GPU and none is free; lower the setting replicas, or set "
            "finetune_gpus to wait for one"
        )
    return found
