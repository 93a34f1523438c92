#!/usr/bin/env python
"""Trains the surface condition and the refiner of the embedded model.

    benchmarks/surface.py render --out DATA/train --people 300
    benchmarks/surface.py render --out DATA/val --split val --people 12 --seed 41 --plain
    benchmarks/surface.py read DATA/train            # BlazePose's poses of the same frames
    benchmarks/surface.py train --data DATA/train --validation DATA/val --out RUN --minutes 80
    benchmarks/surface.py export RUN --out MODEL

Every command goes on where it was stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dreampose import checkpoints
from dreampose.pipeline import DreamPosePipeline
from dreampose.synthetic.generate import MAX_IDENTITIES
from dreampose.training import surface_data, surface_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Renders, reads or trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    render = commands.add_parser("render", help="people with surface maps")
    render.add_argument("--out", type=Path, required=True)
    render.add_argument("--split", choices=("train", "val"), default="train")
    render.add_argument("--people", type=int, required=True)
    render.add_argument("--seed", type=int, default=40)
    render.add_argument("--height", type=int, default=320)
    render.add_argument("--width", type=int, default=256)
    render.add_argument("--plain", action="store_true", help="as in the benchmark's clips")
    read = commands.add_parser("read", help="poses that BlazePose reads")
    read.add_argument("data", type=Path)
    train = commands.add_parser("train", help="UNet, adapter and refiner")
    train.add_argument("--data", type=Path, required=True)
    train.add_argument("--validation", type=Path, required=True)
    train.add_argument("--model", type=Path, default=Path("models/catwalk"))
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--batch-size", type=int, default=16)
    train.add_argument("--minutes", type=float, required=True, help="of the whole schedule")
    train.add_argument("--rate", type=float, default=4e-4)
    train.add_argument("--refiner-rate", type=float, default=1.5e-3)
    train.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    export = commands.add_parser("export", help="the model folder of a run")
    export.add_argument("run", type=Path, help="of `train --out`")
    export.add_argument("--model", type=Path, default=Path("models/catwalk"))
    export.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if args.command == "render":
        first = args.seed * MAX_IDENTITIES
        numbers = range(first, first + args.people)
        size = {"height": args.height, "width": args.width}
        for number in surface_data.render(args.out, args.split, numbers, **size, plain=args.plain):
            print(f"{number - first + 1} of {args.people}", flush=True)
    elif args.command == "read":
        for folder in sorted(args.data.iterdir()):
            whole = folder.is_dir() and (folder / "clip.npy").is_file()
            if whole and not (folder / "read.npy").is_file():
                surface_data.read_person(folder, detail=4)
                print(folder.name, flush=True)
    elif args.command == "export":
        source, pipe = (DreamPosePipeline.from_pretrained(args.model) for _ in range(2))
        trainer = surface_stage.Trainer(pipe, rate=0.0, refiner_rate=0.0)
        trainer.load(torch.load(args.run / "last.pt", weights_only=True))
        checkpoints.save(surface_stage.finished(trainer, source), args.out)
    else:
        pipe = DreamPosePipeline.from_pretrained(args.model)
        trainer = surface_stage.Trainer(pipe, rate=args.rate, refiner_rate=args.refiner_rate)
        for line in surface_stage.run(
            trainer,
            args.data,
            args.validation,
            args.out,
            minutes=args.minutes,
            batch_size=args.batch_size,
            checkpoint_every=args.every,
        ):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
