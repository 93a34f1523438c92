#!/usr/bin/env python
"""Test of the paper's model at full size, with random weights.

Six steps, each in a separate process to measure its peak memory: write a Stable Diffusion folder in
diffusers' layout; load it; one optimizer step at 640x512; one frame in two sampler steps with all
three guidance branches; one LoRA step; write and import checkpoints in the published layout.
Requires 24 GB of memory and 12 GB of disk. The exit code is 1 if a step fails. Run by
`make test-full`.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import tracing
from dreampose import checkpoints, convert, poses, recipes
from dreampose import data as dataset
from dreampose.config import NO_SAVINGS, Recipe, replace
from dreampose.data import Dataset
from dreampose.diffusion import generation
from dreampose.models import lora
from dreampose.models.subject import Subject
from dreampose.pipeline import DreamPosePipeline
from dreampose.training.base_stage import BaseStage, columns
from dreampose.training.memory import make_optimizer
from dreampose.training.photo_crops import PhotoCrops
from dreampose.training.subject import SubjectStage
from dreampose.types import Clip

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of the VAE's attention layers before 2023."""


def write_base(work: Path, recipe: Recipe) -> str:
    """Writes random weights as a Stable Diffusion folder."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    folder = work / "base"
    AutoencoderKL(**recipe.vae).save_pretrained(folder / "vae")
    UNet2DConditionModel(**recipe.unet).save_pretrained(folder / "unet")
    PNDMScheduler(**recipe.scheduler).save_pretrained(folder / "scheduler")
    encoder = CLIPVisionModel(CLIPVisionConfig(**recipe.image_encoder))
    encoder.save_pretrained(folder / "image_encoder")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e9:.2f} GB in {folder.name}"


def load(work: Path, recipe: Recipe) -> str:
    """Loads the folder as `python -m dreampose import --base` does."""
    pipe = _pipeline(work, recipe)
    numbers = checkpoints.num_parameters(pipe)
    assert pipe.unet.config["in_channels"] == 14
    return ", ".join(f"{name} {number / 1e6:.1f} M" for name, number in numbers.items())


def train(work: Path, recipe: Recipe) -> str:
    """One optimizer step of the base stage on one pair of frames."""
    recipe = replace(recipe, num_crops=1, base_stage=replace(recipe.base_stage, batch_size=1))
    pipe = _pipeline(work, recipe)
    data = _data(work / "data", pipe)
    stage = BaseStage(pipe, data=data, validation=None, recipe=recipe, config=recipe.base_stage)
    batch = stage.draw("train", np.array([0]), np.random.default_rng(0))
    stage.train()
    before = pipe.unet.conv_in.weight.detach().clone()
    optimizer = make_optimizer(stage.parameters(), recipe.base_stage, NO_SAVINGS)
    loss = stage(batch)
    loss.backward()
    nn.utils.clip_grad_norm_(stage.parameters(), recipe.base_stage.max_grad_norm)
    optimizer.step()
    assert loss.isfinite(), loss
    assert not torch.equal(before, pipe.unet.conv_in.weight)
    traced = tracing.training_step(
        "base", replace(recipe, base_stage=replace(recipe.base_stage, gradient_accumulation=1))
    )
    return f"loss {loss.item():.4f}; stage by trace {traced.peak_bytes / 1e9:.2f} GB"


def render(work: Path, recipe: Recipe) -> str:
    """Renders one frame in two sampler steps with all three guidance branches."""
    pipe = _pipeline(work, recipe)
    motion = _motion(recipe)
    photo = _frames(recipe)[0]
    request = generation.prepare(
        pipe, [photo], motion, preset="balanced", num_inference_steps=2, align=False
    )
    scales = request.image_scale, request.pose_scale
    assert 0 not in (1 - scales[0], scales[0] - scales[1], scales[1]), "a branch is left out"
    frame = generation.render_frames(pipe, request, [0], join_branches=False)[0]
    assert frame.shape == (recipe.height, recipe.width, 3)
    assert frame.std() > 0
    return f"{request.num_model_calls} calls of 3 branches, mean {frame.mean():.1f}"


def low_rank(work: Path, recipe: Recipe) -> str:
    """One LoRA step on two views of a person."""
    pipe = _pipeline(work, recipe)
    lora.add_lora(
        {"unet": pipe.unet, "adapter": pipe.adapter},
        rank=recipe.lora_rank,
        targets=recipe.lora_targets,
    )
    grid, (tokens, width) = recipe.latent_size, _token_shape(pipe)
    views = PhotoCrops(
        pixels=np.zeros((1, 2, recipe.height, recipe.width, 3), np.uint8),
        latents=torch.randn(1, 2, recipe.latent_channels, *grid),
        tokens=torch.randn(1, 2, tokens, width),
        poses=torch.rand(1, 2, recipe.num_poses, recipe.pose_planes, *grid),
    )
    subject = Subject(name="a", recipe="", base="", photos=(), looks=(), method="lora", rank=4)
    stage = SubjectStage(pipe, views, config=recipe.subject_stage, subject=subject)
    trained = [value for value in stage.parameters() if value.requires_grad]
    optimizer = make_optimizer(trained, recipe.subject_stage, NO_SAVINGS)
    stage.train()
    loss = stage(stage.draw("train", np.array([0]), np.random.default_rng(0)))
    loss.backward()
    optimizer.step()
    share = sum(value.numel() for value in trained) / checkpoints.num_parameters(pipe)["unet"]
    assert loss.isfinite(), loss
    assert share <= 0.02, share
    return f"loss {loss.item():.4f}; {share:.2%} of the UNet's parameters"


def import_published(work: Path, recipe: Recipe) -> str:
    """Writes checkpoints in the published layout and imports them."""
    made = _pipeline(work, recipe)
    expected = {"unet": made.unet.conv_in.weight, "adapter": made.adapter.mix.weight}
    adapter_names = {"project": "vae2clip", "mix": "linear1"}
    layouts: dict[str, dict[str, Tensor]] = {
        "unet": {f"module.{key}": value for key, value in made.unet.state_dict().items()},
        "adapter": {
            f"{adapter_names[key.partition('.')[0]]}.{key.partition('.')[2]}": value
            for key, value in made.adapter.state_dict().items()
        },
        "vae": {_old_name(key): value for key, value in made.vae.state_dict().items()},
    }
    files = {name: work / f"{name}.pth" for name in layouts}
    for name, state in layouts.items():
        torch.save(state, files[name])
    kept = {name: value.detach().clone() for name, value in expected.items()}
    del made, layouts, expected
    size = sum(path.stat().st_size for path in files.values())
    pipe, _ = convert.import_model(
        work / "base",
        unet=files["unet"],
        adapter=files["adapter"],
        vae=files["vae"],
        height=recipe.height,
        width=recipe.width,
    )
    assert torch.equal(pipe.unet.conv_in.weight, kept["unet"])
    assert torch.equal(pipe.adapter.mix.weight, kept["adapter"])
    for path in files.values():
        path.unlink()
    return f"{size / 1e9:.2f} GB of pickles, image range {pipe.recipe.image_range}"


STEPS: dict[str, Callable[[Path, Recipe], str]] = {
    "base folder": write_base,
    "load": load,
    "train": train,
    "render": render,
    "low-rank": low_rank,
    "import": import_published,
}


def _pipeline(work: Path, recipe: Recipe) -> DreamPosePipeline:
    torch.manual_seed(1)
    return checkpoints.from_stable_diffusion(recipe, work / "base", work / "base/image_encoder")


def _old_name(key: str) -> str:
    for new, old in OLD_ATTENTION.items():
        if f"mid_block.attentions.0.{new}." in key:
            return key.replace(f".{new}.", f".{old}.")
    return key


def _token_shape(pipe: DreamPosePipeline) -> tuple[int, int]:
    config: Any = pipe.adapter.config
    return config["num_tokens"], config["token_width"]


def _frames(recipe: Recipe) -> np.ndarray:
    generator = np.random.default_rng(0)
    size = (recipe.num_poses, recipe.height, recipe.width, 3)
    return generator.integers(0, 256, size, dtype=np.uint8)


def _motion(recipe: Recipe) -> poses.Motion:
    generator = np.random.default_rng(1)
    count = recipe.num_poses
    return poses.Motion(
        maps=generator.random((count, 2, recipe.height, recipe.width), np.float32),
        joints=np.zeros((count, 33, 4), np.float32),
        confidence=np.ones(count, np.float32),
        fps=30.0,
        estimator="none",
    )


def _data(folder: Path, pipe: DreamPosePipeline) -> Dataset:
    row = dataset.encode_clip(
        Clip(frames=_frames(pipe.recipe), fps=30.0),
        _motion(pipe.recipe),
        recipe=pipe.recipe,
        pipe=pipe,
        seed=0,
        clip_id="a",
        subject="a",
    )
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    dataset.write_rows(folder / "clips/a.parquet", [row])
    return Dataset(folder, recipe=pipe.recipe, columns=columns(pipe.recipe))


def _run_one(name: str, work: Path, recipe: Recipe) -> None:
    begin = time.perf_counter()
    said = STEPS[name](work, recipe)
    # Kilobytes on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - begin
    print(json.dumps({"said": said, "peak_bytes": peak, "seconds": seconds}))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--divisor", type=int, default=1, help="divides the numbers of channels, for a quick run"
    )
    parser.add_argument("--height", type=int, default=640, help="frame height (%(default)s)")
    parser.add_argument("--width", type=int, default=512, help="frame width (%(default)s)")
    parser.add_argument("--work", type=Path, help="folder for files (default: a temporary one)")
    parser.add_argument("--only", choices=tuple(STEPS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    recipe = recipes.shrink(
        replace(recipes.sd14(), height=args.height, width=args.width), args.divisor
    )
    if args.only:
        _run_one(args.only, args.work, recipe)
        return 0
    failed = 0
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        flags = ["--work", name, "--divisor", str(args.divisor)]
        flags += ["--height", str(args.height), "--width", str(args.width)]
        for step in STEPS:
            ran = subprocess.run(
                [sys.executable, __file__, "--only", step, *flags],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if ran.returncode:
                failed += 1
                print(f"{step:<12} failed:\n{ran.stderr[-2000:]}", flush=True)
                continue
            facts = json.loads(ran.stdout.splitlines()[-1])
            print(
                f"{step:<12}{facts['seconds']:>7.0f} s{facts['peak_bytes'] / 1e9:>8.2f} GB at most"
                f"   {facts['said']}",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
