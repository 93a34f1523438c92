"""Requests of stages: constants, replaced by flags and by a file."""

import argparse
import random

import pytest

from cluster import node_types, worker_requests
from cluster.node_types import NodeType
from cluster.worker_requests import CLUSTER, GIB, LOCAL, WorkerRequest
from dreampose.errors import InputError

GRID = {
    "1x2": [NodeType(name="node", cpus=2)],
    "3x1": [NodeType(name="node", cpus=1, max_count=3)],
    "3x2": [NodeType(name="node", cpus=2, max_count=3)],
    "3x4": [NodeType(name="node", cpus=4, max_count=3)],
    "4x16": [NodeType(name="node", cpus=16, max_count=4)],
    "head 0 + 2x8": [
        NodeType(name="head", cpus=0),
        NodeType(name="node", cpus=8, max_count=2),
    ],
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("MAX_THREADS", "REQUESTS_FILE", "PROFILE"):
        monkeypatch.delenv(getattr(worker_requests, name), raising=False)


def flags(*argv):
    parser = argparse.ArgumentParser()
    worker_requests.add_flags(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize("shape", GRID)
@pytest.mark.parametrize("stage", CLUSTER)
def test_every_stage_fits_every_cluster_and_leaves_room_for_its_reads_and_writes(shape, stage):
    nodes, asked = GRID[shape], CLUSTER[stage]
    node_types.check_fits(nodes, asked.worker, stage=stage, io_cpus=asked.io_cpus)
    most = node_types.workers_held(nodes, asked.worker, io_cpus=asked.io_cpus)
    assert most is not None
    assert most >= 1
    # Whatever order the workers are placed in, one read and one write still fit on some node.
    for seed in range(20):
        free = [node.cpus for node in nodes for _ in range(node.max_count)]
        for _ in range(most):
            able = [i for i, cpus in enumerate(free) if cpus >= asked.worker.cpus - 1e-9]
            place = random.Random(seed).choice(able)
            free[place] -= asked.worker.cpus
        assert max(free) >= asked.io_cpus - 1e-9


@pytest.mark.parametrize("stage", LOCAL)
@pytest.mark.parametrize("cores", [1, 2])
def test_the_local_profile_fits_a_machine_of_one_core(stage, cores):
    asked = LOCAL[stage]
    machine = [NodeType(name="machine", cpus=cores)]
    node_types.check_fits(machine, asked.worker, stage=stage, workers=cores, io_cpus=asked.io_cpus)


def test_requests_do_not_change_with_the_cluster():
    # The same constant whatever is up: that is the point of it.
    assert set(CLUSTER) == set(LOCAL)
    assert CLUSTER["train"].request(gpus=True).bundle == {"CPU": 1, "GPU": 1, "memory": 8 * GIB}
    assert CLUSTER["catwalk"].request(gpus=True) == CLUSTER["catwalk"].worker, "needs no GPU"


def test_flags_replace_the_stage_s_numbers():
    args = flags(
        "--cpus-per-worker", "4", "--gpus-per-worker", "0.25", "--memory-per-worker", "6GiB"
    )
    asked = worker_requests.from_flags("preprocess", "cluster", args)
    assert asked.request(gpus=True) == WorkerRequest(cpus=4, gpus=0.25, memory=6 * GIB)
    assert asked.request(gpus=False) == WorkerRequest(cpus=4, memory=6 * GIB)
    assert asked.io_cpus == CLUSTER["preprocess"].io_cpus


def test_a_stage_without_gpus_refuses_a_share_of_one():
    with pytest.raises(InputError, match="gpus-per-worker must be left out"):
        worker_requests.from_flags("catwalk", "cluster", flags("--gpus-per-worker", "1"))


def test_a_file_replaces_numbers_of_stages_and_flags_those_of_the_file(tmp_path, monkeypatch):
    file = tmp_path / "requests.toml"
    file.write_text('[train]\nread_cpus = 0.5\n[train.gpu]\ncpus = 8\nmemory = "24GiB"\n')
    asked = worker_requests.stage_request("train", "cluster", file=file)
    assert asked.request(gpus=True) == WorkerRequest(cpus=8, gpus=1, memory=24 * GIB)
    assert (asked.read_cpus, asked.worker) == (0.5, CLUSTER["train"].worker)
    monkeypatch.setenv(worker_requests.REQUESTS_FILE, str(file))
    args = flags("--cpus-per-worker", "2")
    assert worker_requests.from_flags("train", "cluster", args).request(gpus=True).cpus == 2
    assert worker_requests.stage_request("finetune", "cluster") == CLUSTER["finetune"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trian]\ncpus = 1\n", "'trian'.*must be a table named after a stage"),
        ("[train]\ncpu = 1\n", r"\[train\] may have cpus, memory, got 'cpu'"),
        ("[train]\ncpus = 1.5\n", r"\[train\] cpus must be a fraction of at most 1 or a whole"),
        ("[train.gpu]\nmemory = 'much'\n", "size must be like 512MiB"),
        ("[train]\ncpus = true\n", "train.cpus must be a number"),
        ("[catwalk.gpu]\ngpus = 1\n", r"\[catwalk.gpu\] must be left out"),
        ("train = [", "is not TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    file = tmp_path / "requests.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        worker_requests.stage_request("preprocess", "cluster", file=file)


@pytest.mark.parametrize(("value", "number"), [("1000", 1000), ("2GiB", 2 * GIB), ("8GB", 8e9)])
def test_sizes(value, number):
    assert worker_requests.parse_bytes(value) == number


@pytest.mark.parametrize(("value", "seconds"), [("90", 90), ("15m", 900), ("2h", 7200)])
def test_times(value, seconds):
    assert flags("--wait-for-resources", value).wait_for_resources == seconds


def test_a_bad_time_is_named(capsys):
    with pytest.raises(SystemExit):
        flags("--wait-for-resources", "soon")
    assert "time must be like 90s, 15m or 2h, got 'soon'" in capsys.readouterr().err


def test_the_profile_follows_from_who_started_ray(monkeypatch):
    assert worker_requests.choose_profile(None, started_ray=True) == "local"
    assert worker_requests.choose_profile(None, started_ray=False) == "cluster"
    monkeypatch.setenv(worker_requests.PROFILE, "local")
    assert worker_requests.choose_profile(None, started_ray=False) == "local"
    assert worker_requests.choose_profile("cluster", started_ray=True) == "cluster"
    monkeypatch.setenv(worker_requests.PROFILE, "laptop")
    with pytest.raises(InputError, match="profile must be local or cluster, got 'laptop'"):
        worker_requests.choose_profile(None, started_ray=True)


def test_threads_are_the_machine_s_cores_or_the_request_s_cpus(monkeypatch):
    eight, half = WorkerRequest(cpus=8), WorkerRequest(cpus=0.5)
    assert worker_requests.num_threads(eight, "cluster", workers=2, cores=2) == 8
    assert worker_requests.num_threads(half, "cluster", workers=2, cores=64) == 1
    assert worker_requests.num_threads(half, "local", workers=2, cores=8) == 4
    monkeypatch.setenv(worker_requests.MAX_THREADS, "3")
    assert worker_requests.num_threads(half, "local", workers=2, cores=8) == 3
    monkeypatch.setenv(worker_requests.MAX_THREADS, "0")
    with pytest.raises(InputError, match="DREAMPOSE_MAX_THREADS must be a whole number.*got '0'"):
        worker_requests.num_threads(half, "local", workers=2, cores=8)
