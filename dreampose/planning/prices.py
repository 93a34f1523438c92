"""The table of machines: what they can do and cost. Knows nothing of jobs."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dreampose.errors import InputError

TABLE = Path(__file__).parent / "data" / "prices.toml"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A machine for rent.

    gpu_bytes: memory of each GPU; 0 without any. flops: sustained operations a second of each GPU,
    by precision. dollars: an hour of all of it.
    """

    name: str
    num_gpus: int
    gpu_bytes: float
    cores: int
    dollars: float
    flops: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Prices:
    """The machines of a table. share_of_peak: what GPUs sustain, by precision."""

    instances: tuple[Instance, ...]
    share_of_peak: Mapping[str, float]


def read_prices(path: str | Path = TABLE) -> Prices:
    """Reads a table of the form of `data/prices.toml`.

    Raises:
        InputError: there is no such file, or a value is missing, unknown or not positive.
    """
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
        shares = {name: _positive(name, value) for name, value in values["share_of_peak"].items()}
        instances: list[Instance] = []
        for row in values["instances"]:
            gpu = values["gpus"][row["gpu"]] if row["num_gpus"] else {}
            instances.append(
                Instance(
                    name=str(row["name"]),
                    num_gpus=int(row["num_gpus"]),
                    gpu_bytes=1e9 * float(gpu.get("memory", 0)),
                    cores=int(_positive("cores", row["cores"])),
                    dollars=_positive("dollars", row["dollars"]),
                    flops={
                        name: 1e12 * share * _positive(name, gpu[name])
                        for name, share in shares.items()
                        if gpu
                    },
                )
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"prices must be a table like dreampose/planning/data/prices.toml, got {str(path)!r} "
            f"({type(error).__name__}: {error})"
        ) from error
    return Prices(instances=tuple(instances), share_of_peak=shares)


def _positive(name: str, value: float) -> float:
    if not float(value) > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return float(value)
