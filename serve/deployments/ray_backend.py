"""Backend of the service on Ray deployments and tasks."""

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from cluster import worker_requests
from cluster.capacity import Allocation, Capacity
from dreampose.errors import InputError
from serve.config import Settings
from serve.deployments.finetuning import FinetuneRequest, finetune
from serve.deployments.retries import call_with_retries
from serve.service.metrics import Metrics
from serve.service.records import Video

MAX_RETRIES = 3


class RayBackend:
    """Implementation of `serve.service.backend.Backend` on a cluster.

    Args:
        settings: of the application.
        capacity: of the cluster.
        renderer: deployment handle.
        extractor: deployment handle.
        metrics: counts retries.
    """

    def __init__(
        self,
        settings: Settings,
        capacity: Capacity,
        renderer: DeploymentHandle[Any],
        extractor: DeploymentHandle[Any],
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.capacity = capacity
        self.renderer = renderer
        self.extractor = extractor
        self.metrics = metrics

    async def render(self, folder: str) -> Video:
        """Renders a video, retrying on another renderer if one dies."""
        return await self._try(lambda: self.renderer.render.remote(folder), f"{folder}: renderer")

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
        """Checks renderer and sampler."""
        await self.renderer.ready.remote()

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
