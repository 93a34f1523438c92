"""Options of a training."""

from dataclasses import dataclass

from dreampose.config import Recipe, Savings


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of a training; see `dreampose.training.train` for the fields passed on.

    out: folder or URI of the run. num_threads: of torch in each worker. shard: spread the weights
    over the workers. track: names of experiment trackers. precision: 'auto', 'fp32' or 'bf16'.
    data_cache: bytes of data that a worker keeps locally.
    """

    stage: str
    recipe: Recipe
    data: str
    val_data: str | None
    out: str
    model: str | None
    warm_start: str | None
    max_steps: int | None
    seed: int
    checkpoint_every: int
    validate_every: int
    num_threads: int
    shard: bool
    track: tuple[str, ...]
    precision: str
    savings: Savings
    data_cache: int
