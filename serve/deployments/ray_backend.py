"""The service's work done by Ray: calls of deployments, and tasks. Knows nothing of HTTP."""

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from cluster import resources
from dreampose.errors import InputError
from serve.config import Settings
from serve.deployments.finetuning import Order, finetune
from serve.deployments.retries import call_with_retries
from serve.service.metrics import Measures
from serve.service.records import Video

FINETUNE_SHARE = 0.25
"""Part of the CPUs that one finetuning asks for; samplers leave half of them free."""
MAX_RETRIES = 3


class RayBackend:
    """A `serve.service.backend.Backend` on a cluster.

    Args:
        settings: of the application.
        renderer: handle of the deployment.
        extractor: handle of the deployment.
        measures: where lost calls are counted.
    """

    def __init__(
        self,
        settings: Settings,
        renderer: DeploymentHandle[Any],
        extractor: DeploymentHandle[Any],
        measures: Measures,
    ) -> None:
        self.settings = settings
        self.renderer = renderer
        self.extractor = extractor
        self.measures = measures

    async def render(self, folder: str) -> Video:
        """Renders a video, by another renderer if the first dies."""
        return await self._try(lambda: self.renderer.render.remote(folder), f"{folder}: renderer")

    async def extract(self, upload: str, target: str, estimator: str) -> None:
        """Writes the pose track of a video, by another replica if the first dies."""
        await self._try(
            lambda: self.extractor.extract.remote(upload, target, estimator), f"{target}: poses"
        )

    async def finetune(self, job: str) -> None:
        """Runs a task to its end; a caller that is cancelled ends it.

        Raises:
            InputError: nobody is in a photo, or no GPU is left for finetuning.
        """
        order = Order(
            model=self.settings.model,
            num_steps=self.settings.finetune_steps,
            num_vae_steps=self.settings.finetune_vae_steps,
            num_threads=resources.threads_each(int(ray.cluster_resources().get("CPU", 1)), 2),
        )
        needs = finetune_needs(self.settings, ray.cluster_resources(), ray.available_resources())
        # Ray's types know neither these options nor what they give.
        make_task: Any = ray.remote
        task = make_task(max_retries=MAX_RETRIES, retry_exceptions=[OSError], **needs)(finetune)
        reference = task.remote(job, order)
        try:
            await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise

    async def ready(self) -> None:
        """Goes through renderer and sampler."""
        await self.renderer.ready.remote()

    async def _try(self, call: Any, what: str) -> Any:
        return await call_with_retries(
            call,
            what=what,
            max_tries=self.settings.max_tries,
            first_delay=self.settings.first_delay,
            measures=self.measures,
        )


def finetune_needs(
    settings: Settings, total: Mapping[str, float], free: Mapping[str, float]
) -> dict[str, float]:
    """What one finetuning asks of the cluster.

    Raises:
        InputError: samplers hold every GPU, and Ray would wait for one in silence.
    """
    cpus = FINETUNE_SHARE * total.get("CPU", 1)
    # Ray takes fractions below one and whole numbers above.
    needs: dict[str, float] = {"num_cpus": float(int(cpus)) if cpus >= 1 else cpus}
    gpus = settings.finetune_gpus
    if gpus is None and total.get("GPU", 0) > 0:
        gpus = 1.0
        if free.get("GPU", 0) < gpus:
            raise InputError(
                "finetuning must have a GPU of its own, got none free: whoever runs this can set "
                "fewer replicas, or finetune_gpus where nodes are added on demand"
            )
    return needs | ({"num_gpus": gpus} if gpus else {})
