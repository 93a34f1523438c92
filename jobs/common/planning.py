"""Cost estimate of a job: work, memory, storage, hours and dollars."""

import argparse
import hashlib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dreampose import config, recipes
from dreampose.config import Recipe, Savings
from dreampose.errors import InputError
from dreampose.io.folder_cache import local_folder
from jobs.common import storage

DATA = Path(__file__).parent / "data"
MACHINES = DATA / "machines.toml"
COSTS = DATA / "costs.json"
"""Costs by `model_key`, written by `benchmarks/memory.py --costs`."""

CUDA_BYTES = 0.8e9
"""GPU memory of a process before it works: CUDA itself and the libraries' code."""
UNUSABLE_SHARE = 0.05
"""Share of a GPU's memory assumed lost to fragmentation. Not measured."""
UBC_FASHION = (339, 360)
"""Training videos of the paper's data set, and frames of each (about 12 s at 30 fps)."""

POSE_SECONDS = 0.05
"""Core seconds to decode a frame and estimate its pose (BlazePose: 13 to 45 ms)."""
SCREEN_SECONDS = 0.011
"""Core seconds to decode a frame of 940x720 and detect cuts (8 and 3 ms)."""
FETCH_SECONDS = 5.0
"""Seconds that a server takes for a file: a guess, some MB at 1 MB/s."""
SCORE_SECONDS = 0.2
"""Core seconds to decode two frames and compute one score."""
RENDER_SECONDS = 0.8 / (640 * 512)
"""Core seconds per pixel of the synthetic data set."""
MP4_SHARE = 0.02
"""Bytes of a video relative to its raw frames."""

MEASURED = "memory and operations: jobs/common/data/costs.json, by benchmarks/memory.py"
RATES = "hours: operations over the rates that GPUs sustained in published runs; see --prices"
ROUGH = "CPU time: seconds per frame, measured on two cores; data is counted uncompressed"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one batch of a piece of work.

    Attributes:
        flops: operations per item (a sample, a frame).
        held_bytes: on the GPU all the time: weights, moments, gradients.
        peak_bytes: most tensors at once.
        scratch_bytes: bound of what kernels allocate beside them.
        num_trained: parameters that change.
        state_bytes: of a checkpoint.
    """

    flops: float
    held_bytes: float
    peak_bytes: float
    scratch_bytes: float
    num_trained: int = 0
    state_bytes: float = 0.0

    def scaled(self, pixels: float) -> "Cost":
        """The cost at `pixels` times the measured frame area; activations grow with it."""
        return Cost(
            flops=self.flops * pixels,
            held_bytes=self.held_bytes,
            peak_bytes=self.held_bytes + (self.peak_bytes - self.held_bytes) * pixels,
            scratch_bytes=self.scratch_bytes * pixels,
            num_trained=self.num_trained,
            state_bytes=self.state_bytes,
        )

    def plus(self, num_bytes: float) -> "Cost":
        """The cost with so many more bytes held on the GPU."""
        held, peak = self.held_bytes + num_bytes, self.peak_bytes + num_bytes
        return config.replace(self, held_bytes=held, peak_bytes=peak)


NO_COST = Cost(flops=0, held_bytes=0, peak_bytes=0, scratch_bytes=0)


@dataclass(frozen=True, kw_only=True)
class RecipeCosts:
    """Measured costs of a recipe; `known` is False where there are none, and all are 0."""

    parameters: Mapping[str, int]
    table: Mapping[str, Mapping[str, float]]
    pixels: float
    known: bool

    def cost(self, name: str, *, savings: Savings | None = None, precision: str = "") -> Cost:
        """Cost of a piece of work, e.g. 'base', with the given precision and memory savings."""
        if not self.known:
            return NO_COST
        if precision:
            name += f" {precision}"
        if savings is not None and savings.gradient_checkpointing:
            name += " checkpointed"
        found = Cost(**self.table[name]).scaled(self.pixels)  # pyright: ignore[reportArgumentType]
        if savings is not None and savings.optimizer == "adamw8bit":
            # Adam's two moments: 8 bits and a scale per block instead of 32 each.
            found = found.plus(-5.97 * found.num_trained)
        return found

    def rendering(self, *, num_frames: int, num_calls: int, branches: int, chunk: int) -> Cost:
        """Cost of frames (flops of all of them) denoised `chunk` at a time."""
        call, decode = self.cost("call"), self.cost("decode")
        flops = num_frames * (num_calls * branches * call.flops + decode.flops)
        work = max(branches * chunk * _per_item(call), chunk * _per_item(decode))
        scratch = chunk * max(branches * call.scratch_bytes, decode.scratch_bytes)
        held = 4 * sum(self.parameters.values())
        return Cost(flops=flops, held_bytes=held, peak_bytes=held + work, scratch_bytes=scratch)

    def notes(self, recipe: Recipe) -> tuple[str, ...]:
        """Sentences on the origin of the numbers."""
        if self.known:
            return (MEASURED, RATES)
        return (
            f"costs of recipe {recipe.name!r} are not measured: run python benchmarks/memory.py "
            f"--recipe {recipe.name} --costs; GPU hours and memory are left out",
        )


def _per_item(cost: Cost) -> float:
    return cost.peak_bytes - cost.held_bytes


def model_key(recipe: Recipe) -> str:
    """Name of a recipe's architecture: other numbers of training, the same costs."""
    names = ("vae_class", "vae", "unet", "image_encoder", "num_poses", "pose_planes")
    architecture = {name: getattr(recipe, name) for name in (*names, "photo_latents")}
    text = json.dumps(architecture, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def costs_of(recipe: Recipe) -> RecipeCosts:
    """Measured costs of a recipe, scaled to its frame size."""
    found = _read_costs().get(model_key(recipe))
    if found is None:
        return RecipeCosts(parameters={}, table={}, pixels=1.0, known=False)
    height, width = found["size"]
    return RecipeCosts(
        parameters=found["parameters"],
        table=found["costs"],
        pixels=recipe.height * recipe.width / (height * width),
        known=True,
    )


@cache
def _read_costs() -> dict[str, Any]:
    return json.loads(COSTS.read_text("utf-8"))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine for rent: GPUs and their memory, cores, dollars an hour, sustained FLOP/s."""

    name: str
    num_gpus: int
    gpu_bytes: float
    cores: int
    dollars: float
    flops: Mapping[str, float]


def read_machines(path: str | Path = MACHINES) -> tuple[Machine, ...]:
    """Reads a table like `data/machines.toml`.

    Raises:
        InputError: the file is missing, or a value is missing, unknown or not positive.
    """
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
        shares = {name: _positive(name, value) for name, value in values["share_of_peak"].items()}
        machines: list[Machine] = []
        for row in values["instances"]:
            gpu = values["gpus"][row["gpu"]] if row["num_gpus"] else {}
            rates = {
                name: 1e12 * share * _positive(name, gpu[name])
                for name, share in shares.items()
                if gpu
            }
            machines.append(
                Machine(
                    name=str(row["name"]),
                    num_gpus=int(row["num_gpus"]),
                    gpu_bytes=1e9 * float(gpu.get("memory", 0)),
                    cores=int(_positive("cores", row["cores"])),
                    dollars=_positive("dollars", row["dollars"]),
                    flops=rates,
                )
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"prices must be a table like jobs/common/data/machines.toml, got {str(path)!r} "
            f"({type(error).__name__}: {error})"
        ) from error
    return tuple(machines)


def _positive(name: str, value: float) -> float:
    if not float(value) > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimate of a job.

    Attributes:
        title: of the job.
        work: amounts of work, a sentence each.
        notes: origins of the numbers, a sentence each.
        parameters: of each part of the model.
        cost: of one GPU worker; its memory alone counts.
        precision: 'fp32' or 'bf16'.
        flops: of the whole job.
        core_seconds: of CPU work, over all cores.
        waiting_seconds: for servers, on any machine.
        read_bytes: from storage.
        written_bytes: kept in storage; None if unknown.
    """

    title: str
    work: tuple[str, ...]
    notes: tuple[str, ...] = (ROUGH,)
    parameters: Mapping[str, int] | None = None
    cost: Cost = NO_COST
    precision: str = "fp32"
    flops: float = 0.0
    core_seconds: float = 0.0
    waiting_seconds: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float | None = 0.0

    @property
    def gpu_bytes(self) -> float:
        """GPU memory of one worker at most."""
        return self.cost.peak_bytes + self.cost.scratch_bytes + CUDA_BYTES

    def hours(self, machine: Machine) -> float | None:
        """Hours on all GPUs and cores of a machine; None if it lacks a GPU that is needed."""
        if self.flops and not machine.num_gpus:
            return None
        gpu_seconds = 0.0
        if self.flops:
            rate = machine.flops["fp32" if self.precision == "fp32" else "bf16"]
            gpu_seconds = self.flops / (machine.num_gpus * rate)
        cpu_seconds = self.core_seconds / machine.cores
        return max(gpu_seconds, cpu_seconds, self.waiting_seconds) / 3600

    def fits(self, machine: Machine) -> bool:
        """Whether a GPU of the machine holds one worker."""
        return not self.flops or self.gpu_bytes <= (1 - UNUSABLE_SHARE) * machine.gpu_bytes


def lines(plan: Plan, machines: tuple[Machine, ...]) -> Iterator[str]:
    """The plan as text."""
    yield f"plan: {plan.title}"
    if plan.parameters:
        parts = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in plan.parameters.items())
        yield f"  parameters   {parts}; trained {plan.cost.num_trained / 1e6:,.2f} M"
    for line in plan.work:
        yield f"  work         {line}"
    if plan.flops:
        yield f"  computation  {plan.flops / 1e15:,.4g} PFLOP in {plan.precision}"
        yield f"  GPU memory   {plan.gpu_bytes / 1e9:.1f} GB a worker at most"
    if plan.core_seconds:
        yield f"  CPU          {plan.core_seconds / 3600:,.2f} core hours"
    if plan.waiting_seconds:
        yield f"  waiting      {plan.waiting_seconds / 3600:,.2f} h for servers, on any machine"
    kept = plan.written_bytes
    written = "an unknown number of bytes" if kept is None else f"{kept / 1e9:,.1f} GB"
    yield f"  storage      {plan.read_bytes / 1e9:,.1f} GB read, {written} kept"
    yield f"\n  {'machine':<28}{'hours':>10}{'dollars':>10}"
    for machine in machines:
        hours = plan.hours(machine)
        if hours is None:
            continue
        cells = f"{hours:>10,.2f}{hours * machine.dollars:>10,.2f}"
        yield f"  {machine.name:<28}" + (cells if plan.fits(machine) else f"{'too small':>10}")
    yield ""
    for line in plan.notes:
        yield f"  {line}"


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The requested recipe, else the model's, at the requested size."""
    name = getattr(args, "recipe", None)
    if name is None and args.model is not None:
        name = f"{local_folder(args.model)}/model_index.json"
    recipe = recipes.recipe(name or "catwalk")
    size = getattr(args, "size", None)
    return recipe if size is None else recipe.at(*size)


def sampling_of(recipe: Recipe, preset: str) -> tuple[int, int]:
    """Model calls per frame of a preset, and guidance branches per call."""
    from dreampose.diffusion.sampling import num_model_calls
    from dreampose.diffusion.schedulers import noise_process, scheduler_by_name

    chosen = config.PRESETS[preset]
    start = noise_process(recipe.scheduler).config
    sampler = scheduler_by_name(chosen.scheduler, start, **chosen.scheduler_kwargs)
    image = recipe.image_scale if chosen.image_scale is None else chosen.image_scale
    pose = recipe.pose_scale if chosen.pose_scale is None else chosen.pose_scale
    branches = sum(factor != 0 for factor in (1 - image, image - pose, pose))
    return num_model_calls(sampler, chosen.num_steps), branches


def larger(*costs: Cost) -> Cost:
    """The cost that needs the most GPU memory."""
    return max(costs, key=lambda cost: cost.peak_bytes + cost.scratch_bytes)


def precision_of(args: argparse.Namespace) -> str:
    """Precision that a GPU computes in."""
    return "fp32" if args.precision == "fp32" else "bf16"


def frame_bytes(recipe: Recipe, *, encoded: bool) -> int:
    """Bytes of a frame in preprocessed data; see `dreampose.data.ARRAYS`."""
    cells = math.prod(recipe.latent_size)
    views = recipe.num_crops + recipe.num_recolours
    total = 3 * recipe.height * recipe.width + 2 * views * recipe.pose_planes * cells
    if encoded:
        total += 2 * views * recipe.latent_channels * cells
        if recipe.image_encoder_frozen:
            encoder: Mapping[str, Any] = recipe.image_encoder
            tokens = (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1
            total += 2 * tokens * encoder["hidden_size"]
    return total


def video_frames(path: str) -> int:
    """Frames of a local video, 0 if it is unreadable; those of the paper's videos elsewhere."""
    from dreampose.io import video

    if "://" in path:
        return UBC_FASHION[1]
    try:
        return video.VideoReader(path).num_frames
    except InputError:
        # The job writes a row with the reason.
        return 0


def data_size(data: str) -> tuple[int, int]:
    """Clips and frames of a preprocessed data folder; (0, 0) where there is none."""
    counts: list[int] = [
        number or 0
        for file in storage.parquet_files(f"{data}/clips")
        for number in storage.read_table(file, ["num_frames"])["num_frames"].to_pylist()
    ]
    return len(counts), sum(counts)
