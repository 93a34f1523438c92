"""Ray clusters of several nodes on this machine, for tests.

    with clusters.fixed([{"num_cpus": 1}, {"num_cpus": 1}]) as cluster:
        subprocess.run([...], env=cluster.environment())
        cluster.kill(cluster.workers[0])

    with clusters.autoscaling({"cpu": {"CPU": 4}, "gpu": {"CPU": 2, "GPU": 1}}) as cluster: ...

Every process of a cluster carries a mark in its environment; whatever carries it is killed at the
end, and nothing else is touched. A process that uses a cluster (a driver) gets `environment()`,
which names the cluster and has no mark: it is the caller's to end.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MARK = "DREAMPOSE_TEST_CLUSTER"
NODE = "DREAMPOSE_TEST_NODE"
FAKE_HEAD_ID = "f" * 51 + "00000"
ROOT = Path(__file__).resolve().parents[2]
OBJECT_STORE_BYTES = 150_000_000
START_SECONDS = 120.0


@dataclass(kw_only=True)
class Node:
    """A node that runs on this machine, by the mark of its processes."""

    mark: str
    process: "subprocess.Popen[bytes] | None" = None
    ip: str = ""


@dataclass(kw_only=True)
class Cluster:
    """A running cluster."""

    address: str
    folder: Path
    mark: str
    head: Node
    dashboard: str = ""
    """Its address for `ray job submit`; empty without one."""
    workers: list[Node] = field(default_factory=list)

    def environment(self, **extra: str) -> dict[str, str]:
        """Environment of a process that joins the cluster."""
        found = _environment() | {"RAY_ADDRESS": self.address}
        if self.dashboard:
            found |= {
                "RAY_API_SERVER_ADDRESS": self.dashboard,
                "RAY_DASHBOARD_ADDRESS": self.dashboard,
            }
        return found | extra

    def add_node(
        self,
        *,
        num_cpus: int = 1,
        num_gpus: int = 0,
        resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
        memory: int | None = None,
        command: Sequence[str] = (),
    ) -> Node:
        """Starts a node and returns without waiting for it.

        Args:
            num_cpus: of it.
            num_gpus: of it; they exist for Ray alone.
            resources: others.
            labels: of it.
            memory: bytes that Ray hands out; its own measure by default.
            command: what the node's command is given to as arguments, for example `unshare -m`.
        """
        number = len(self.workers) + 2
        # An address of its own: a driver attaches to the node that has its address, the head.
        node = Node(mark=uuid.uuid4().hex, ip=f"127.0.0.{number}")
        arguments = [
            f"--address={self.address}",
            f"--node-ip-address={node.ip}",
            f"--num-cpus={num_cpus}",
            f"--num-gpus={num_gpus}",
            f"--resources={json.dumps(dict(resources or {}))}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self.folder}/n{number}",
            "--include-log-monitor=true",
        ]
        if labels:
            arguments.append("--labels=" + ",".join(f"{key}={labels[key]}" for key in labels))
        if memory is not None:
            arguments.append(f"--memory={memory}")
        environment = _environment() | {MARK: self.mark, NODE: node.mark}
        node.process = _ray_start(
            arguments, environment, self.folder / f"node{number}.log", command
        )
        self.workers.append(node)
        return node

    def kill(self, node: Node) -> None:
        """Ends a node abruptly: SIGKILL of all its processes, its raylet first."""
        for pid in sorted(_marked(NODE, node.mark), key=lambda pid: "raylet" not in _name(pid)):
            _kill(pid)
        if node.process is not None:
            node.process.wait()
        if node in self.workers:
            self.workers.remove(node)

    def kill_autoscaled(self, node_id: str) -> None:
        """Ends a node of a fake autoscaler abruptly, by the id that `ray.nodes()` gives."""
        raylets = _marked("RAY_OVERRIDE_NODE_ID_FOR_TESTING", node_id)
        for pid in sorted(raylets & _marked(MARK, self.mark)):
            _kill(pid)

    def running(self, text: str) -> list[Node]:
        """Nodes with a process whose command contains this, for example `ray::Encoder`."""
        return [
            node
            for node in self.workers
            if any(text in _command(pid) for pid in _marked(NODE, node.mark))
        ]

    def node_id(self, node: Node) -> str:
        """Ray's id of a node that is alive, found in the command line of its processes."""
        commands = " ".join(_command(pid) for pid in _marked(NODE, node.mark))
        (found,) = (one["NodeID"] for one in self.alive() if one["NodeID"] in commands)
        return found

    def alive(self) -> list[dict[str, Any]]:
        """Nodes that the head takes for alive: id, resources and labels, without joining."""
        script = (
            "import json, sys, ray._private.state as s\n"
            "from ray._raylet import GcsClientOptions\n"
            "state = s.GlobalState()\n"
            "state._initialize_global_state(GcsClientOptions.create("
            "sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False))\n"
            "print(json.dumps([n for n in state.node_table() if n['Alive']], default=str))\n"
        )
        answer = subprocess.run(
            [sys.executable, "-c", script, self.address],
            env=_environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return json.loads(answer.stdout) if answer.returncode == 0 else []

    def wait_for_nodes(self, number: int, *, seconds: float = START_SECONDS) -> None:
        """Waits until so many nodes are alive, the head included.

        Raises:
            TimeoutError: there are not.
        """
        end = time.monotonic() + seconds
        while len(found := self.alive()) != number:
            if time.monotonic() > end:
                logs = "\n".join(
                    f"{log.name}: {log.read_text('utf-8')[-1500:]}"
                    for log in sorted(self.folder.glob("*.log"))
                )
                raise TimeoutError(f"{len(found)} of {number} nodes are alive\n{logs}")
            time.sleep(0.5)


@contextlib.contextmanager
def fixed(
    nodes: Sequence[Mapping[str, Any]] = (),
    *,
    head: Mapping[str, Any] | None = None,
    dashboard: bool = False,
) -> Generator[Cluster]:
    """A cluster of a head and these nodes.

    Args:
        nodes: arguments of `Cluster.add_node`.
        head: num_cpus and num_gpus of the head; by default none.
        dashboard: start the one that `ray job submit` and `serve deploy` speak to.
    """
    with _cluster(head or {}, dashboard=dashboard, autoscaling=None) as cluster:
        for node in nodes:
            cluster.add_node(**node)
        cluster.wait_for_nodes(1 + len(nodes))
        yield cluster


@contextlib.contextmanager
def autoscaling(
    node_types: Mapping[str, Mapping[str, float]],
    *,
    max_workers: Mapping[str, int] | None = None,
    idle_minutes: float = 0.5,
    dashboard: bool = False,
    publish: bool = True,
) -> Generator[Cluster]:
    """A cluster whose head has no CPU and whose autoscaler starts nodes on this machine.

    Args:
        node_types: CPU, GPU and custom resources of each.
        max_workers: of each type; 2 by default.
        idle_minutes: after which a node goes.
        dashboard: as in `fixed`.
        publish: let jobs know the node types, as the cluster files do.
    """
    types: dict[str, Any] = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    }
    for name, resources in node_types.items():
        types[name] = {
            # Without memory, which the fake provider cannot hand on.
            "resources": {"object_store_memory": OBJECT_STORE_BYTES} | dict(resources),
            "node_config": {},
            "min_workers": 0,
            "max_workers": (max_workers or {}).get(name, 2),
            "labels": {"ray.io/node-group": name},
        }
    settings = {"types": types, "idle_minutes": idle_minutes, "publish": publish}
    with _cluster({}, dashboard=dashboard, autoscaling=settings) as cluster:
        yield cluster


@contextlib.contextmanager
def _cluster(
    head: Mapping[str, Any], *, dashboard: bool, autoscaling: Mapping[str, Any] | None
) -> Generator[Cluster]:
    mark = uuid.uuid4().hex
    # Short, since Ray's sockets lie in it.
    folder = Path(tempfile.mkdtemp(prefix="dp", dir="/tmp"))
    ip = _ip()
    port, dashboard_port, client_port = free_ports(3)
    address = f"{ip}:{port}"
    environment = _environment() | {MARK: mark, NODE: mark}
    arguments = [
        "--head",
        f"--port={port}",
        f"--node-ip-address={ip}",
        f"--num-cpus={head.get('num_cpus', 0)}",
        f"--num-gpus={head.get('num_gpus', 0)}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={folder}/n1",
        f"--ray-client-server-port={client_port}",
        f"--include-dashboard={str(dashboard).lower()}",
        f"--dashboard-port={dashboard_port}",
    ]
    if autoscaling is not None:
        file = folder / "autoscaler.yaml"
        file.write_text(yaml.safe_dump(_autoscaler(autoscaling, address)), "utf-8")
        arguments.append(f"--autoscaling-config={file}")
        environment |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_ID,
        }
    cluster = Cluster(
        address=address,
        folder=folder,
        mark=mark,
        head=Node(mark=mark, ip=ip),
        dashboard=f"http://127.0.0.1:{dashboard_port}" if dashboard else "",
    )
    try:
        cluster.head.process = _ray_start(arguments, environment, folder / "head.log")
        cluster.wait_for_nodes(1)
        if autoscaling is not None and autoscaling["publish"]:
            _publish(folder / "autoscaler.yaml", address)
        if dashboard:
            _wait_for_dashboard(cluster)
        yield cluster
    finally:
        for _ in range(3):
            for pid in _marked(MARK, mark):
                _kill(pid)
        for node in [cluster.head, *cluster.workers]:
            if node.process is not None:
                node.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(number: int) -> list[int]:
    """Ports of this machine that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _autoscaler(settings: Mapping[str, Any], address: str) -> dict[str, Any]:
    commands = (
        "initialization_commands setup_commands head_setup_commands worker_setup_commands "
        "head_start_ray_commands worker_start_ray_commands cluster_synced_files rsync_exclude "
        "rsync_filter"
    )
    return {
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in settings["types"].values()),
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": settings["idle_minutes"],
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_ID,
            "gcs_address": address,
            # There is nothing to install: the nodes are processes of this machine.
            "disable_node_updaters": True,
        },
        "available_node_types": settings["types"],
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in commands.split()},
    }


def _publish(config: Path, address: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "cluster.publish", str(config), "--address", address],
        env=_environment(), check=True, timeout=60,
    )  # fmt: skip


def _wait_for_dashboard(cluster: Cluster) -> None:
    host, port = cluster.dashboard.removeprefix("http://").split(":")
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.5)
    raise TimeoutError(f"no dashboard at {cluster.dashboard}")


def _ray_start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    command: Sequence[str] = (),
) -> "subprocess.Popen[bytes]":
    ray = str(Path(sys.executable).with_name("ray"))
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, ray, "start", *arguments, "--block", "--disable-usage-stats"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _environment() -> dict[str, str]:
    found = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "DREAMPOSE_", "SERVE_"))
    }
    path = [str(ROOT), *filter(None, [found.get("PYTHONPATH", "")])]
    return found | {
        "PYTHONPATH": os.pathsep.join(path),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Ray's workers give way to everything else (15), and starve on a busy machine.
        "RAY_worker_niceness": "0",
        "RAY_raylet_start_wait_time_s": "300",
        "RAY_worker_register_timeout_seconds": "600",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
        # A node's death is seen within a minute, also where the machine is busy.
        "RAY_health_check_initial_delay_ms": "5000",
        "RAY_health_check_period_ms": "2000",
        "RAY_health_check_failure_threshold": "15",
    }


def _ip() -> str:
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def _marked(name: str, value: str) -> set[int]:
    """Processes that have this in their environment."""
    wanted = f"{name}={value}".encode()
    found: set[int] = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
    return found


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text("utf-8")
    return ""


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8")
    return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
