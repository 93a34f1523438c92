"""What a Ray cluster holds and may grow to, and waiting for it."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster import node_types, worker_requests
from cluster.node_types import NodeType
from cluster.publish import KEY, VARIABLE
from cluster.worker_requests import Profile, StageRequest, WorkerRequest
from dreampose.errors import InputError

NODE_GROUP = "ray.io/node-group"
"""Label with the node type's name, which Ray gives to the nodes of an autoscaler."""
SETTLE_SECONDS = 5.0
"""For so long after joining, the list of nodes may lack some that are alive."""
POLL_SECONDS = 2.0
REPEAT_SECONDS = 30.0
"""An unchanged line about waiting is repeated after so long."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a stage runs with on this cluster.

    Attributes:
        stage: its name.
        worker: request of one worker.
        workers: so many of them at most.
        threads: of torch in each.
        read_cpus: CPUs of a task that reads for the workers.
        write_cpus: CPUs of a task that writes what they made.
        labels: label selector of the workers' nodes: no GPU node for a stage without GPUs, where
            the cluster has others.
        elastic: whether fewer workers may start with the work, and others follow.
    """

    stage: str
    worker: WorkerRequest
    workers: int
    threads: int
    read_cpus: float = 0.0
    write_cpus: float = 0.0
    labels: tuple[tuple[str, str], ...] = ()
    elastic: bool = False

    @property
    def gpus(self) -> bool:
        """Whether workers have a GPU."""
        return self.worker.gpus > 0

    @property
    def remote_args(self) -> dict[str, Any]:
        """Keyword arguments of `ray.remote` for a worker."""
        return self.worker.remote_args | self._selector

    @property
    def pool(self) -> dict[str, Any]:
        """Keyword arguments of Ray Data's `ActorPoolStrategy`."""
        if self.elastic:
            return {"min_size": 1, "max_size": self.workers}
        return {"size": self.workers}

    def light_args(self, cpus: float) -> dict[str, Any]:
        """Keyword arguments of `ray.remote` for a task beside the workers."""
        return {"num_cpus": cpus} | self._selector

    @property
    def _selector(self) -> dict[str, Any]:
        return {"label_selector": dict(self.labels)} if self.labels else {}


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """A cluster as its jobs see it.

    Attributes:
        profile: whose constants stages ask for.
        types: node types that it has or may add.
        grows: whether an autoscaler may add nodes.
        complete: whether `types` are all there can be; else only the autoscaler knows.
        cores: of all nodes; of this machine, in the local profile.
    """

    profile: Profile
    types: tuple[NodeType, ...]
    grows: bool = False
    complete: bool = True
    cores: int = 1

    @property
    def has_gpus(self) -> bool:
        """Whether it has, or may add, a GPU."""
        return node_types.has_gpus(self.types)

    def allocate(
        self,
        stage: str,
        request: StageRequest | None = None,
        *,
        workers: int | None = None,
        at_least: int = 1,
        at_most: int | None = None,
        gpus: bool | None = None,
    ) -> Allocation:
        """What a stage asks for: its constants, and how many workers of that size.

        Args:
            stage: its name.
            request: its numbers; by default those of the profile and the requests file.
            workers: so many; by default as many as the cluster can ever hold (on one machine: as
                many as it has cores or GPUs).
            at_least: without which the stage cannot run.
            at_most: for so many there is work.
            gpus: whether workers have a GPU; by default where the cluster has, or may add, enough.

        Raises:
            InputError: no node type can hold a worker, or all of them together too few.
        """
        asked = request or worker_requests.stage_request(stage, self.profile)
        if gpus is None:
            gpus = self._enough_gpus(asked, at_least)
        use_gpu = gpus and asked.gpu_worker is not None
        worker = node_types.without_unknown_memory(self.types, asked.request(gpus=use_gpu))
        if self.complete:
            node_types.check_fits(
                self.types, worker, stage=stage, workers=at_least, io_cpus=asked.io_cpus
            )
        labels = () if use_gpu else self._without_gpu_nodes(worker, asked.io_cpus)
        types = [node for node in self.types if not (labels and node.gpus)]
        held = None
        if self.complete:
            held = node_types.workers_held(types, worker, io_cpus=asked.io_cpus)
        count = workers or self._default_workers(worker, held)
        if at_most is not None:
            count = min(count, at_most)
        if held is not None:
            count = min(count, held)
        count = max(count, at_least)
        return Allocation(
            stage=stage,
            worker=worker,
            workers=count,
            threads=worker_requests.num_threads(
                worker, self.profile, workers=count, cores=self.cores
            ),
            read_cpus=asked.read_cpus,
            write_cpus=asked.write_cpus,
            labels=labels,
            elastic=self.profile == "cluster",
        )

    def _enough_gpus(self, asked: StageRequest, at_least: int) -> bool:
        if asked.gpu_worker is None or not self.has_gpus:
            return False
        worker = node_types.without_unknown_memory(self.types, asked.gpu_worker)
        held = node_types.workers_held(self.types, worker, io_cpus=asked.io_cpus)
        # Where a cluster grows to some GPUs but not to enough, that is refused, not done without.
        return held is None or held >= at_least or self.grows

    def _default_workers(self, worker: WorkerRequest, held: int | None) -> int:
        if self.profile == "cluster":
            return sys.maxsize if held is None else max(1, held)
        if not worker.gpus:
            return self.cores
        return int(sum(node.gpus * (node.max_count or 1) for node in self.types) / worker.gpus)

    def _without_gpu_nodes(
        self, worker: WorkerRequest, io_cpus: float
    ) -> tuple[tuple[str, str], ...]:
        """A selector that keeps a stage off the GPU nodes, if others can hold it."""
        with_gpu = sorted(node.name for node in self.types if node.gpus)
        others = [node for node in self.types if not node.gpus]
        if not self.grows or not with_gpu:
            return ()
        held = node_types.workers_held(others, worker, io_cpus=io_cpus)
        if held == 0:
            return ()
        return ((NODE_GROUP, f"!in({','.join(with_gpu)})"),)


def one_machine(*, cpus: int, gpus: int = 0) -> Capacity:
    """A machine of its own, in the local profile."""
    node = NodeType(name="machine", cpus=cpus, gpus=gpus)
    return Capacity(profile="local", types=(node,), cores=cpus)


def inspect(profile: Profile) -> Capacity:
    """The cluster that this process has joined."""
    grows, published = True, _published()
    types = published
    if types is None:
        grows = _has_autoscaler()
        types = _alive()
    return Capacity(
        profile=profile,
        types=tuple(types),
        grows=grows,
        # Where an autoscaler keeps its node types to itself, it alone can say what will not fit.
        complete=published is not None or not grows,
        cores=max(1, int(sum(node.cpus * (node.max_count or 0) for node in types))),
    )


def started_ray() -> bool:
    """Whether this process itself started the Ray that it uses, on this machine."""
    from ray._private import worker as ray_worker

    node: Any = ray_worker._global_node  # pyright: ignore[reportPrivateUsage]
    return node is not None and node.head


class Reservation:
    """Resources that are held until the workers that need them start.

    Args:
        group: placement group that holds them.
    """

    def __init__(self, group: PlacementGroup | None) -> None:
        self._group = group

    def release(self) -> None:
        """Gives them to the stage's own workers. Their nodes stay for the idle time at least."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


@contextlib.contextmanager
def reserve(
    capacity: Capacity,
    allocation: Allocation,
    *,
    workers: int = 1,
    limit: float | None = None,
    show: Callable[[str], None] | None = None,
) -> Generator[Reservation, None, None]:
    """Waits until Ray or its autoscaler provides so many workers' resources, and holds them.

    A placement group asks for them: an autoscaler adds nodes for it, and keeps them while the
    driver still imports what it needs. Release it when the stage starts its own workers.

    Args:
        capacity: of the cluster.
        allocation: of the stage.
        workers: that must be there at the same time.
        limit: seconds to wait; None for no bound.
        show: is given a line about what is pending, each time it changes.

    Raises:
        InputError: they are not there after `limit`, or the autoscaler says that no node type
            can hold them.
    """
    bundles = [allocation.worker.bundle for _ in range(workers)]
    labels = [dict(allocation.labels) for _ in bundles]
    io_cpus = allocation.read_cpus + allocation.write_cpus
    if io_cpus:
        bundles.append({"CPU": io_cpus})
        labels.append(dict(allocation.labels))
    options: dict[str, Any] = {"bundle_label_selector": labels} if any(labels) else {}
    group = placement_group(bundles, strategy="PACK", **options)
    reservation = Reservation(group)
    try:
        _wait(capacity, allocation, group, workers=workers, limit=limit, show=show or _print)
        yield reservation
    finally:
        reservation.release()


def _wait(
    capacity: Capacity,
    allocation: Allocation,
    group: PlacementGroup,
    *,
    workers: int,
    limit: float | None,
    show: Callable[[str], None],
) -> None:
    began, shown, shown_at = time.monotonic(), "", 0.0
    while not group.wait(POLL_SECONDS):
        now = time.monotonic()
        status = _status()
        line = waiting_line(capacity, allocation, status, workers=workers)
        if line != shown or now - shown_at > REPEAT_SECONDS:
            show(line)
            shown, shown_at = line, now
        if not capacity.complete and _is_infeasible(group):
            raise InputError(
                f"{allocation.stage} asks for {workers} × {allocation.worker}, of which the "
                "autoscaler has no node type (nodes that are up: "
                f"{'; '.join(map(str, capacity.types)) or 'none'}); ask for less with "
                "--cpus-per-worker, --gpus-per-worker or --memory-per-worker"
            )
        if limit is not None and now - began > limit:
            raise InputError(
                f"wait-for-resources: {line.removeprefix('waiting for ')}, after {limit:g} seconds"
            )


def waiting_line(capacity: Capacity, allocation: Allocation, status: Any, *, workers: int) -> str:
    """What is pending and why, in a line.

    Args:
        capacity: of the cluster.
        allocation: of the stage that waits.
        status: Ray's `ClusterStatus`; None if it could not be read.
        workers: that the stage waits for.
    """
    asked = f"waiting for {workers} × {allocation.worker}"
    if status is None:
        return f"{asked}: the state of the cluster is unknown"
    nodes = [*status.active_nodes, *status.idle_nodes]
    excluded = _excluded_groups(allocation)
    free = sum(
        _as_type(node, node.available_resources()).holds(allocation.worker)
        for node in nodes
        if node.ray_node_type_name not in excluded
    )
    able = sum(
        bool(_as_type(node, node.total_resources()).holds(allocation.worker))
        for node in nodes
        if node.ray_node_type_name not in excluded
    )
    there = f"{min(free, workers)} free" if able else "0 there"
    starting = sum(one.count for one in status.pending_launches) + len(status.pending_nodes)
    if starting:
        reason = f"{starting} node{'s' if starting > 1 else ''} starting"
    elif status.failed_launches:
        details = " ".join((status.failed_launches[-1].details or "").split())
        reason = f"the autoscaler could not start a node ({details[:200]})"
    elif capacity.grows:
        reason = "the autoscaler may add nodes"
    else:
        reason = "other work holds the rest"
    return f"{asked}: {there}; {reason}"


def _as_type(node: Any, resources: Mapping[str, float]) -> NodeType:
    return NodeType(
        name=node.ray_node_type_name,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory=resources.get("memory"),
    )


def _excluded_groups(allocation: Allocation) -> Sequence[str]:
    value = dict(allocation.labels).get(NODE_GROUP, "")
    return value.removeprefix("!in(").removesuffix(")").split(",") if value else ()


def _published() -> list[NodeType] | None:
    """Node types that the head's start commands, its environment or the platform made known."""
    from ray._private import state as ray_state
    from ray.experimental import internal_kv

    stored: Any = internal_kv._internal_kv_get(KEY)  # pyright: ignore[reportPrivateUsage]
    if stored:
        return node_types.from_json(stored.decode())
    if text := os.environ.get(VARIABLE, ""):
        found = node_types.from_json(text)
        # For processes on other nodes, whose environment lacks it.
        internal_kv._internal_kv_put(KEY, text.encode())  # pyright: ignore[reportPrivateUsage]
        return found
    state: Any = ray_state.state
    config: Any = state.get_cluster_config()
    groups = [] if config is None else list(config.node_group_configs)
    return [
        NodeType(
            name=group.name,
            cpus=float(group.resources.get("CPU", 0)),
            gpus=float(group.resources.get("GPU", 0)),
            memory=float(group.resources["memory"]) if "memory" in group.resources else None,
            max_count=None if group.max_count < 0 else group.max_count,
        )
        for group in groups
    ] or None


def _alive() -> list[NodeType]:
    """The nodes that are alive, once their list no longer grows."""
    found = node_types.from_nodes(ray.nodes())
    if started_ray():
        return found
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end and sum(node.max_count or 0 for node in found) < 2:
        time.sleep(0.5)
        found = node_types.from_nodes(ray.nodes())
    return found


def _has_autoscaler() -> bool:
    state = _autoscaling_state()
    return state is not None and state.autoscaler_state_version > 0


def _is_infeasible(group: PlacementGroup) -> bool:
    state, wanted = _autoscaling_state(), group.id.hex()
    requests: Any = () if state is None else state.infeasible_gang_resource_requests
    return any(wanted in request.details for request in requests)


def _autoscaling_state() -> Any:
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated import autoscaler_pb2

    messages: Any = autoscaler_pb2
    reply: Any = messages.GetClusterStatusReply()
    try:
        address = ray.get_runtime_context().gcs_address
        reply.ParseFromString(GcsClient(address=address).get_cluster_status(timeout_s=10))
    except Exception:
        logger.debug("no status of the autoscaler", exc_info=True)
        return None
    return reply.autoscaling_state


def _status() -> Any:
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        return get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception:
        # It is only shown: a hiccup of the head must not end the wait.
        logger.debug("no status of the cluster", exc_info=True)
        return None


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
