"""Node types of a cluster, and which requests they can hold."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.worker_requests import WorkerRequest, format_bytes, parse_bytes
from dreampose.errors import InputError

HEAD_RESOURCE = "node:__internal_head__"
"""Resource that Ray gives to the head node alone."""
EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of node that a cluster has or may add.

    Attributes:
        name: as the autoscaler calls it.
        cpus: of one node.
        gpus: of one node.
        memory: bytes that Ray may hand out on one node; None where that is not known.
        max_count: so many of them at most; None for no bound.
        labels: of its nodes.
    """

    name: str
    cpus: float
    gpus: float = 0.0
    memory: float | None = None
    max_count: int | None = 1
    labels: tuple[tuple[str, str], ...] = ()

    def holds(self, request: WorkerRequest, *, room: float = 0.0) -> int:
        """How many such workers fit on one node beside `room` CPUs for reads and writes."""
        counts = [_times(self.cpus - room, request.cpus), _times(self.gpus, request.gpus)]
        if self.memory is not None:
            counts.append(_times(self.memory, request.memory))
        if 0 < request.gpus < 1:
            # A share is of one GPU: 0.6 fits once on each, never on two halves.
            counts.append(int(self.gpus) * math.floor(1 / request.gpus + EPSILON))
        return max(0, int(min(counts)))

    def __str__(self) -> str:
        memory = "" if self.memory is None else f", memory: {format_bytes(self.memory)}"
        gpus = f", GPU: {self.gpus:g}" if self.gpus else ""
        count = "" if self.max_count is None else f"up to {self.max_count} × "
        return f"{count}{self.name} {{CPU: {self.cpus:g}{gpus}{memory}}}"


def workers_held(
    node_types: Sequence[NodeType], request: WorkerRequest, *, io_cpus: float = 0.0
) -> int | None:
    """How many workers of a stage can ever run side by side; None for no bound.

    However Ray places that many, some node keeps `io_cpus` free for the stage's reads and writes:
    were every node too full for them, there would be more workers than this number. The room is
    left on nodes of another type, where there is one that cannot hold a worker.

    Args:
        node_types: of the cluster.
        request: of one worker.
        io_cpus: that must stay free in one piece.
    """
    beside = any(
        node.holds(request) == 0 and node.cpus + EPSILON >= io_cpus and node.max_count != 0
        for node in node_types
    )
    room = 0.0 if beside else io_cpus
    total = 0
    for node in node_types:
        count = node.holds(request, room=room)
        if count and node.max_count is None:
            return None
        total += count * (node.max_count or 0)
    return total


def check_fits(
    node_types: Sequence[NodeType],
    request: WorkerRequest,
    *,
    stage: str,
    workers: int = 1,
    io_cpus: float = 0.0,
) -> None:
    """Refuses what the cluster can never hold, since Ray would wait for it for ever.

    Raises:
        InputError: fewer than `workers` fit; the message lists the node types' sizes.
    """
    held = workers_held(node_types, request, io_cpus=io_cpus)
    if held is None or held >= workers:
        return
    room = f" beside {io_cpus:g} CPUs for reads and writes" if io_cpus else ""
    sizes = "; ".join(map(str, node_types)) or "none"
    raise InputError(
        f"{stage} asks for {workers} × {request}{room}, of which the cluster can hold {held} "
        f"(node types: {sizes}); ask for less with --cpus-per-worker, --gpus-per-worker, "
        "--memory-per-worker or fewer workers, or add a node type"
    )


def has_gpus(node_types: Iterable[NodeType]) -> bool:
    """Whether the cluster has or may add a node with a GPU."""
    return any(node.gpus > 0 and node.max_count != 0 for node in node_types)


def without_unknown_memory(node_types: Sequence[NodeType], request: WorkerRequest) -> WorkerRequest:
    """The request without memory where a node type that would hold it does not say its own.

    An autoscaler that does not know a type's memory would never add a node for it.
    """
    bare = WorkerRequest(cpus=request.cpus, gpus=request.gpus)
    unknown = any(node.memory is None and node.holds(bare) for node in node_types)
    return bare if unknown else request


def from_autoscaler(config: Mapping[str, Any]) -> list[NodeType]:
    """Node types of a configuration for `ray up` or `ray start --autoscaling-config`.

    Resources must be written out: which machine has how many is only known to the cloud.

    Raises:
        InputError: a type has no resources.
    """
    found: list[NodeType] = []
    limit = config.get("max_workers")
    for name, node in config["available_node_types"].items():
        resources = node.get("resources") or {}
        if "CPU" not in resources:
            raise InputError(f"node type {name!r} must have resources with a CPU, got {resources}")
        is_head = name == config.get("head_node_type")
        count = 1 if is_head else node.get("max_workers", limit)
        found.append(
            NodeType(
                name=name,
                cpus=float(resources["CPU"]),
                gpus=float(resources.get("GPU", 0)),
                memory=float(resources["memory"]) if "memory" in resources else None,
                max_count=count if limit is None or count is None else min(count, limit),
                labels=_labels(node.get("labels")),
            )
        )
    return found


def from_raycluster(spec: Mapping[str, Any]) -> list[NodeType]:
    """Node types of the specification of a RayCluster (KubeRay).

    As the operator does: `rayStartParams` first, else the limits and requests of the first
    container; Ray hands out all of a container's memory but what the object store takes.

    Raises:
        InputError: a group says neither.
    """
    groups = [("head", spec["headGroupSpec"], 1)]
    groups += [
        (group["groupName"], group, int(group.get("maxReplicas", group.get("replicas", 1))))
        for group in spec.get("workerGroupSpecs", [])
    ]
    return [_from_group(name, group, count) for name, group, count in groups]


def to_json(node_types: Iterable[NodeType]) -> str:
    """The types as JSON text."""
    return json.dumps([asdict(node) for node in node_types])


def from_json(text: str) -> list[NodeType]:
    """The types of JSON text that `to_json` wrote, or that has the same keys.

    Raises:
        InputError: it has not.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(text)
        for row in rows:
            row["labels"] = tuple((str(key), str(value)) for key, value in row.get("labels", ()))
        return [NodeType(**row) for row in rows]
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"node types must be a JSON list of their sizes, got {error}") from None


def from_nodes(nodes: Iterable[Mapping[str, Any]]) -> list[NodeType]:
    """The kinds of nodes that are alive, from `ray.nodes()`: equal sizes are one type."""
    counts: dict[tuple[str, float, float, float | None], int] = {}
    for node in nodes:
        if not node["Alive"]:
            continue
        resources = node["Resources"]
        name = (node.get("Labels") or {}).get("ray.io/node-group") or (
            "head" if HEAD_RESOURCE in resources else "worker"
        )
        memory = resources.get("memory")
        # Memory differs by a few pages between equal machines.
        memory = None if memory is None else float(int(memory) // 2**28 * 2**28)
        key = (name, resources.get("CPU", 0.0), resources.get("GPU", 0.0), memory)
        counts[key] = counts.get(key, 0) + 1
    return [
        NodeType(name=name, cpus=cpus, gpus=gpus, memory=memory, max_count=count)
        for (name, cpus, gpus, memory), count in counts.items()
    ]


def _from_group(name: str, group: Mapping[str, Any], count: int) -> NodeType:
    start = group.get("rayStartParams") or {}
    container = group["template"]["spec"]["containers"][0]
    resources = container.get("resources") or {}
    sizes = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    explicit = group.get("resources") or {}
    cpus = start.get("num-cpus", explicit.get("CPU", sizes.get("cpu")))
    if cpus is None:
        raise InputError(f"group {name!r} must say its CPUs (limits or num-cpus), got {sizes}")
    gpus = start.get("num-gpus", explicit.get("GPU", sizes.get("nvidia.com/gpu", 0)))
    memory = start.get("memory", explicit.get("memory", sizes.get("memory")))
    return NodeType(
        name=name,
        cpus=_quantity(cpus),
        gpus=_quantity(gpus),
        memory=None if memory is None else _quantity(memory),
        max_count=count,
        labels=_labels(group.get("labels")),
    )


def _quantity(value: Any) -> float:
    """A number of Kubernetes: 4, "500m" or "16Gi"."""
    text = str(value)
    if text.endswith("m"):
        return float(text[:-1]) / 1000
    try:
        return float(text)
    except ValueError:
        return float(parse_bytes(text))


def _labels(labels: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((labels or {}).items()))


def _times(whole: float, part: float) -> float:
    return math.floor(whole / part + EPSILON) if part else math.inf
