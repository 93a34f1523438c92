"""Node types: what they hold, and what is refused."""

import pytest

from cluster import node_types
from cluster.node_types import NodeType
from cluster.worker_requests import GIB, WorkerRequest
from dreampose.errors import InputError

HEAD = NodeType(name="head", cpus=0)
CPU = NodeType(name="cpu", cpus=32, memory=64 * GIB, max_count=8)
GPU = NodeType(name="gpu", cpus=8, gpus=1, memory=32 * GIB, max_count=16)


def test_totals_that_suffice_do_not_help_where_no_node_holds_one_worker():
    # 384 CPUs and 16 GPUs in all, but never 12 CPUs beside a GPU.
    with pytest.raises(InputError) as error:
        node_types.check_fits(
            [HEAD, CPU, GPU], WorkerRequest(cpus=12, gpus=1), stage="train", workers=2
        )
    text = str(error.value)
    assert "train asks for 2 × {CPU: 12, GPU: 1}, of which the cluster can hold 0" in text
    assert "up to 16 × gpu {CPU: 8, GPU: 1, memory: 32GiB}" in text


def test_a_number_of_workers_is_held_against_the_largest_size_of_the_cluster():
    one_gpu = WorkerRequest(cpus=1, gpus=1)
    node_types.check_fits([HEAD, CPU, GPU], one_gpu, stage="train", workers=16)
    with pytest.raises(InputError, match="can hold 16 "):
        node_types.check_fits([HEAD, CPU, GPU], one_gpu, stage="train", workers=17)


def test_memory_bounds_the_workers_of_a_node():
    assert CPU.holds(WorkerRequest(cpus=1, memory=16 * GIB)) == 4


@pytest.mark.parametrize(
    ("share", "count"), [(0.5, 4), (0.6, 2), (0.25, 8), (1, 2), (2, 1), (3, 0)]
)
def test_a_share_is_of_one_gpu(share, count):
    node = NodeType(name="two", cpus=64, gpus=2)
    assert node.holds(WorkerRequest(cpus=1, gpus=share)) == count


def test_room_for_reads_may_lie_on_nodes_that_hold_no_worker():
    gpu = NodeType(name="gpu", cpus=1, gpus=1, max_count=2)
    worker = WorkerRequest(cpus=1, gpus=1)
    assert node_types.workers_held([gpu], worker, io_cpus=0.25) == 0
    assert node_types.workers_held([gpu, CPU], worker, io_cpus=0.25) == 2


def test_a_type_without_bound_holds_any_number():
    endless = NodeType(name="cpu", cpus=1, max_count=None)
    assert node_types.workers_held([endless], WorkerRequest(cpus=0.5)) is None


def test_memory_that_a_type_does_not_state_is_not_asked_for():
    asked = WorkerRequest(cpus=1, memory=GIB)
    assert node_types.without_unknown_memory([CPU, GPU], asked) == asked
    silent = NodeType(name="other", cpus=4)
    assert node_types.without_unknown_memory([CPU, silent], asked).memory == 0


def test_types_of_an_autoscaler_s_configuration():
    config = {
        "max_workers": 10,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}},
            "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 16, "labels": {"a": "b"}},
        },
    }
    head, gpu = node_types.from_autoscaler(config)
    assert (head.cpus, head.max_count) == (0, 1)
    assert (gpu.gpus, gpu.max_count, gpu.labels) == (1, 10, (("a", "b"),))
    del config["available_node_types"]["gpu"]["resources"]
    with pytest.raises(InputError, match="'gpu' must have resources with a CPU"):
        node_types.from_autoscaler(config)


def test_types_of_a_raycluster():
    def template(**limits):
        return {"spec": {"containers": [{"resources": {"limits": limits}}]}}

    head, gpu = node_types.from_raycluster(
        {
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": template(cpu="4")},
            "workerGroupSpecs": [
                {
                    "groupName": "gpu",
                    "maxReplicas": 3,
                    "template": template(cpu="7500m", memory="16Gi", **{"nvidia.com/gpu": "1"}),
                }
            ],
        }
    )
    assert head.cpus == 0
    assert (gpu.cpus, gpu.gpus, gpu.memory, gpu.max_count) == (7.5, 1, 16 * GIB, 3)


def test_alive_nodes_of_one_size_are_one_type():
    def node(alive=True, **resources):
        return {"Alive": alive, "Resources": resources, "Labels": {}}

    found = node_types.from_nodes(
        [
            node(**{"node:__internal_head__": 1.0}),
            node(CPU=4.0, memory=10.0 * GIB),
            node(CPU=4.0, memory=10.0 * GIB + 4096),
            node(alive=False, CPU=4.0),
        ]
    )
    assert [(kind.name, kind.cpus, kind.max_count) for kind in found] == [
        ("head", 0.0, 1),
        ("worker", 4.0, 2),
    ]


def test_json_holds_all_of_it():
    kinds = [HEAD, NodeType(name="gpu", cpus=8, gpus=1, labels=(("market", "spot"),))]
    assert node_types.from_json(node_types.to_json(kinds)) == kinds
    with pytest.raises(InputError, match="node types must be a JSON list"):
        node_types.from_json('[{"cpu": 4}]')
