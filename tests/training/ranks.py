"""Code of the ranks of distributed tests, and `run_ranks`.

The ranks run this very file: another package may have a module `tests` that is taken for ours.
"""

import json
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PRELOAD = ["accelerate", "diffusers", "transformers", "dreampose.training"]
TIMEOUT = 400


def run_ranks(work: Callable[..., Any], folder: Path, *args: Any, num: int = 2) -> list[Any]:
    """Runs `work(*args)`, a function of this file, in processes that form a gloo group.

    Gives what each returned; of a rank that was killed or failed, None. The processes are forked
    from one that has imported what is slow to import.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(
            target=runpy.run_path,
            args=(__file__, {"RANK": (work.__name__, rank, num, port, folder, args)}, "rank"),
        )
        for rank in range(num)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(TIMEOUT)
            assert process.exitcode is not None, "a rank hangs"
    finally:
        for process in processes:
            process.kill()
    files = [folder / f"rank{rank}.pickle" for rank in range(num)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def _enter(work: str, rank: int, num: int, port: int, folder: Path, args: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        result = globals()[work](*args)
        (folder / f"rank{rank}.pickle").write_bytes(pickle.dumps(result))
    except Exception:  # noqa: BLE001 - whatever it was, the test is to show it
        (folder / f"rank{rank}.txt").write_text(traceback.format_exc())
    finally:
        # No farewell to ranks that may be gone.
        os._exit(0)


def train_base(
    out: Path,
    recipe: dict[str, Any],
    data: Path,
    *,
    shard: bool = False,
    kill_at: int | None = None,
    **options: Any,
) -> list[list[float | None]]:
    """Trains the base stage; `out/drawn.RANK.jsonl` tells which items each turn drew.

    With `kill_at` the process kills itself when it is about to draw the items of that turn.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    from dreampose import training
    from dreampose.config import Recipe
    from dreampose.training import base_stage, distributed

    accelerator = Accelerator(cpu=True)
    if shard:
        # Accelerate spreads weights on accelerators alone, though torch does so on CPUs as well.
        accelerator.state.fsdp_plugin = distributed.plugin()
        accelerator.state.distributed_type = DistributedType.FSDP
    out.mkdir(parents=True, exist_ok=True)
    turns = 0

    class Spy(base_stage.BaseStage):
        def draw(self, split: str, items: Any, generator: Any) -> dict[str, Any]:
            nonlocal turns
            if split == "train":
                if turns == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                turns += 1
                with (out / f"drawn.{accelerator.process_index}.jsonl").open("a") as file:
                    file.write(json.dumps(items.tolist()) + "\n")
            return super().draw(split, items, generator)

    original, base_stage.BaseStage = base_stage.BaseStage, Spy
    try:
        reports = training.train(
            "base", recipe=Recipe.from_dict(recipe), data=data, out=out, accelerator=accelerator,
            **options,
        )  # fmt: skip
        return [[report.loss, report.grad_norm, report.validation_loss] for report in reports]
    finally:
        base_stage.BaseStage = original


def drawn(out: Path, rank: int) -> list[list[int]]:
    """The items of each turn of a rank."""
    lines = (out / f"drawn.{rank}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def two_runs(folder: Path, small: Any, large: Any, data: Path) -> list[Any]:
    """Undisturbed runs of two recipes."""
    return [
        train_base(folder / "small", small, data, validation=data, validate_every=2),
        train_base(folder / "large", large, data),
    ]


def killed_run(folder: Path, recipe: Any, data: Path) -> list[Any]:
    """The second rank dies in the third step; each step before it has a checkpoint."""
    kill_at = 2 if os.environ["RANK"] == "1" else None
    return train_base(folder, recipe, data, checkpoint_every=1, kill_at=kill_at)


def spread_run(folder: Path, recipe: Any, data: Path) -> list[Any]:
    """Spread weights, stopped after the first step and gone on with for three more."""
    options: dict[str, Any] = {"shard": True, "validation": data, "validate_every": 2}
    first = train_base(folder, recipe, data, stop=lambda: True, **options)
    stops = iter([False, False, True])
    return first + train_base(folder, recipe, data, stop=lambda: next(stops), **options)


if __name__ == "rank":
    _enter(*globals()["RANK"])
