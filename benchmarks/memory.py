#!/usr/bin/env python
"""Peak GPU memory of every combination of memory options, by trace: the table of docs/memory.md.

The model's own code runs on tensors without contents (`dreampose.planning`); no weights and no GPU
are needed. "at least" are the tensors and CUDA itself; "at most" has the copies that convolutions
may make of what they read and write as well.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dreampose import config, planning, recipes
from dreampose.config import Recipe, Savings
from dreampose.planning.plan import gpu_bytes

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
    encoding = planning.subject_encoding(recipe)
    yield f"| subject, encoding of photos | fp32 | – | – | {_gigabytes(encoding)} |"
    for precision, savings in TRAINING:
        how = (
            f"{precision} | {'again' if savings.gradient_checkpointing else 'kept'} | "
            f"{'8 bit' if savings.optimizer == 'adamw8bit' else '32 bit'}"
        )
        full = planning.subject_step(recipe, savings=savings, precision=precision)
        yield f"| subject, full | {how} | {_gigabytes(full)} |"
        low_rank = planning.subject_step(
            recipe, method="lora", savings=savings, precision=precision
        )
        yield f"| subject, low-rank | {how} | {_gigabytes(low_rank)} |"
        decoder = planning.subject_decoder_step(recipe, savings=savings, precision=precision)
        yield f"| subject, decoder | {how} | {_gigabytes(decoder)} |"
        base = planning.training_step("base", recipe, savings=savings, precision=precision)
        batch = recipe.base_stage.batch_size
        yield f"| base, {batch} a batch | {how} | {_gigabytes(base)} |"
    yield ""
    yield "| rendering | weights | decoding | frames | branches | at least | at most |"
    yield "|---|---|---|---|---|---|---|"
    for precision, offload, slicing, tiling, frames, joined in RENDERING:
        cost = planning.rendering(
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


def _gigabytes(cost: planning.Cost) -> str:
    """Two cells: with the tensors alone, and with all that kernels may take."""
    most = gpu_bytes(cost.peak_bytes, cost.scratch_bytes)
    return f"{gpu_bytes(cost.peak_bytes, 0) / 1e9:.1f} | {most / 1e9:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `--help`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="sd14", help="(default: %(default)s)")
    parser.add_argument("--divisor", type=int, default=1, help="of the channel counts")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in that file")
    args = parser.parse_args(argv)
    recipe: config.Recipe = recipes.shrink(recipes.recipe(args.recipe), args.divisor)
    lines: list[str] = []
    for line in table(recipe):
        print(line, flush=True)
        lines.append(line)
    if args.write is not None:
        write(args.write, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
