"""Serve application: deployments, their replicas and resources."""

import logging
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from cluster import worker_requests
from cluster.capacity import Allocation, Capacity, inspect, started_ray
from cluster.worker_requests import StageRequest
from dreampose.errors import InputError
from serve.api import build
from serve.config import Autoscaling, Settings
from serve.deployments.cells import cell_sizes
from serve.deployments.extractor import Extractor
from serve.deployments.ray_backend import RayBackend
from serve.deployments.renderer import Renderer
from serve.deployments.router import LeastLoadedRouter
from serve.deployments.sampler import Sampler
from serve.keys import Keys
from serve.service.metrics import RayMetrics
from serve.service.moderation import PhotoModerator
from serve.service.service import Service

SHUTDOWN_SECONDS = 1.0
"""Grace period of a replica that is stopped; unfinished work is resumed from storage."""
ROUTER_BACKOFF_SECONDS = 0.005
"""First back-off of the request router when all samplers look busy."""
CONNECTIONS = 1000
"""Requests that one ingress handles at a time, event streams included."""
MAX_SAMPLERS = 64
"""Samplers of one renderer where no number is set; those of one machine's cores are fewer still."""
MAX_LOCAL_SAMPLERS = 8
"""Samplers without a GPU on one machine where no number is set: each holds a model."""

SERVE_ENV = {
    # Saves a thread switch per call in each direction; slow work has its own threads anyway.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # The default is ten exports a second in every sampler; Prometheus scrapes every few seconds.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
}
"""Serve settings of renderer and sampler processes; see docs/scaling.md."""

logger = logging.getLogger("ray.serve")


@ray_serve.deployment
@ray_serve.ingress()
class Ingress:
    """HTTP ingress.

    All state is in storage: there may be any number of replicas, and each resumes what another one
    left unfinished.
    """

    async def __init__(
        self,
        settings: Settings,
        capacity: Capacity,
        renderers: list[DeploymentHandle[Any]],
        extractor: DeploymentHandle[Any],
    ) -> None:
        metrics = RayMetrics()
        backend = RayBackend(settings, capacity, renderers, extractor, metrics)
        self.service = Service(settings, backend, metrics)
        self.configured = False
        await self.service.open()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Builds the ASGI application in the replica."""
        return build(self.service)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies new limits from `user_config` without a restart.

        Invalid limits are logged and the previous ones stay in force: an exception would make
        Serve replace this replica, and every one after it.

        Raises:
            InputError: a limit has an unknown name or an invalid value in the first configuration.
        """
        try:
            self.service.reconfigure(user_config)
        except InputError as error:
            if not self.configured:
                raise
            logger.error("limits are unchanged: %s", error)
        self.configured = True


def sampler_allocation(
    settings: Settings, capacity: Capacity, request: StageRequest | None = None
) -> Allocation:
    """What a sampler asks for, and how many of them there may be.

    Args:
        settings: of the application.
        capacity: of the cluster.
        request: of one sampler; by default the one of the stage sample.

    Raises:
        InputError: no node type holds a sampler, or all of them together too few.
    """
    scaling = settings.sampler_autoscaling
    count = scaling.max_replicas if scaling else settings.replicas
    at_least = max(1, scaling.min_replicas) if scaling else max(1, settings.replicas)
    return capacity.allocate(
        "sample",
        request,
        workers=count or None,
        at_least=at_least,
        at_most=None
        if count
        else (MAX_SAMPLERS if capacity.profile == "cluster" else _most_on_one_machine(capacity)),
    )


def _most_on_one_machine(capacity: Capacity) -> int | None:
    return None if capacity.has_gpus else MAX_LOCAL_SAMPLERS


def renderer_app(
    settings: Settings,
    allocation: Allocation,
    extractor: ray_serve.Application | None = None,
) -> ray_serve.Application:
    """One renderer with all samplers, for callers that use a handle instead of HTTP.

    Args:
        settings: of the application.
        allocation: of the samplers; see `sampler_allocation`.
        extractor: deployment that extracts poses from videos; by default the renderer does.

    Raises:
        InputError: the model folder holds no model.
    """
    settings.recipe()
    return cell_app(settings, allocation, allocation.workers, extractor)


def cell_app(
    settings: Settings,
    allocation: Allocation,
    num_samplers: int,
    extractor: ray_serve.Application | None,
    *,
    suffix: str = "",
    scaling: Autoscaling | None = None,
) -> ray_serve.Application:
    """A renderer with its samplers.

    Args:
        settings: of the application.
        allocation: of a sampler.
        num_samplers: of this cell.
        extractor: as for `renderer_app`.
        suffix: of the names of the deployments.
        scaling: of the cell's samplers; by default that of the settings.
    """
    # Ray's `deployment` is untyped where it is not a decorator.
    deployment: Any = ray_serve.deployment
    # Its router options are typed too narrowly.
    router: Any = RequestRouterConfig
    sampler = deployment(
        Sampler,
        name=f"Sampler{suffix}",
        # One more than the renderer sends, so that readiness probes are answered under load.
        max_ongoing_requests=settings.max_held_calls + 1,
        request_router_config=router(
            request_router_class=LeastLoadedRouter,
            initial_backoff_s=ROUTER_BACKOFF_SECONDS,
            max_backoff_s=20 * ROUTER_BACKOFF_SECONDS,
        ),
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        # One line per call would repeat what the renderer's metrics show.
        logging_config=LoggingConfig(enable_access_log=False),
        ray_actor_options={**allocation.remote_args, "runtime_env": {"env_vars": SERVE_ENV}},
        **replicas(scaling or settings.sampler_autoscaling, num_samplers),
    ).bind(settings, settings.threads or allocation.threads)
    return deployment(
        Renderer,
        name=f"Renderer{suffix}",
        # Queued videos are pending calls; health checks must get through beside them.
        max_ongoing_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": SERVE_ENV}},
    ).bind(settings, num_samplers, sampler, extractor, with_metrics=True)


def cell_apps(
    settings: Settings, allocation: Allocation, extractor: ray_serve.Application
) -> list[ray_serve.Application]:
    """All cells; a single one has the names `Renderer` and `Sampler` without a number."""
    sizes = cell_sizes(allocation.workers, settings.samplers_per_cell, settings.cells)
    scaling = settings.sampler_autoscaling
    apps: list[ray_serve.Application] = []
    for index, size in enumerate(sizes):
        own = scaling and scaling.model_copy(
            update={
                "min_replicas": -(-scaling.min_replicas // len(sizes)),
                "max_replicas": max(size, -(-scaling.min_replicas // len(sizes))),
            }
        )
        suffix = str(index) if len(sizes) > 1 else ""
        apps.append(
            cell_app(settings, allocation, size, extractor, suffix=suffix, scaling=own or None)
        )
    return apps


def replicas(scaling: Autoscaling | None, number: int) -> dict[str, Any]:
    """Options of a deployment for a fixed or an autoscaled number of replicas."""
    if scaling is None:
        return {"num_replicas": number}
    return {"num_replicas": "auto", "autoscaling_config": scaling.model_dump()}


def service_app(settings: Settings, capacity: Capacity) -> ray_serve.Application:
    """The whole application: ingress, cells of a renderer with its samplers, extractors.

    Args:
        settings: of the application.
        capacity: of the cluster.

    Raises:
        InputError: as `renderer_app` and `sampler_allocation`.
    """
    allocation = sampler_allocation(settings, capacity)
    if allocation.elastic and not settings.replicas and settings.sampler_autoscaling is None:
        scaling = Autoscaling(min_replicas=1, max_replicas=allocation.workers)
        settings = settings.model_copy(update={"sampler_autoscaling": scaling})
    deployment: Any = ray_serve.deployment
    extractor = deployment(
        Extractor,
        name="Extractor",
        max_ongoing_requests=1,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        ray_actor_options=capacity.allocate("extract").remote_args,
        **replicas(settings.extractor_autoscaling, 1),
    ).bind()
    settings.recipe()
    cells = cell_apps(settings, allocation, extractor)
    settings = settings.model_copy(update={"cells": len(cells)})
    ingress: Any = Ingress
    return ingress.options(
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        ray_actor_options={"num_cpus": 0},
    ).bind(settings, capacity, cells, extractor)


def app(settings: Settings) -> ray_serve.Application:
    """Builds the application for the cluster that it is started on.

    `serve run serve.app replicas=2 model=DIR` and `args:` of a deploy file set any field of
    `Settings`. Invalid settings are reported here, before a replica starts.

    Raises:
        InputError: as `service_app`, or the key file or the classifier cannot be read.
    """
    Keys(settings.keys).hashes()
    PhotoModerator(settings.nsfw_model, settings.nsfw_threshold)
    if not ray.is_initialized():
        # `serve run` connects only after building the application: to RAY_ADDRESS, else to a
        # cluster on this machine, else to a new one.
        ray.init(namespace="serve")
    profile = worker_requests.choose_profile(settings.profile or None, started_ray=started_ray())
    return service_app(settings, inspect(profile))
