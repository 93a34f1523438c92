"""Checks of the files in `cluster/`, without a cloud, a registry or a network.

    python -m cluster.check            # or: make cluster-check

Prints which node type holds how many workers of each stage, and every mistake.
"""

import argparse
import json
import logging
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from cluster import node_types
from cluster.node_types import NodeType
from cluster.publish import VARIABLE, raycluster_spec
from cluster.worker_requests import CLUSTER
from dreampose.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
AUTOSCALERS = ("aws", "gcp", "azure")
NOT_ON_NODES = frozenset({"test", "dev"})
"""Extras that no node needs."""
SECRET_NAME = re.compile(r"(SECRET|PASSWORD|TOKEN|ACCESS_KEY)", re.IGNORECASE)


class Files:
    """The files to check, and what they have to agree with.

    Args:
        root: folder of the repository.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cluster = root / "cluster"
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
        self.extras = frozenset(project["optional-dependencies"]) - NOT_ON_NODES
        self.python = re.findall(r"\d+\.\d+", project["requires-python"])[0]
        pins = (root / "constraints.txt").read_text("utf-8")
        (self.ray_version,) = re.findall(r"^ray==([\w.]+)", pins, re.MULTILINE)

    def documents(self, path: Path) -> list[Any]:
        """All YAML documents of a file.

        Raises:
            InputError: it is not YAML.
        """
        try:
            return [item for item in yaml.safe_load_all(path.read_text("utf-8")) if item]
        except yaml.YAMLError as error:
            raise InputError(f"not YAML ({' '.join(str(error).split())})") from None


def check(
    root: Path = ROOT, *, only: str = "", show: Callable[[str], None] | None = None
) -> list[str]:
    """Mistakes in the files, a line each, with the file's name.

    Args:
        root: folder of the repository.
        only: the files whose name contains this.
        show: is given a table of stages and node types for each cluster.
    """
    files = Files(root)
    folder = files.cluster
    checks: list[tuple[str, Callable[[Files, Path], Iterable[str]]]] = [
        *((f"{name}.yaml", _autoscaler) for name in AUTOSCALERS),
        *(
            (f"kuberay/{path.name}", _manifests)
            for path in sorted((folder / "kuberay").glob("*.yaml"))
        ),
        ("docker/Dockerfile", _dockerfile),
        ("docker/compose.yaml", _compose),
        ("monitoring/prometheus.yaml", _prometheus),
        ("monitoring/provisioning/dashboards/dreampose.yaml", _dashboards),
    ]
    found: list[str] = []
    for name, run in checks:
        if only not in name:
            continue
        path = folder / name
        try:
            found += [f"{name}: {problem}" for problem in run(files, path)]
            for title, types in _clusters(files, path):
                if show is not None:
                    show(table(f"{name}{title}", types))
        except (InputError, OSError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            found.append(f"{name}: {reason}")
    return found


def table(title: str, types: Sequence[NodeType]) -> str:
    """How many workers of each stage a node of each type holds."""
    names = [node.name for node in types]
    lines = [f"{title:<34}" + "".join(f"{name:>8}" for name in names)]
    for stage, request in CLUSTER.items():
        for worker in filter(None, (request.worker, request.gpu_worker)):
            counts = "".join(f"{node.holds(worker):>8}" for node in types)
            lines.append(f"  {stage:<11}{str(worker)[:20]:<21}" + counts)
    return "\n".join(lines)


def stage_problems(types: Sequence[NodeType]) -> Iterator[str]:
    """Requests of stages that no node type can hold.

    A stage without GPUs must fit on nodes without, which are not taken from those that need them.
    """
    workers = [node for node in types if node.cpus]
    bare = [node for node in workers if not node.gpus]
    for stage, request in CLUSTER.items():
        try:
            node_types.check_fits(bare, request.worker, stage=stage, io_cpus=request.io_cpus)
            if request.gpu_worker is not None:
                node_types.check_fits(
                    workers, request.gpu_worker, stage=stage, io_cpus=request.io_cpus
                )
        except InputError as error:
            yield str(error)


def _clusters(files: Files, path: Path) -> Iterator[tuple[str, list[NodeType]]]:
    if path.suffix != ".yaml" or path.parent.name not in ("cluster", "kuberay"):
        return
    for document in files.documents(path):
        if "available_node_types" in document:
            yield "", node_types.from_autoscaler(document)
        elif (spec := raycluster_spec(document)) is not None:
            yield f" {document['kind']}", node_types.from_raycluster(spec)


def _autoscaler(files: Files, path: Path) -> Iterator[str]:
    (config,) = files.documents(path)
    yield from _accepted_by_ray(config)
    types = node_types.from_autoscaler(config)
    yield from stage_problems(types)
    head = config["available_node_types"][config["head_node_type"]]
    if head["resources"].get("CPU") != 0:
        yield "the head must have resources {CPU: 0}, so that no task runs on it"
    for node in types:
        if node.cpus and dict(node.labels).get("ray.io/node-group") != node.name:
            yield f"node type {node.name!r} must have the label ray.io/node-group: {node.name}"
    image = config["docker"]["image"]
    if f":{files.ray_version}-py{files.python.replace('.', '')}" not in image:
        yield f"docker.image must be of Ray {files.ray_version}, Python {files.python}, got {image}"
    if not any("RAY_AUTH_MODE=token" in option for option in config["docker"]["run_options"]):
        yield "docker.run_options must set RAY_AUTH_MODE=token"
    options = " ".join(config["docker"]["run_options"])
    home = re.search(r"DREAMPOSE_HOME=(\S+)", options)
    if home is None or f"{home[1]}/models" not in config["file_mounts"]:
        yield "docker.run_options must set DREAMPOSE_HOME to the folder that models are copied to"
    yield from _installs(files, " ".join(config["setup_commands"]))
    for target, source in config["file_mounts"].items():
        if not source.startswith("~") and not (files.root / source).exists():
            yield f"file_mounts: {target} is a copy of {source}, which does not exist"
    if not any("cluster.publish" in command for command in config["head_start_ray_commands"]):
        yield "head_start_ray_commands must publish the node types (python -m cluster.publish)"


def _accepted_by_ray(config: Mapping[str, Any]) -> Iterator[str]:
    """What Ray's own check says, which `ray up` does first."""
    # Private functions, which may move with any version: Ray is pinned.
    from ray.autoscaler._private.util import prepare_config, validate_config

    loggers = [logging.getLogger("ray.autoscaler"), logging.getLogger("ray")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(json.loads(json.dumps(config))))
    except jsonschema.ValidationError as error:
        yield f"{'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message[:200]}"
    except (ValueError, KeyError, AssertionError) as error:
        yield f"Ray refuses it: {error}"
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _installs(files: Files, command: str) -> Iterator[str]:
    """Whether nodes install the extras of the project, with the pinned versions."""
    found = re.findall(r"\.\[([\w,-]+)\]", command)
    if not found or "-c constraints.txt" not in command:
        yield "nodes must install '.[EXTRAS]' with -c constraints.txt"
    for extras in map(frozenset, (names.split(",") for names in found)):
        if missing := sorted(files.extras - extras):
            yield f"nodes must install the extras {', '.join(missing)} too"
        if unknown := sorted(extras - files.extras):
            yield f"the project has no extras {', '.join(unknown)} for nodes"


def _manifests(files: Files, path: Path) -> Iterator[str]:
    schemas = json.loads((files.cluster / "kuberay" / "schemas.json").read_text("utf-8"))
    labels = _pod_labels(files)
    for document in files.documents(path):
        kind, name = document["kind"], document.get("metadata", {}).get("name", "")
        for problem in _manifest(files, document, schemas, labels):
            yield f"{kind} {name}: {problem}"


def _manifest(
    files: Files, document: Mapping[str, Any], schemas: Mapping[str, Any], labels: Sequence[Any]
) -> Iterator[str]:
    kind = document["kind"]
    schema = schemas["kinds"].get(kind)
    if schema is None:
        yield from _other_manifest(document, labels)
        return
    validator = jsonschema.Draft7Validator({**schema, "definitions": schemas["definitions"]})
    for error in validator.iter_errors(document):
        where = ".".join(map(str, error.absolute_path)) or "top level"
        yield f"{where}: {error.message[:200]}"
    spec = raycluster_spec(dict(document))
    if spec is not None:
        yield from _raycluster(files, spec)
    selector = document["spec"].get("clusterSelector", {}).get("ray.io/cluster")
    if selector is not None and selector not in _raycluster_names(files):
        yield f"clusterSelector: there is no RayCluster {selector!r}"
    if kind == "RayService":
        if spec is not None and "gcsFaultToleranceOptions" not in spec:
            yield "gcsFaultToleranceOptions must be set: a service must survive its head"
        try:
            yaml.safe_load(document["spec"]["serveConfigV2"])["applications"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            yield f"serveConfigV2 must be YAML with applications, got {error}"


def _raycluster(files: Files, spec: Mapping[str, Any]) -> Iterator[str]:
    if str(spec.get("rayVersion")) != files.ray_version:
        yield f"rayVersion must be {files.ray_version}, got {spec.get('rayVersion')}"
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions.mode must be token"
    if (spec.get("autoscalerOptions") or {}).get("version") != "v2":
        yield "autoscalerOptions.version must be v2"
    types = node_types.from_raycluster(spec)
    yield from stage_problems(types)
    if types[0].cpus:
        yield 'the head must have rayStartParams {num-cpus: "0"}, so that no task runs on it'
    groups = [("head", spec["headGroupSpec"])]
    groups += [(group["groupName"], group) for group in spec.get("workerGroupSpecs", [])]
    for name, group in groups:
        if group.get("minReplicas", 0) > group.get("maxReplicas", 1):
            yield f"group {name}: minReplicas must be at most maxReplicas"
        yield from (f"group {name}: {text}" for text in _pod(group["template"]))
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    published = [item["value"] for item in head.get("env", []) if item["name"] == VARIABLE]
    known = [node_types.from_json(value) for value in published]
    if [[_size(node) for node in one] for one in known] != [[_size(node) for node in types]]:
        yield f"{VARIABLE} of the head must list its groups' sizes: {node_types.to_json(types)}"


def _pod(template: Mapping[str, Any]) -> Iterator[str]:
    spec = template["spec"]
    if not (spec.get("securityContext") or {}).get("runAsNonRoot"):
        yield "securityContext.runAsNonRoot must be true"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        if (container.get("securityContext") or {}).get("allowPrivilegeEscalation") is not False:
            yield "securityContext.allowPrivilegeEscalation must be false"
        for probe in ("readinessProbe", "livenessProbe"):
            if probe not in container:
                yield f"{probe} must be set"
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]) and "value" in variable:
                yield f"env {variable['name']} must come from a secret (valueFrom.secretKeyRef)"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"volumeMounts: there is no volume {mount['name']!r}"
        limits = (container.get("resources") or {}).get("limits") or {}
        for resource in ("cpu", "memory"):
            if resource not in limits:
                yield f"resources.limits.{resource} must be set"


def _other_manifest(document: Mapping[str, Any], labels: Sequence[Any]) -> Iterator[str]:
    kind = document["kind"]
    if kind == "Secret":
        yield "secrets do not belong into a file of the repository"
    elif kind in ("PodDisruptionBudget", "NetworkPolicy"):
        key = "selector" if kind == "PodDisruptionBudget" else "podSelector"
        wanted = document["spec"][key]["matchLabels"].items()
        if not any(wanted <= pod.items() for pod in labels):
            yield f"{key} matches no pod of the clusters: {dict(wanted)}"
    elif kind not in ("ServiceAccount", "ConfigMap", "PersistentVolumeClaim", "Kustomization"):
        yield f"kind {kind} is unknown here"


def _raycluster_names(files: Files) -> set[str]:
    return {
        document["metadata"]["name"]
        for path in (files.cluster / "kuberay").glob("*.yaml")
        for document in files.documents(path)
        if document["kind"] == "RayCluster"
    }


def _pod_labels(files: Files) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for path in (files.cluster / "kuberay").glob("*.yaml"):
        for document in files.documents(path):
            spec = raycluster_spec(document)
            if spec is not None:
                groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
                found += [group["template"]["metadata"]["labels"] for group in groups]
    return found


def _size(node: NodeType) -> tuple[Any, ...]:
    # The head's memory says nothing, since no task runs on it.
    return (node.name, node.cpus, node.gpus, node.memory if node.cpus else None, node.max_count)


def _dockerfile(files: Files, path: Path) -> Iterator[str]:
    text = path.read_text("utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("#")]
    stages: list[str] = []
    users: dict[str, str] = {}
    arguments = dict(line[4:].split("=", 1) for line in lines if re.match(r"ARG \w+=", line))
    for line in lines:
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            image, _, stage = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m[1], ""), rest
                                     ).partition(" AS ")  # fmt: skip
            if image not in stages and (":" not in image or image.endswith(":latest")):
                yield f"FROM {image} must name a version"
            if image.startswith("python:") and not image.startswith(f"python:{files.python}."):
                yield f"FROM {image} must be Python {files.python}"
            users[stage] = users.get(image, "root")
            stages.append(stage)
        elif instruction == "USER":
            users[stages[-1]] = rest
        elif instruction == "COPY" and "--from=" not in rest:
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            for source in sources:
                if not (files.root / source).exists():
                    yield f"COPY: {source} does not exist"
        elif instruction == "RUN" and "pip install" in rest:
            yield from _installs(files, rest)
    if not re.search(r"^ENV .*DREAMPOSE_HOME=", text, re.MULTILINE):
        yield "ENV DREAMPOSE_HOME must be set to the folder that models are copied to"
    for stage in ("cpu", "cuda"):
        if stage not in stages:
            yield f"there must be a stage {stage}"
        elif users[stage].split(":")[0] in ("root", "0"):
            yield f"stage {stage} must not run as root"


def _compose(files: Files, path: Path) -> Iterator[str]:
    (config,) = files.documents(path)
    services: dict[str, Any] = config["services"]
    if "head" not in services or sum(name.startswith("worker") for name in services) < 2:
        yield "there must be a head and two workers"
    volumes = set(config.get("volumes", {}))
    known = {"image", "build", "command", "environment", "volumes", "ports", "depends_on",
             "deploy", "shm_size", "security_opt", "cap_drop", "restart", "stop_grace_period",
             "healthcheck"}  # fmt: skip
    for name, service in services.items():
        if unknown := sorted(set(service) - known):
            yield f"service {name}: unknown key {unknown[0]!r}"
        image = service.get("image", "")
        if ":" not in image or image.endswith(":latest"):
            yield f"service {name}: image must name a version, got {image!r}"
        for needed in service.get("depends_on", {}):
            if needed not in services:
                yield f"service {name}: depends_on names no service, {needed!r}"
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                if not (path.parent / source).exists():
                    yield f"service {name}: volumes: {source} does not exist"
            elif source not in volumes:
                yield f"service {name}: volumes: {source!r} is not declared"
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield f"service {name}: ports: {port} must be bound to 127.0.0.1"
        for key, value in service.get("environment", {}).items():
            if SECRET_NAME.search(key) and "${" not in str(value):
                yield f"service {name}: {key} must come from the environment"


def _prometheus(files: Files, path: Path) -> Iterator[str]:
    (config,) = files.documents(path)
    for name in config["rule_files"]:
        rules = path.parent / name
        if not rules.is_file():
            yield f"rule_files: {name} does not exist"
            continue
        for group in files.documents(rules)[0]["groups"]:
            for rule in group["rules"]:
                if missing := {"alert", "expr", "for", "labels", "annotations"} - set(rule):
                    yield f"{name}: a rule has no {', '.join(sorted(missing))}"
                if rule["expr"].count("(") != rule["expr"].count(")"):
                    yield f"{name}: {rule['alert']}: parentheses do not match"
    (compose,) = files.documents(files.cluster / "docker" / "compose.yaml")
    hosts = {target.split(":")[0] for job in config["scrape_configs"]
             for static in job["static_configs"] for target in static["targets"]}  # fmt: skip
    nodes = {name for name in compose["services"] if name == "head" or name.startswith("worker")}
    if hosts != nodes:
        yield f"targets must be the nodes of compose.yaml, {sorted(nodes)}, got {sorted(hosts)}"


def _dashboards(files: Files, path: Path) -> Iterator[str]:
    (config,) = files.documents(path)
    folder = config["providers"][0]["options"]["path"]
    (compose,) = files.documents(files.cluster / "docker" / "compose.yaml")
    if not any(f":{folder}:" in mount for mount in compose["services"]["grafana"]["volumes"]):
        yield f"compose.yaml must mount the dashboards at {folder}"
    for dashboard in sorted((files.cluster / "monitoring" / "dashboards").glob("*.json")):
        try:
            panels = json.loads(dashboard.read_text("utf-8"))["panels"]
        except (ValueError, KeyError) as error:
            yield f"{dashboard.name} is not a dashboard ({error})"
            continue
        if not panels:
            yield f"{dashboard.name} has no panel"


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="cluster.check", description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="folder of the repository")
    args = parser.parse_args(argv)
    problems = check(args.root, show=print)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(problems)} mistakes" if problems else "no mistakes")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
