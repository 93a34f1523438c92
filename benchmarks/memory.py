#!/usr/bin/env python
"""Peak GPU memory of all memory options, and costs for `--dry-run`.

The model's own code runs on tensors without contents (`benchmarks/tracing.py`); no weights and no
GPU are needed. "at least" is the tensors and CUDA itself; "at most" adds the copies that
convolutions may make of what they read and write.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import tracing
from dreampose import config, recipes
from dreampose.config import Recipe, Savings, replace
from dreampose.models.vae import encode_batch_size
from jobs.common.planning import COSTS, CUDA_BYTES, model_key

BEGIN, END = "<!-- table: benchmarks/memory.py -->", "<!-- end of table -->"

TRAINING = (
    ("fp32", Savings()),
    ("bf16", Savings()),
    ("bf16", Savings(gradient_checkpointing=True)),
    ("bf16", Savings(optimizer="adamw8bit")),
    ("bf16", Savings(gradient_checkpointing=True, optimizer="adamw8bit")),
)
RENDERING = (
    # precision, offload, slicing, tiling, frames at once, branches at once
    ("fp32", "none", False, False, 1, True),
    ("fp16", "none", False, False, 8, True),
    ("fp16", "none", False, False, 1, True),
    ("fp16", "none", False, False, 1, False),
    ("fp16", "none", True, True, 8, False),
    ("fp16", "model", True, False, 1, True),
    ("fp16", "model", True, True, 1, False),
    ("fp16", "sequential", True, True, 1, False),
)

WHERE = {
    "none": "on the GPU",
    "model": "a part at a time",
    "sequential": "a layer at a time",
}
"""Where weights lie, by `DreamPosePipeline.offload`'s words."""


def table(recipe: Recipe) -> Iterator[str]:
    """Lines of Markdown.

    Args:
        recipe: of the model.
    """
    yield f"`{recipe.name}`, {recipe.height}x{recipe.width}. Weights are float32 in training."
    yield ""
    yield "| training | computing | activations | Adam | at least | at most |"
    yield "|---|---|---|---|---|---|"
    encoding = tracing.subject_encoding(recipe)
    yield f"| subject, encoding of photos | fp32 | – | – | {_gigabytes(encoding)} |"
    for precision, savings in TRAINING:
        how = (
            f"{precision} | {'again' if savings.gradient_checkpointing else 'kept'} | "
            f"{'8 bit' if savings.optimizer == 'adamw8bit' else '32 bit'}"
        )
        full = tracing.subject_step(recipe, savings=savings, precision=precision)
        yield f"| subject, full | {how} | {_gigabytes(full)} |"
        low_rank = tracing.subject_step(recipe, method="lora", savings=savings, precision=precision)
        yield f"| subject, low-rank | {how} | {_gigabytes(low_rank)} |"
        decoder = tracing.subject_decoder_step(recipe, savings=savings, precision=precision)
        yield f"| subject, decoder | {how} | {_gigabytes(decoder)} |"
        base = tracing.training_step("base", recipe, savings=savings, precision=precision)
        batch = recipe.base_stage.batch_size
        yield f"| base, {batch} a batch | {how} | {_gigabytes(base)} |"
    yield ""
    yield "| rendering | weights | decoding | frames | branches | at least | at most |"
    yield "|---|---|---|---|---|---|---|"
    for precision, offload, slicing, tiling, frames, joined in RENDERING:
        cost = tracing.rendering(
            recipe,
            num_calls=1,
            precision=precision,
            offload=offload,
            slicing=slicing,
            tiling=tiling,
            chunk_size=frames,
            join_branches=joined,
        )
        where = WHERE[offload]
        decoding = ", ".join([*["sliced"] * slicing, *["tiled"] * tiling]) or "whole"
        branches = "at once" if joined else "in turn"
        yield (
            f"| {precision} | {where} | {decoding} | {frames} | {branches} | {_gigabytes(cost)} |"
        )


def write(path: Path, lines: Sequence[str]) -> None:
    """Puts the table between its marks in a file."""
    text = path.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text("\n".join([before + BEGIN, "", *lines, "", END]) + after, "utf-8")


def _gigabytes(cost: tracing.Cost) -> str:
    """Two cells: the tensors alone, and with the kernels' own memory."""
    least = cost.peak_bytes + CUDA_BYTES
    return f"{least / 1e9:.1f} | {(least + cost.scratch_bytes) / 1e9:.1f}"


def costs(recipe: Recipe) -> Iterator[tuple[str, tracing.Cost, int]]:
    """Name, cost and number of items of every piece of work that jobs plan with."""
    for precision in ("fp32", "bf16"):
        for checkpointed in (False, True):
            savings = Savings(gradient_checkpointing=checkpointed)
            name = precision + (" checkpointed" if checkpointed else "")
            options: dict[str, Any] = {"savings": savings, "precision": precision}
            for stage in ("vae", "encoder", "base"):
                if stage == "encoder" and recipe.image_encoder_frozen:
                    continue
                size = getattr(recipe, f"{stage}_stage").batch_size
                yield f"{stage} {name}", tracing.training_step(stage, recipe, **options), size
            for method in ("full", "lora"):
                step = tracing.subject_step(recipe, method=method, **options)
                yield f"subject {method} {name}", step, 1
            yield f"decoder {name}", tracing.subject_decoder_step(recipe, **options), 1
    count = encode_batch_size(recipe.height, recipe.width, at_most=32)
    yield "encode", tracing.encoding(recipe, batch_size=count), count
    yield "subject encoding", tracing.subject_encoding(recipe), 1
    plain = replace(recipe, image_scale=1.0, pose_scale=1.0)
    yield "call", tracing.guided_call(plain), 1
    yield "decode", tracing.decoding(plain), 1


def write_costs(recipe: Recipe, path: Path = COSTS) -> None:
    """Adds or replaces a recipe in the table of `--dry-run`; flops are those of an item."""
    table = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    found: dict[str, dict[str, float]] = {}
    parameters: dict[str, int] = {}
    for name, cost, count in costs(recipe):
        print(name, flush=True)
        parameters = dict(cost.parameters)
        found[name] = {
            "flops": round(cost.flops / count),
            "held_bytes": cost.held_bytes,
            "peak_bytes": cost.peak_bytes,
            "scratch_bytes": cost.scratch_bytes,
            "num_trained": cost.num_trained,
            "state_bytes": cost.state_bytes,
        }
    table[model_key(recipe)] = {
        "recipe": recipe.name,
        "size": [recipe.height, recipe.width],
        "parameters": parameters,
        "costs": found,
    }
    path.write_text(json.dumps(table, indent=1) + "\n", "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `--help`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="sd14", help="(default: %(default)s)")
    parser.add_argument("--divisor", type=int, default=1, help="of the channel counts")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in that file")
    parser.add_argument(
        "--costs", action="store_true", help="write the recipe's costs to the table of --dry-run"
    )
    args = parser.parse_args(argv)
    recipe: config.Recipe = recipes.shrink(recipes.recipe(args.recipe), args.divisor)
    if args.costs:
        write_costs(recipe)
        return 0
    lines: list[str] = []
    for line in table(recipe):
        print(line, flush=True)
        lines.append(line)
    if args.write is not None:
        write(args.write, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
