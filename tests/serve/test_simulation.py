"""The discrete-event simulation of the service."""

import pytest

simpy = pytest.importorskip("simpy")

from benchmarks.simulation import Cell, Costs, Setup, measured_costs, saturation  # noqa: E402

FREE = Costs(loop=0, encode=0, sampler=0, prepare=0, latency=0)


def test_without_overhead_all_samplers_are_busy_until_the_end():
    setup = Setup(samplers=4, videos=8, frames=32, chunk=8, seconds=1, videos_at_once=8)
    result = Cell(setup, FREE).run()
    assert result.makespan == pytest.approx(8 * 32 * 1 / 4)
    assert result.chunks == 32


def test_one_renderer_is_limited_by_its_encoders():
    setup = Setup(samplers=1, videos=600, seconds=0.5, videos_at_once=400, encoders=2)
    few = saturation(setup, Costs(encode=0.01), gpus=40, per_cell=10**6)
    many = saturation(setup, Costs(encode=0.01), gpus=400, per_cell=10**6)
    assert few["gpu_utilisation"] > 0.9
    # Two cores encode 200 frames a second, 400 GPUs render 800.
    assert many["frames_per_second"] == pytest.approx(200, rel=0.05)
    cells = saturation(setup, Costs(encode=0.01), gpus=400, per_cell=64)
    assert cells["gpu_utilisation"] > 0.9


def test_lost_chunks_are_rendered_again():
    setup = Setup(
        samplers=8, videos=40, seconds=2, node_mtbf=200, spot=0, cold_start=60, gpus_per_node=2
    )
    result = Cell(setup, FREE, seed=3).run()
    undisturbed = Cell(Setup(samplers=8, videos=40, seconds=2), FREE).run()
    assert result.lost_nodes > 0
    assert result.lost_chunks > 0
    assert result.makespan > undisturbed.makespan
    notices = Cell(
        Setup(
            samplers=8, videos=40, seconds=2, node_mtbf=200, spot=1, cold_start=60, gpus_per_node=2
        ),
        FREE,
        seed=3,
    ).run()
    assert notices.lost_chunks == 0


def test_weights_are_swapped_once_per_subject_that_fits_in_memory():
    setup = Setup(samplers=1, videos=20, frames=8, subjects=3, subjects_in_memory=4, seconds=0.1)
    assert Cell(setup, FREE).run().swaps == 3


def test_costs_are_read_from_a_measurement():
    rows = [
        {"encode_per_frame": 1.0, "prepare_per_video": 20.0},
        {
            "replicas": 4, "frames": 80, "chunk": 4, "renderer_cpu_ms_per_frame": 3.0,
            "samplers_cpu_ms_per_chunk": 5.0,
        },
    ]  # fmt: skip
    costs = measured_costs(rows)
    assert (costs.encode, costs.prepare, costs.sampler) == (0.001, 0.02, 0.005)
    assert costs.loop == pytest.approx(0.008)
