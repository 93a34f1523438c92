"""What a piece of work takes: the value. Knows neither models nor prices."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a piece of work takes.

    parameters: of each part. num_trained: parameters that change. held_bytes: what lies on the
    device all the time (weights, moments, averages, kept gradients). peak_bytes: most at once.
    scratch_bytes: what kernels may take beside that, see `trace`. flops: of the piece. state_bytes:
    of a checkpoint of it.
    """

    parameters: Mapping[str, int]
    num_trained: int
    held_bytes: int
    peak_bytes: int
    scratch_bytes: int
    flops: int
    state_bytes: int = 0
