"""What stages are given of a cluster, and what is said while they wait, without Ray."""

import sys
from types import SimpleNamespace

import pytest

from cluster import capacity, worker_requests
from cluster.capacity import Capacity, one_machine
from cluster.node_types import NodeType
from cluster.worker_requests import CLUSTER, GIB
from dreampose.errors import InputError

HEAD = NodeType(name="head", cpus=0)
CPU = NodeType(name="cpu", cpus=32, memory=64 * GIB, max_count=8)
GPU = NodeType(name="gpu", cpus=8, gpus=1, memory=32 * GIB, max_count=16)
GROWING = Capacity(profile="cluster", types=(HEAD, CPU, GPU), grows=True)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("MAX_THREADS", "REQUESTS_FILE", "PROFILE"):
        monkeypatch.delenv(getattr(worker_requests, name), raising=False)


def test_a_gpu_is_used_where_a_node_type_has_one_though_none_is_up():
    found = GROWING.allocate("train", workers=4, at_least=4)
    assert found.gpus
    assert found.worker == CLUSTER["train"].gpu_worker
    assert not GROWING.allocate("train", workers=4, at_least=4, gpus=False).gpus


def test_a_stage_without_gpus_stays_off_gpu_nodes():
    found = GROWING.allocate("preprocess", gpus=False, at_most=10_000)
    assert found.remote_args["label_selector"] == {"ray.io/node-group": "!in(gpu)"}
    assert found.light_args(0.1)["label_selector"] == {"ray.io/node-group": "!in(gpu)"}
    # Where there are no others, it runs beside the GPUs.
    alone = Capacity(profile="cluster", types=(HEAD, GPU), grows=True)
    assert "label_selector" not in alone.allocate("preprocess", gpus=False).remote_args


def test_the_number_of_workers_is_what_the_cluster_can_grow_to_or_what_there_is_work_for():
    # Memory bounds them: 8 nodes of 32 times 2 GiB.
    assert GROWING.allocate("preprocess", gpus=False).workers == 256
    assert GROWING.allocate("preprocess", gpus=False, at_most=3).workers == 3
    assert GROWING.allocate("preprocess", gpus=False, workers=5, at_most=9).workers == 5
    assert GROWING.allocate("preprocess", gpus=False, at_most=9).pool == {
        "min_size": 1, "max_size": 9
    }  # fmt: skip


def test_more_gpus_than_a_cluster_can_grow_to_are_refused():
    with pytest.raises(InputError, match="train asks for 17 × .* can hold 16 .*up to 16 × gpu"):
        GROWING.allocate("train", workers=17, at_least=17)


def test_a_fixed_cluster_with_too_few_gpus_trains_without():
    fixed = Capacity(profile="cluster", types=(HEAD, CPU, GPU))
    assert not fixed.allocate("train", workers=17, at_least=17).gpus


def test_where_only_the_autoscaler_knows_nothing_is_refused():
    unknown = Capacity(profile="cluster", types=(HEAD,), grows=True, complete=False)
    assert unknown.allocate("preprocess", gpus=False, at_most=7).workers == 7


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 1)])
def test_one_machine_has_a_worker_a_core(cores, threads):
    found = one_machine(cpus=cores).allocate("preprocess", gpus=False)
    assert (found.workers, found.threads) == (cores, threads)
    assert found.pool == {"size": cores}


def test_one_machine_gives_a_single_worker_all_its_cores():
    assert one_machine(cpus=8).allocate("train", workers=1).threads == 8
    assert one_machine(cpus=8, gpus=2).allocate("finetune").workers == 2


def node(name, total, free=None):
    return SimpleNamespace(
        ray_node_type_name=name,
        total_resources=lambda: total,
        available_resources=lambda: total if free is None else free,
    )


def status(*nodes, launches=0, failed=()):
    return SimpleNamespace(
        active_nodes=nodes,
        idle_nodes=[],
        pending_launches=[SimpleNamespace(count=launches)] if launches else [],
        pending_nodes=[],
        failed_launches=[SimpleNamespace(details=text) for text in failed],
    )


def line(*nodes, cluster=GROWING, **more):
    allocation = cluster.allocate("train", workers=2, at_least=2)
    return capacity.waiting_line(cluster, allocation, status(*nodes, **more), workers=2)


BIG = {"CPU": 8.0, "GPU": 1.0, "memory": 32.0 * GIB}


def test_the_line_says_what_is_pending_and_why():
    asked = "waiting for 2 × {CPU: 1, GPU: 1, memory: 8GiB}"
    head = node("head", {})
    assert line(head) == f"{asked}: 0 there; the autoscaler may add nodes"
    assert line(head, node("gpu", BIG)) == f"{asked}: 1 free; the autoscaler may add nodes"
    assert line(head, launches=2) == f"{asked}: 0 there; 2 nodes starting"
    assert "could not start a node (no quota" in line(head, failed=["no quota"])
    fixed = Capacity(profile="cluster", types=(HEAD, GPU))
    busy = node("gpu", BIG, {"CPU": 7.0})
    assert line(busy, busy, cluster=fixed) == f"{asked}: 0 free; other work holds the rest"
    allocation = GROWING.allocate("train", workers=2, at_least=2)
    assert "unknown" in capacity.waiting_line(GROWING, allocation, None, workers=2)


def test_gpu_nodes_do_not_count_for_a_stage_that_stays_off_them():
    allocation = GROWING.allocate("preprocess", gpus=False)
    said = capacity.waiting_line(GROWING, allocation, status(node("gpu", BIG)), workers=1)
    assert ": 0 there;" in said


def test_an_unbounded_cluster_has_no_bound():
    endless = NodeType(name="cpu", cpus=4, max_count=None)
    found = Capacity(profile="cluster", types=(endless,), grows=True).allocate("catwalk")
    assert found.workers == sys.maxsize
