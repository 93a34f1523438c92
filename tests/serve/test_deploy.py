"""Deploy file, deployments, metrics and finetuning resources."""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from cluster.capacity import Capacity, one_machine
from cluster.node_types import NodeType
from dreampose.errors import InputError
from serve.application import service_app
from serve.config import Limits, Settings
from serve.deployments.ray_backend import finetune_allocation
from serve.service.metrics import METRICS

ROOT = Path(__file__).parents[2]
CPUS = one_machine(cpus=8)


@pytest.fixture
def deployed():
    return yaml.safe_load((ROOT / "serve" / "deploy.yaml").read_text("utf-8"))


def deployments(application):
    """Every deployment of an application by name, without starting Ray."""
    found, waiting = {}, [application]
    while waiting:
        current = waiting.pop()
        deployment = current._bound_deployment
        found[deployment.name] = deployment
        arguments = [*deployment.init_args, *deployment.init_kwargs.values()]
        arguments += [one for value in arguments if isinstance(value, list) for one in value]
        waiting += [value for value in arguments if hasattr(value, "_bound_deployment")]
    return found


def test_deploy_file_is_valid(deployed):
    schema = ServeDeploySchema.model_validate(deployed)
    (application,) = schema.applications
    assert (application.import_path, application.route_prefix) == ("serve.app", "/")
    # Serve itself lets unknown keys of its own pass in silence.
    assert deployed.keys() <= ServeDeploySchema.model_fields.keys()
    assert deployed["applications"][0].keys() <= type(application).model_fields.keys()
    for deployment in deployed["applications"][0]["deployments"]:
        assert deployment.keys() <= type(application.deployments[0]).model_fields.keys()


def test_deploy_file_settings_build_the_application(deployed, recipe_only_model):
    application = deployed["applications"][0]
    settings = Settings(**{**application["args"], "model": str(recipe_only_model)})
    built = deployments(service_app(settings, CPUS))
    assert {item["name"] for item in application["deployments"]} == built.keys()
    (ingress,) = (item for item in application["deployments"] if item["name"] == "Ingress")
    assert settings.limits(ingress["user_config"]).queue == 20
    # Whoever may call it must show a key.
    assert settings.keys
    assert not settings.open


def test_deployments_scale_independently(recipe_only_model):
    settings = Settings(
        model=str(recipe_only_model),
        sampler_autoscaling='{"min_replicas": 0, "max_replicas": 4}',
        extractor_autoscaling={"min_replicas": 1, "max_replicas": 3},
    )
    built = deployments(service_app(settings, CPUS))
    scaling = {
        name: built[name]._deployment_config.autoscaling_config for name in ("Sampler", "Extractor")
    }
    assert (scaling["Sampler"].min_replicas, scaling["Sampler"].max_replicas) == (0, 4)
    assert (scaling["Extractor"].min_replicas, scaling["Extractor"].max_replicas) == (1, 3)
    # Two of these would render frames twice, or hold two queues.
    for name in ("Ingress", "Renderer"):
        assert built[name].num_replicas == 1
        assert built[name]._deployment_config.autoscaling_config is None
    fixed = deployments(service_app(Settings(model=str(recipe_only_model), replicas=3), CPUS))
    assert fixed["Sampler"].num_replicas == 3


def test_event_streams_do_not_exhaust_request_slots(recipe_only_model):
    built = deployments(service_app(Settings(model=str(recipe_only_model)), CPUS))
    assert built["Ingress"].max_ongoing_requests >= 5 * Limits().streams_per_key
    assert built["Renderer"].max_ongoing_requests > Settings().videos_at_once


@pytest.mark.parametrize(
    "wrong",
    [
        {"quue": 3},
        {"queue": -1},
        {"sampler_autoscaling": {"max_replica": 3}},
        {"sampler_autoscaling": {"min_replicas": 3, "max_replicas": 2}},
        {"extractor_autoscaling": {"max_replicas": 0}},
        {"default_motion": "examples/clip.mp4"},
        {"frames_at_once": -1},
    ],
)
def test_invalid_settings_are_rejected(wrong):
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_on_a_cluster_samplers_come_as_the_work_needs_them(recipe_only_model):
    head = NodeType(name="head", cpus=0)
    gpu = NodeType(name="gpu", cpus=8, gpus=1, max_count=16)
    cluster = Capacity(profile="cluster", types=(head, gpu), grows=True)
    # Nothing is up but the head, and still the samplers ask for GPUs.
    built = deployments(service_app(Settings(model=str(recipe_only_model)), cluster))
    scaling = built["Sampler"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 16)
    assert built["Sampler"].ray_actor_options["num_gpus"] == 1
    assert built["Ingress"].ray_actor_options["num_cpus"] == 0, "it runs on the head at once"
    with pytest.raises(InputError, match="sample asks for 17 .* can hold 16 .*up to 16 × gpu"):
        service_app(Settings(model=str(recipe_only_model), replicas=17), cluster)


def test_finetuning_fails_when_no_gpu_is_free():
    settings = Settings()
    assert finetune_allocation(settings, CPUS, {}).worker.bundle == {"CPU": 0.5}
    fixed = one_machine(cpus=8, gpus=2)
    assert finetune_allocation(settings, fixed, {"GPU": 1.0}).worker.gpus == 1
    with pytest.raises(InputError, match="needs a GPU and none is free"):
        finetune_allocation(settings, fixed, {"GPU": 0.0})
    # Where nodes are added on demand, waiting is right.
    assert finetune_allocation(settings, replace(fixed, grows=True), {}).worker.gpus == 1
    waiting = Settings(finetune_gpus=0.5)
    assert finetune_allocation(waiting, fixed, {}).worker.gpus == 0.5
    assert finetune_allocation(Settings(finetune_gpus=0), fixed, {}).worker.gpus == 0


def test_every_metric_is_registered_with_its_tags():
    from ray.util import metrics

    from serve.service.metrics import RayMetrics

    exported = RayMetrics()
    kinds = {"counter": metrics.Counter, "gauge": metrics.Gauge, "histogram": metrics.Histogram}
    for name, (kind, _, tags) in METRICS.items():
        made = exported._metrics[name]
        assert isinstance(made, kinds[kind])
        assert tuple(made.info["tag_keys"]) == tags
    exported.count("dreampose_videos", status="completed")
    exported.gauge("dreampose_queue_depth", 0)
    exported.observe("dreampose_seconds_per_frame", 0.1, stage="render")
    exported.count("dreampose_frames", 0)


def test_dashboard_shows_every_exported_metric():
    from ray.serve._private import deployment_state, replica

    dashboard = json.loads(
        (ROOT / "cluster/monitoring/dashboards/dreampose.json").read_text("utf-8")
    )
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    exported = {
        f"ray_{name}{ending}": {*tags, *(["le"] if ending == "_bucket" else [])}
        for name, (kind, _, tags) in METRICS.items()
        for ending in endings[kind]
    }
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            names = set(re.findall(r"ray_\w+", target["expr"]))
            assert names, panel["title"]
            shown |= names
            labels = re.findall(r"by \(([^)]*)\)", target["expr"])
            labels += re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            for label in {label.strip() for text in labels for label in text.split(",")}:
                known = [exported[name] for name in names if name in exported]
                assert not known or any(label in tags for tags in known), (panel["title"], label)
    ours = {name for name in shown if "dreampose" in name}
    assert ours == exported.keys()
    source = inspect.getsource(replica) + inspect.getsource(deployment_state)
    for name in shown - ours:
        assert f'"{name.removeprefix("ray_").removesuffix("_total")}"' in source
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_log_lines_contain_the_video_id_as_text_and_field(running, post, finished, caplog):
    with caplog.at_level("INFO", logger="ray.serve"):
        video_id = post(running.client).json()["id"]
        finished(running.client, f"/v1/videos/{video_id}")
    lines = [record for record in caplog.records if getattr(record, "video_id", "") == video_id]
    assert {record.event for record in lines} >= {"video accepted", "video completed"}
    assert all(f"video_id={video_id}" in record.getMessage() for record in lines)
    assert running.metrics.counts["dreampose_videos", "completed"] == 1
