"""Backend of the service on Ray deployments and tasks."""

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from cluster import resources
from dreampose.errors import InputError
from serve.config import Settings
from serve.deployments.finetuning import FinetuneRequest, finetune
from serve.deployments.retries import call_with_retries
from serve.service.metrics import Metrics
from serve.service.records import Video

FINETUNE_SHARE = 0.25
"""Share of the CPUs that one finetuning requests; samplers leave half of them free."""
MAX_RETRIES = 3


class RayBackend:
    """Implementation of `serve.service.backend.Backend` on a cluster.

    Args:
        settings: of the application.
        renderer: deployment handle.
        extractor: deployment handle.
        metrics: counts retries.
    """

    def __init__(
        self,
        settings: Settings,
        renderer: DeploymentHandle[Any],
        extractor: DeploymentHandle[Any],
        metrics: Metrics,
    ) -> None:
        self.settings = settings
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
        request = FinetuneRequest(
            model=self.settings.model,
            num_steps=self.settings.finetune_steps,
            num_vae_steps=self.settings.finetune_vae_steps,
            num_threads=resources.threads_each(int(ray.cluster_resources().get("CPU", 1)), 2),
        )
        resources_needed = finetune_resources(
            self.settings, ray.cluster_resources(), ray.available_resources()
        )
        # Ray does not type these options.
        make_task: Any = ray.remote
        task = make_task(max_retries=MAX_RETRIES, retry_exceptions=[OSError], **resources_needed)(
            finetune
        )
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


def finetune_resources(
    settings: Settings, total: Mapping[str, float], free: Mapping[str, float]
) -> dict[str, float]:
    """Resource request of one finetuning.

    Raises:
        InputError: samplers hold every GPU, so that the task would wait forever.
    """
    cpus = FINETUNE_SHARE * total.get("CPU", 1)
    # Ray takes fractions below one and whole numbers above.
    needs: dict[str, float] = {"num_cpus": float(int(cpus)) if cpus >= 1 else cpus}
    gpus = settings.finetune_gpus
    if gpus is None and total.get("GPU", 0) > 0:
        gpus = 1.0
        if free.get("GPU", 0) < gpus:
            raise InputError(
                "finetuning needs a GPU and none is free; lower the setting replicas, or set "
                "finetune_gpus where nodes are added on demand"
            )
    return needs | ({"num_gpus": gpus} if gpus else {})
