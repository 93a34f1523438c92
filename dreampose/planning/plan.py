"""What a job will take, as text: memory, work, storage, hours and dollars. Knows no modules."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dreampose.planning.prices import Instance, Prices

CUDA_BYTES = 0.8e9
"""What a process takes of a GPU before it works: CUDA itself and the libraries' code."""
UNUSABLE_SHARE = 0.05
"""Of a GPU's memory, what the allocator is taken to lose to gaps between tensors. Not measured."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job, before it is run.

    title: of the job. parameters: of each part of the model. num_trained: parameters that change.
    work: how much there is to do, in words. precision: of computing. flops: of all workers
    together. core_seconds: of the work that CPUs do, all cores together. peak_bytes: of tensors on
    the device of one worker. scratch_bytes: what kernels may take beside them, see `trace`.
    waiting_seconds: for others' servers, whatever the machine. read_bytes, written_bytes: of
    storage; `None` where nobody knows. how: where the numbers come from. published_flops: what the
    published code would compute in float32, where that is known.
    """

    title: str
    work: tuple[str, ...]
    how: tuple[str, ...]
    parameters: Mapping[str, int]
    num_trained: int = 0
    precision: str = "fp32"
    flops: float = 0.0
    core_seconds: float = 0.0
    peak_bytes: float = 0.0
    scratch_bytes: float = 0.0
    waiting_seconds: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float | None = 0.0
    published_flops: float | None = None

    def hours(self, instance: Instance) -> float | None:
        """Hours on all GPUs and cores of a machine; `None` where it lacks a GPU that is needed."""
        if self.flops and not instance.num_gpus:
            return None
        return max(
            gpu_hours(self.flops, self.precision, instance),
            self.core_seconds / instance.cores / 3600,
            self.waiting_seconds / 3600,
        )

    def fits(self, instance: Instance) -> bool:
        """Whether a GPU of the machine holds what one worker needs."""
        usable = (1 - UNUSABLE_SHARE) * instance.gpu_bytes
        return not self.flops or gpu_bytes(self.peak_bytes, self.scratch_bytes) <= usable


def gpu_bytes(peak_bytes: float, scratch_bytes: float) -> float:
    """What one worker takes of a GPU at most: tensors, kernels' own memory, CUDA itself."""
    return peak_bytes + scratch_bytes + CUDA_BYTES


def gpu_hours(flops: float, precision: str, instance: Instance) -> float:
    """Hours in which all GPUs of a machine do so many operations at their sustained rate."""
    if not flops:
        return 0.0
    rate = instance.flops["fp32" if precision == "fp32" else "bf16"]
    return flops / (instance.num_gpus * rate) / 3600


def lines(plan: Plan, prices: Prices) -> Iterator[str]:
    """The plan as text."""
    yield f"plan: {plan.title}"
    if plan.parameters:
        parts = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in plan.parameters.items())
        yield f"  parameters   {parts}; trained {plan.num_trained / 1e6:,.2f} M"
    for line in plan.work:
        yield f"  work         {line}"
    if plan.flops:
        yield f"  computation  {_operations(plan.flops)} in {plan.precision}"
        yield (
            f"  GPU memory   {gpu_bytes(plan.peak_bytes, plan.scratch_bytes) / 1e9:.1f} GB a "
            f"worker at most: {plan.peak_bytes / 1e9:.1f} GB of tensors by trace, up to "
            f"{plan.scratch_bytes / 1e9:.1f} GB for copies inside of convolutions, "
            f"{CUDA_BYTES / 1e9:.1f} GB for CUDA itself; {UNUSABLE_SHARE:.0%} of a GPU is left free"
        )
    if plan.core_seconds:
        yield f"  CPU          {plan.core_seconds / 3600:,.2f} core hours"
    if plan.waiting_seconds:
        yield f"  waiting      {plan.waiting_seconds / 3600:,.2f} h for servers, at any machine"
    kept = plan.written_bytes
    yield (
        f"  storage      {plan.read_bytes / 1e9:,.1f} GB read, "
        + ("an unknown number of bytes kept" if kept is None else f"{kept / 1e9:,.1f} GB kept")
    )
    yield ""
    yield from _table(plan, prices)
    yield ""
    for line in plan.how:
        yield f"  {line}"


def _table(plan: Plan, prices: Prices) -> Iterator[str]:
    published = plan.published_flops
    head = f"  {'machine':<28}{'hours':>10}{'dollars':>10}"
    yield head + (f"{'published code':>18}" if published else "")
    for instance in prices.instances:
        hours = plan.hours(instance)
        if hours is None:
            continue
        if not plan.fits(instance):
            yield f"  {instance.name:<28}{'too small':>10}"
            continue
        row = f"  {instance.name:<28}{hours:>10,.2f}{hours * instance.dollars:>10,.2f}"
        if published:
            row += f"{gpu_hours(published, 'fp32', instance):>16,.1f} h"
        yield row


def _operations(flops: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flops >= size:
            return f"{flops / size:,.2f} {unit}"
    return f"{flops / 1e9:,.2f} GFLOP"
