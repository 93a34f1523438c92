"""Plans: operations, hours, dollars and errors."""

import pytest

from dreampose.errors import InputError
from jobs.common import planning
from jobs.common.planning import Cost

TABLE = """
[share_of_peak]
fp32 = 0.5
bf16 = 0.25
[gpus]
"G" = { fp32 = 10, bf16 = 100, memory = 16 }
[[instances]]
name = "two"
gpu = "G"
num_gpus = 2
cores = 4
dollars = 3
[[instances]]
name = "none"
gpu = ""
num_gpus = 0
cores = 8
dollars = 1
"""


@pytest.fixture
def machines(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(TABLE)
    return planning.read_machines(path)


def a_plan(*, peak_bytes=0.0, scratch_bytes=0.0, **values):
    cost = Cost(flops=0, held_bytes=0, peak_bytes=peak_bytes, scratch_bytes=scratch_bytes)
    return planning.Plan(title="t", work=("w",), parameters={"unet": 1}, cost=cost, **values)


def test_hours_are_operations_divided_by_the_sustained_rate_of_all_gpus(machines):
    two, none = machines
    # 2 GPUs x 100 TFLOP/s x 0.25 = 50 TFLOP/s.
    assert a_plan(flops=50e12 * 7200, precision="bf16").hours(two) == pytest.approx(2)
    assert a_plan(flops=10e12 * 7200).hours(two) == pytest.approx(2)
    assert a_plan(flops=1.0).hours(none) is None
    assert a_plan(core_seconds=8 * 3600 * 3).hours(none) == pytest.approx(3)
    # What is slower decides.
    assert a_plan(flops=1.0, core_seconds=4 * 3600 * 5).hours(two) == pytest.approx(5)


def test_text_names_hours_dollars_and_machines_that_are_too_small(machines):
    text = "\n".join(planning.lines(a_plan(flops=10e12 * 7200, peak_bytes=4e9), machines))
    (row,) = [line for line in text.splitlines() if line.startswith("  two")]
    assert row.split() == ["two", "2.00", "6.00"]
    assert "4.8 GB a worker" in text
    assert "none" not in text
    text = "\n".join(planning.lines(a_plan(flops=1e12, peak_bytes=16e9), machines))
    assert "too small" in text


def test_a_gpu_must_hold_scratch_and_leave_a_twentieth(machines):
    two, _ = machines  # 16 GB each: 15.2 GB usable, 0.8 GB of them for CUDA
    assert a_plan(flops=1.0, peak_bytes=12.3e9, scratch_bytes=2e9).fits(two)
    assert not a_plan(flops=1.0, peak_bytes=12.5e9, scratch_bytes=2e9).fits(two)
    assert not a_plan(flops=1.0, peak_bytes=14.5e9).fits(two)
    text = "\n".join(planning.lines(a_plan(flops=1.0, peak_bytes=4e9, scratch_bytes=1e9), machines))
    assert "5.8 GB a worker at most" in text


def test_waiting_takes_as_long_on_any_machine(machines):
    plan = a_plan(waiting_seconds=7200, core_seconds=3600)
    assert [plan.hours(machine) for machine in machines] == [2, 2]
    assert "2.00 h for servers" in "\n".join(planning.lines(plan, machines))


def test_own_table_can_be_read():
    machines = planning.read_machines()
    assert {0, 1, 2, 8} <= {machine.num_gpus for machine in machines}


@pytest.mark.parametrize(
    ("old", "new"), [("dollars = 3", "dollars = 0"), ('gpu = "G"', 'gpu = "H"'), ("cores = 4", "")]
)
def test_wrong_tables_are_rejected(tmp_path, old, new):
    path = tmp_path / "prices.toml"
    path.write_text(TABLE.replace(old, new))
    with pytest.raises(InputError, match=r"prices must be a table like .*machines\.toml, got"):
        planning.read_machines(path)
