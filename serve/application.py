"""The application that `serve run serve.app` starts: which deployments there are, and how many.

Knows no tensors and no HTTP: the interface is `serve.api`, the work behind it
`serve.service.service`.
"""

import logging
from collections.abc import Mapping
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from cluster import resources
from dreampose.errors import InputError
from serve.api import build
from serve.config import Autoscaling, Settings
from serve.deployments.extractor import Extractor
from serve.deployments.ray_backend import RayBackend
from serve.deployments.renderer import Renderer
from serve.deployments.router import IdleFirst
from serve.deployments.sampler import Sampler
from serve.keys import Keys
from serve.service.metrics import RayMeasures
from serve.service.moderation import Screen
from serve.service.service import Service

SHUTDOWN_SECONDS = 1.0
"""What a replica that is told to go may still finish; what it does not is in storage."""
FIRST_LOOK_SECONDS = 0.005
"""After which a free sampler is looked for again, where an answer came before word of its end."""
CONNECTIONS = 256
"""Requests that the ingress answers at a time, event streams included."""

SERVE_ENV = {
    # One thread less on each call's way, there and back. What takes long has threads of its own.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Ten times a second, in each of many samplers, for numbers that are read every few seconds.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
}
"""How Serve is set in the processes of renderer and samplers; see docs/scaling.md."""

logger = logging.getLogger("ray.serve")


@ray_serve.deployment
@ray_serve.ingress()
class Ingress:
    """Speaks HTTP for the service.

    There is one ingress: it alone holds the queue, and takes up what an earlier one left.
    """

    async def __init__(
        self, settings: Settings, renderer: DeploymentHandle[Any], extractor: DeploymentHandle[Any]
    ) -> None:
        measures = RayMeasures()
        backend = RayBackend(settings, renderer, extractor, measures)
        self.service = Service(settings, backend, measures)
        self.configured = False
        await self.service.open()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve sends requests to; the page's Gradio is imported here, in the replica."""
        return build(self.service)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes limits from `user_config` while everything goes on.

        Limits that cannot be are logged, and the ones before them stay: Serve would take an ingress
        that raised away, and the one after it.

        Raises:
            InputError: no limit has such a name or may have such a value, and there were none
                before.
        """
        try:
            self.service.reconfigure(user_config)
        except InputError as error:
            if not self.configured:
                raise
            logger.error("limits stay as they were: %s", error)
        self.configured = True


def renderer_app(
    settings: Settings,
    total: Mapping[str, float],
    extractor: ray_serve.Application | None = None,
) -> ray_serve.Application:
    """Renderer and samplers alone, for callers that hold a handle instead of speaking HTTP.

    There is one renderer: two that work on one video would render its frames twice.

    Args:
        settings: of the application.
        total: the cluster's resources, which say how many samplers there should be.
        extractor: what reads poses from videos; by default the renderer does.

    Raises:
        InputError: the model's folder holds no model, or the cluster is too small.
    """
    settings.recipe()
    scaling = settings.sampler_autoscaling
    count = scaling.max_replicas if scaling else settings.replicas
    share = resources.sampling(total, replicas=count or None)
    at_least = max(1, scaling.min_replicas) if scaling else share.num_processes
    resources.require(total, share, at_least=at_least)
    # Ray's `deployment` is untyped where it is not a decorator.
    deployment: Any = ray_serve.deployment
    # And its settings of routers carry types that they do not have.
    router: Any = RequestRouterConfig
    sampler = deployment(
        Sampler,
        name="Sampler",
        max_ongoing_requests=settings.calls_held,
        request_router_config=router(
            request_router_class=IdleFirst,
            initial_backoff_s=FIRST_LOOK_SECONDS,
            max_backoff_s=20 * FIRST_LOOK_SECONDS,
        ),
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        # A line a call would say nothing that the renderer's metrics do not.
        logging_config=LoggingConfig(enable_access_log=False),
        ray_actor_options={**share.remote_args, "runtime_env": {"env_vars": SERVE_ENV}},
        **replicas(scaling, share.num_processes),
    ).bind(settings, settings.threads or share.num_threads)
    return deployment(
        Renderer,
        name="Renderer",
        # Videos wait in it, those of jobs too, so that it can say meanwhile that it is there.
        max_ongoing_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": SERVE_ENV}},
    ).bind(settings, share.num_processes, sampler, extractor, measured=True)


def replicas(scaling: Autoscaling | None, number: int) -> dict[str, Any]:
    """How many replicas, as options of a deployment."""
    if scaling is None:
        return {"num_replicas": number}
    return {"num_replicas": "auto", "autoscaling_config": scaling.model_dump()}


def service_app(settings: Settings, total: Mapping[str, float]) -> ray_serve.Application:
    """The whole application: ingress, renderer, samplers, extractors.

    Args:
        settings: of the application.
        total: the cluster's resources.

    Raises:
        InputError: as `renderer_app`.
    """
    deployment: Any = ray_serve.deployment
    extractor = deployment(
        Extractor,
        name="Extractor",
        max_ongoing_requests=1,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        ray_actor_options={"num_cpus": resources.LIGHT_CPUS},
        **replicas(settings.extractor_autoscaling, 1),
    ).bind()
    ingress: Any = Ingress
    return ingress.options(
        max_ongoing_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        ray_actor_options={"num_cpus": 0},
    ).bind(settings, renderer_app(settings, total, extractor), extractor)


def app(settings: Settings) -> ray_serve.Application:
    """Builds the application for the cluster that it is started on.

    `serve run serve.app replicas=2 model=DIR` and `args:` of a deploy file set any field of
    `Settings`. What is wrong with them is said here, before a replica starts.

    Raises:
        InputError: as `renderer_app`, or the file of API keys or of the classifier cannot be used.
    """
    Keys(settings.keys).hashes()
    Screen(settings.nsfw_model, settings.nsfw_threshold)
    if not ray.is_initialized():
        # `serve run` connects only after it has built the application. To a cluster of RAY_ADDRESS,
        # else to one that runs here, else to one of its own.
        ray.init(namespace="serve")
    return service_app(settings, ray.cluster_resources())
