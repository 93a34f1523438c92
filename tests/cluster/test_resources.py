"""Shares of a cluster: what fits side by side really fits."""

import pytest

from cluster import resources
from dreampose.errors import InputError

CORES = [1, 2, 3, 4, 8, 64]


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch):
    monkeypatch.delenv(resources.MAX_THREADS, raising=False)


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("num_videos", [1, 2, 100])
def test_preprocessing_leaves_room_for_reads_and_writes(cores, num_videos):
    share = resources.preprocessing({"CPU": cores}, num_videos=num_videos, workers=None, gpus=False)
    used = share.num_processes * share.num_cpus
    assert used + 2 * resources.LIGHT_CPUS <= cores + 1e-6
    assert share.num_processes == min(cores, num_videos)


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_training_uses_every_core_and_leaves_logical_cpus(cores, workers):
    share = resources.training({"CPU": cores}, workers=workers, gpus=False)
    assert share.num_threads == max(1, cores // workers)
    assert share.num_cpus * workers < cores
    assert share.num_cpus < 1 or share.num_cpus.is_integer(), "Ray refuses 1.5 CPUs"


def test_finetuning_takes_one_gpu_a_person():
    share = resources.finetuning({"CPU": 8, "GPU": 2}, num_subjects=5, gpus=True)
    assert (share.num_gpus, share.num_processes) == (1, 2)


def test_what_the_cluster_lacks_is_refused_and_not_waited_for():
    share = resources.training({"CPU": 8, "GPU": 1}, workers=2, gpus=True)
    with pytest.raises(InputError, match="at least 2 GPUs.*got 1"):
        resources.require({"CPU": 8, "GPU": 1}, share, at_least=2)
    resources.require({"CPU": 8, "GPU": 2}, share, at_least=2)


def test_the_environment_limits_threads(monkeypatch):
    monkeypatch.setenv(resources.MAX_THREADS, "3")
    assert resources.training({"CPU": 16}, workers=2, gpus=False).num_threads == 3
    assert resources.training({"CPU": 4}, workers=2, gpus=False).num_threads == 2
    monkeypatch.setenv(resources.MAX_THREADS, "0")
    with pytest.raises(InputError, match="DREAMPOSE_MAX_THREADS must be a whole number.*got '0'"):
        resources.sampling({"CPU": 4}, replicas=1)
