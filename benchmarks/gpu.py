#!/usr/bin/env python
"""Trains the embedded model on one large GPU for a few minutes, and times sd14's presets on it.

Needs this repository, torch, diffusers, transformers and OpenCV; neither Ray nor PyAV.

    python benchmarks/gpu.py --out OUT --render-minutes 1.5 --train-minutes 4 --batch-size 128

1. CPU cores render training people and draw their samples.
2. UNet, adapter and refiner are trained in bfloat16 from `models/catwalk`.
3. OUT/model receives the model folder, whose files are all below 16 MiB: the UNet's tensors are cut
   into several files.
4. Random weights of sd14 are timed with each preset, in seconds a frame and bytes of GPU memory.

OUT/report.json holds all figures. With `--device cpu` and small numbers it runs as a test.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dreampose import checkpoints, recipes
from dreampose.config import PRESETS
from dreampose.diffusion import generation
from dreampose.diffusion.generation import Request
from dreampose.diffusion.sampling import num_model_calls
from dreampose.diffusion.schedulers import scheduler_by_name
from dreampose.pipeline import DreamPosePipeline
from dreampose.synthetic.generate import MAX_IDENTITIES
from dreampose.training import surface_data, surface_stage

ROOT = Path(__file__).resolve().parents[1]
SHARD = "15MB"
"""Largest file of the model folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Renders, trains, saves and times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of people (default: OUT/data)")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "catwalk")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--people", type=int, default=400, help="at most")
    parser.add_argument("--render-minutes", type=float, default=1.5)
    parser.add_argument("--train-minutes", type=float, default=4.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--refiner-rate", type=float, default=1.5e-3)
    parser.add_argument("--divisor", type=int, default=1, help="of sd14's channels, for tests")
    parser.add_argument("--frames", type=int, default=8, help="per batch when presets are timed")
    parser.add_argument("--no-timing", action="store_true", help="leave sd14 out")
    parser.add_argument("--max-steps", type=int, default=100, help="timed of a preset, at most")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"device": device_name(args.device), "torch": torch.__version__}
    data = args.data or args.out / "data"
    with ProcessPoolExecutor(
        args.workers, mp_context=multiprocessing.get_context("spawn"), initializer=one_thread
    ) as pool:
        report["people"] = render(pool, data, args.people, 60 * args.render_minutes)
        report["training"] = train(pool, data, args)
    if not args.no_timing:
        report["sd14"] = time_presets(args)
    text = json.dumps(report, indent=1)
    (args.out / "report.json").write_text(text + "\n")
    print(text)
    return 0


def device_name(device: str) -> str:
    """Name of the GPU, or 'cpu'."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def one_thread() -> None:
    """Leaves each worker one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def render_one(folder: Path, number: int, deadline: float) -> int:
    """Renders one person unless the deadline (seconds since the epoch) has passed."""
    if time.time() > deadline:
        return 0
    return len(list(surface_data.render(folder, "train", [number], height=320, width=256)))


def render(pool: ProcessPoolExecutor, folder: Path, people: int, seconds: float) -> int:
    """Renders people for some seconds; how many there are then."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + seconds
    numbers = range(50 * MAX_IDENTITIES, 50 * MAX_IDENTITIES + people)
    jobs = [pool.submit(render_one, folder, number, deadline) for number in numbers]
    for job in jobs:
        job.result()
    return len(surface_data.load(folder))


_SAMPLES: dict[Path, surface_stage.Samples] = {}
"""Of a worker, kept between batches."""


def draw(folder: Path, seed: int, step: int, scale: int, count: int) -> list[surface_stage.Drawn]:
    """Some samples of a step's batch."""
    if folder not in _SAMPLES:
        _SAMPLES[folder] = surface_stage.Samples(folder)
    random = np.random.default_rng([seed, step])
    return [_SAMPLES[folder].draw(random, scale=scale) for _ in range(count)]


def train(pool: ProcessPoolExecutor, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Trains for some minutes, writes the model folder and returns what was measured."""
    source, pipe = (DreamPosePipeline.from_pretrained(args.model) for _ in range(2))
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    trainer = surface_stage.Trainer(
        pipe, rate=args.rate, refiner_rate=args.refiner_rate, device=args.device, dtype=dtype
    )
    for module in trainer.modules.values():
        module.train()
    each = -(-args.batch_size // args.workers)

    def request(step: int) -> list[Any]:
        scale = 2 if step % 2 else 1
        return [pool.submit(draw, data, w, step, scale, each) for w in range(args.workers)]

    # Two batches ahead, so that the GPU does not wait.
    ahead = [request(0), request(1)]
    losses: list[dict[str, float]] = []
    start = time.monotonic()
    while (spent := time.monotonic() - start) < 60 * args.train_minutes or not losses:
        ahead.append(request(trainer.step + 2))
        drawn = [sample for job in ahead.pop(0) for sample in job.result()][: args.batch_size]
        trainer.set_rates(spent / 60 / args.train_minutes)
        random = np.random.default_rng([7, trainer.step])
        losses.append(trainer.train(drawn, 2 if trainer.step % 2 else 1, random))
    for jobs in ahead:
        for job in jobs:
            job.cancel()
    for module in trainer.modules.values():
        torch.nn.Module.to(module, "cpu")
    trainer.average = {name: value.cpu() for name, value in trainer.average.items()}
    done = surface_stage.finished(trainer, source)
    checkpoints.save(done, args.out / "whole")
    split(args.out / "whole", args.out / "model")
    last = losses[-50:]
    return {
        "steps": trainer.step,
        "samples a second": trainer.step * args.batch_size / (time.monotonic() - start),
        "losses": {key: float(np.mean([one[key] for one in last])) for key in last[0]},
    }


def split(folder: Path, out: Path) -> None:
    """Copies a model folder with large files of weights cut into several."""
    pipe = checkpoints.load(folder, dtype=torch.float16)
    pipe.save_pretrained(out, safe_serialization=True, max_shard_size=SHARD)


@torch.no_grad()
def time_presets(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a frame and GPU memory of sd14 with random weights, for each preset."""
    recipe = recipes.shrink(recipes.sd14(), args.divisor) if args.divisor > 1 else recipes.sd14()
    pipe = checkpoints.build(recipe)
    pipe.to(args.device, torch.float32 if args.device == "cpu" else torch.bfloat16)
    found: dict[str, Any] = {}
    for name, preset in PRESETS.items():
        if not preset.num_steps:
            continue
        steps = min(preset.num_steps, args.max_steps)
        request = random_request(pipe, name, steps, args.frames)
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        start = time.monotonic()
        generation.render_frames(pipe, request, range(args.frames))
        seconds = (time.monotonic() - start) / args.frames
        found[name] = {"steps": steps, "seconds a frame": seconds}
        if args.device != "cpu":
            found[name]["bytes"] = torch.cuda.max_memory_allocated()
    return found


def random_request(pipe: DreamPosePipeline, preset: str, steps: int, frames: int) -> Request:
    """A request of random tensors for a preset's scheduler and scales."""
    recipe, chosen = pipe.recipe, PRESETS[preset]
    sampler = scheduler_by_name(chosen.scheduler, pipe.scheduler.config, **chosen.scheduler_kwargs)
    encoder = recipe.image_encoder
    tokens = (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1
    return Request(
        photo_tokens=torch.randn(1, tokens, encoder["hidden_size"]),
        photo_choice=torch.zeros(num_model_calls(sampler, steps), dtype=torch.int64),
        noise=torch.randn(1, recipe.latent_channels, *recipe.latent_size),
        poses=torch.rand(frames, recipe.num_poses * recipe.pose_planes, *recipe.latent_size),
        scheduler=chosen.scheduler,
        scheduler_kwargs=dict(chosen.scheduler_kwargs),
        num_inference_steps=steps,
        image_scale=recipe.image_scale,
        pose_scale=recipe.pose_scale,
        step_seed=0,
        fps=24.0,
    )


if __name__ == "__main__":
    sys.exit(main())
