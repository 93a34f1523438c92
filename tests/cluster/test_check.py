"""`make cluster-check`: the shipped files are right, and mistakes in them are found."""

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from cluster import check
from cluster.node_types import NodeType
from cluster.worker_requests import CLUSTER, WorkerRequest

pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "kuberay-crds"


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The files that are checked, and empty ones where only their presence matters."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "cluster", root / "cluster")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    for name in ("README.md", "LICENSE", "NOTICE", "dreampose/__init__.py", "jobs", "serve",
                 "models", "examples"):  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    return root


def test_the_shipped_files_have_no_mistake():
    shown = []
    assert check.check(ROOT, show=shown.append) == []
    titles = [text.splitlines()[0].split()[0] for text in shown]
    assert titles == [
        "aws.yaml", "gcp.yaml", "azure.yaml", "kuberay/raycluster.yaml",
        "kuberay/raycronjob.yaml", "kuberay/rayservice.yaml", "kuberay/train.yaml",
    ]  # fmt: skip


MISTAKES = {
    "a misspelt key for Ray": (
        "aws.yaml", "idle_timeout_minutes", "idle_timeout_minute", "aws.yaml: .*idle_timeout_minute"
    ),
    "a GPU node too small for training": (
        "gcp.yaml", "{CPU: 8, GPU: 1, memory: 21474836480}", "{CPU: 8, GPU: 1, memory: 4294967296}",
        "gcp.yaml: train asks for 1 × .CPU: 1, GPU: 1, memory: 8GiB.*can hold 0",
    ),
    "an extra that is not installed": (
        "azure.yaml", ".[ray,metrics,", ".[ray,", "azure.yaml: nodes must install the extras met"
    ),
    "another version of Ray": (
        "aws.yaml", "ray:2.60.0-py311", "ray:2.59.0-py311", "aws.yaml: docker.image must be of Ray"
    ),
    "node types that jobs cannot know": (
        "gcp.yaml", "python -m cluster.publish ~/ray_bootstrap_config.yaml", "true",
        "gcp.yaml: head_start_ray_commands must publish",
    ),
    "a misspelt key for KubeRay": (
        "kuberay/raycluster.yaml", "minReplicas", "minReplica",
        "raycluster.yaml: RayCluster dreampose: .*minReplica",
    ),
    "a group that grew without its description": (
        "kuberay/train.yaml", "maxReplicas: 16", "maxReplicas: 32",
        "train.yaml: .*DREAMPOSE_NODE_TYPES of the head must list",
    ),
    "a service that dies with its head": (
        "kuberay/rayservice.yaml", "gcsFaultToleranceOptions", "gcsFaultTolerance",
        "rayservice.yaml: .*gcsFaultTolerance",
    ),
    "pods that run as root": (
        "kuberay/raycronjob.yaml", "runAsNonRoot: true", "runAsNonRoot: false",
        "raycronjob.yaml: .*runAsNonRoot must be true",
    ),
    "a budget for pods that do not exist": (
        "kuberay/support.yaml", "dreampose/group: gpu", "dreampose/group: gpus",
        "support.yaml: PodDisruptionBudget dreampose-gpu: selector matches no pod",
    ),
    "a job for a cluster that does not exist": (
        "kuberay/jobs.yaml", "ray.io/cluster: dreampose", "ray.io/cluster: dreampos",
        "jobs.yaml: .*there is no RayCluster 'dreampos'",
    ),
    "an image as root": (
        "docker/Dockerfile", "USER 1000:1000", "USER root", "Dockerfile: stage cuda must not run as"
    ),
    "an image without pins": (
        "docker/Dockerfile", "-c constraints.txt", "", "Dockerfile: nodes must install"
    ),
    "a port open to the network": (
        "docker/compose.yaml", "127.0.0.1:8265:8265", "8265:8265",
        "compose.yaml: service head: ports: 8265:8265 must be bound",
    ),
    "a token in a file": (
        "docker/compose.yaml", "${RAY_AUTH_TOKEN:?set RAY_AUTH_TOKEN}", "hunter2",
        "compose.yaml: .*RAY_AUTH_TOKEN must come from the environment",
    ),
    "a node that nobody scrapes": (
        "monitoring/prometheus.yaml", ", worker-2:8080", "", "prometheus.yaml: targets must be"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(copies, mistake):
    name, old, new, message = MISTAKES[mistake]
    file = copies / "cluster" / name
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")
    try:
        problems = check.check(copies, only=name)
    finally:
        file.write_text(text, "utf-8")
    assert any(re.search(message, problem) for problem in problems), problems


def test_a_stage_that_asks_for_too_much_is_found(monkeypatch):
    from dataclasses import replace

    large = replace(CLUSTER["finetune"], gpu_worker=WorkerRequest(cpus=12, gpus=1))
    monkeypatch.setattr(check, "CLUSTER", {**CLUSTER, "finetune": large})
    problems = check.check(ROOT)
    # 16 GPUs and 256 CPUs in all, but never 12 CPUs beside a GPU, except on Azure's machines.
    assert sorted({problem.split(":")[0] for problem in problems}) == [
        "aws.yaml", "gcp.yaml", "kuberay/raycluster.yaml", "kuberay/raycronjob.yaml",
        "kuberay/rayservice.yaml", "kuberay/train.yaml",
    ]  # fmt: skip
    assert all("finetune asks for 1 × {CPU: 12, GPU: 1}" in problem for problem in problems)


def test_a_stage_without_gpus_needs_nodes_without_them():
    gpu = NodeType(name="gpu", cpus=64, gpus=8)
    assert any("catwalk asks for" in text for text in check.stage_problems([gpu]))


def entrypoints():
    for path in sorted((ROOT / "cluster" / "kuberay").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            spec = document.get("spec", {})
            spec = spec.get("jobTemplate", spec)
            if "entrypoint" in spec:
                yield document["metadata"]["name"], spec["entrypoint"]


@pytest.mark.parametrize(("name", "entrypoint"), list(entrypoints()))
def test_jobs_take_what_the_manifests_give_them(name, entrypoint):
    script, *arguments = shlex.split(entrypoint)
    parser = importlib.import_module(f"jobs.{Path(script).stem}")._parser()
    parser.parse_args(arguments)


def test_every_job_has_a_manifest():
    scripts = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"__init__"}
    found = {Path(shlex.split(entrypoint)[0]).stem for _, entrypoint in entrypoints()}
    assert found == scripts


def test_the_service_takes_what_the_manifest_sets(tmp_path):
    from serve.config import Settings

    (service,) = yaml.safe_load_all((ROOT / "cluster/kuberay/rayservice.yaml").read_text("utf-8"))
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    # On this disk, so that no bucket is asked.
    text = json.dumps(config["applications"][0]["args"]).replace("s3://BUCKET", str(tmp_path))
    settings = Settings(**json.loads(text))
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == "Ingress":
            settings.limits(deployment["user_config"])


def test_alerts_ask_for_metrics_that_the_service_exports():
    from serve.service.metrics import METRICS

    text = (ROOT / "cluster/monitoring/alerts.yaml").read_text("utf-8")
    asked = set(re.findall(r"ray_(dreampose_[a-z_]+?)(?:_total)?\b", text))
    assert asked
    assert asked <= set(METRICS)


@pytest.mark.skipif(not CRDS.is_dir(), reason="needs KubeRay's custom resource definitions")
def test_the_schemas_are_those_of_the_operator():
    from cluster import kuberay_schemas

    made = kuberay_schemas.convert(sorted(CRDS.glob("*.yaml")))
    assert made == json.loads((ROOT / "cluster/kuberay/schemas.json").read_text("utf-8"))
