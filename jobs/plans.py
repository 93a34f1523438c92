"""What each job will take, for `--dry-run`: what is asked for, times what a piece costs.

Knows flags and data; what the model's modules cost is `dreampose.planning`'s. Starts no Ray.
"""

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dreampose import config, recipes
from dreampose.errors import InputError
from jobs import storage

if TYPE_CHECKING:
    from dreampose.planning import Plan

UBC_FASHION = (339, 360)
"""Training videos of the paper's data set, and frames of each (about 12 s at 30 a second)."""

POSE_SECONDS = 0.05
"""Core seconds to decode a frame and to find its pose (BlazePose: 13 to 45 ms)."""
SCORE_SECONDS = 0.2
"""Core seconds to decode two frames and to compare them by one score."""
RENDER_SECONDS = 0.8 / (640 * 512)
"""Core seconds to render a pixel of the synthetic data set."""

MP4_SHARE = 0.02
"""Bytes of a video by those of its plain frames."""

TRACED = "memory and operations: the model's own code, run on tensors without contents"
RATES = "hours: operations over what GPUs sustained in published runs; see the table of prices"
ROUGH = "CPU time is a rate per frame, measured on two cores; data is counted uncompressed"


def train(args: argparse.Namespace) -> "Plan":
    """Of one stage of training.

    Raises:
        InputError: there is no such stage, recipe, model or optimizer.
    """
    from dreampose import planning
    from dreampose.cli import flags

    if args.stage not in ("vae", "encoder", "base"):
        raise InputError(f"stage must be one of vae, encoder, base, got {args.stage!r}")
    savings = flags.savings(args)
    recipe = _recipe(args)
    stage: config.StageConfig = getattr(recipe, f"{args.stage}_stage")
    num_frames, items, source = _items(args, recipe)
    accumulation = stage.gradient_accumulation
    global_batch = stage.batch_size * accumulation * args.workers
    steps = args.steps or stage.num_steps or stage.num_epochs * math.ceil(items / global_batch)
    precision = _precision(args)
    cost = planning.training_step(
        args.stage, recipe, savings=savings, precision=precision, num_workers=args.workers
    )
    samples = steps * global_batch
    flops = cost.flops / stage.batch_size * samples
    how = [TRACED, RATES, ROUGH]
    published = None
    if args.stage == "base" and recipe.image_encoder_frozen:
        encoded = planning.encoding(recipe)
        again = savings.gradient_checkpointing
        plain = (planning.training_step("base", recipe) if again else cost).flops
        plain /= stage.batch_size
        published = samples * (plain + 2 * encoded.flops)
        how.append(
            "published code: float32, no cached latents, so that every sample is one step of the "
            f"UNet ({plain / 1e12:.2f} TFLOP) and two encodings ({encoded.flops / 1e12:.2f} each); "
            "the paper took two days on 2 x A100"
        )
    if args.shard:
        how.append("GPU memory is that without --shard, which spreads weights and moments")
    model_bytes = 4 * sum(cost.parameters.values())
    return planning.Plan(
        title=f"stage {args.stage} of {recipe.name}, {args.workers} worker(s)",
        work=(
            f"{items:,} {'people' if args.stage == 'encoder' else 'frames'} {source}",
            f"{steps:,} steps of {global_batch} samples "
            f"({stage.batch_size} a batch, {accumulation} batches a worker, {args.workers} "
            f"workers), {cost.flops / stage.batch_size / 1e12:.3f} TFLOP a sample",
        ),
        how=tuple(how),
        parameters=cost.parameters,
        num_trained=cost.num_trained,
        precision=precision,
        flops=flops,
        peak_bytes=cost.peak_bytes,
        read_bytes=num_frames * _frame_bytes(recipe, encoded=args.stage == "base"),
        written_bytes=2 * (cost.state_bytes + model_bytes) + model_bytes,
        published_flops=published,
    )


def finetune(args: argparse.Namespace) -> "Plan":
    """Of finetuning on many people.

    Raises:
        InputError: the list of people, the model or an optimizer is not there.
    """
    from dreampose import planning
    from dreampose.cli import flags
    from jobs import subjects

    savings = flags.savings(args)
    people = subjects.read(args.subjects)
    recipe = _recipe(args)
    precision = _precision(args)
    is_lora = args.method == "lora"
    first = planning.subject_step(
        recipe, method=args.method, rank=args.rank, savings=savings, precision=precision
    )
    second = planning.subject_decoder_step(recipe, savings=savings, precision=precision)
    default = 0 if is_lora else recipe.subject_vae_stage.num_steps
    steps = recipe.subject_stage.num_steps if args.steps is None else args.steps
    decoder_steps = default if args.vae_steps is None else args.vae_steps
    used = [cost for cost, number in ((first, steps), (second, decoder_steps)) if number]
    used.append(planning.subject_encoding(recipe))
    kept = first.num_trained + (second.num_trained if decoder_steps else 0)
    return planning.Plan(
        title=f"{len(people)} people, method {args.method}, of {recipe.name}",
        work=(
            f"{steps:,} steps of UNet and adapter, {first.flops / 1e12:.3f} TFLOP each",
            f"{decoder_steps:,} steps of the decoder, {second.flops / 1e12:.3f} TFLOP each",
        ),
        how=(TRACED, RATES, "several GPUs work on several people: one person alone uses one"),
        parameters=first.parameters,
        num_trained=first.num_trained,
        precision=precision,
        flops=len(people) * (steps * first.flops + decoder_steps * second.flops),
        peak_bytes=max(cost.peak_bytes for cost in used),
        read_bytes=4 * sum(first.parameters.values()),
        written_bytes=len(people) * (4 if is_lora else 2) * kept,
    )


def render(args: argparse.Namespace) -> "Plan":
    """Of a catalogue of videos.

    Raises:
        InputError: the catalogue or the model is not there.
    """
    from diffusers import PNDMScheduler

    from dreampose import planning
    from dreampose.sampling import num_model_calls
    from dreampose.schedule import scheduler_by_name
    from serve.catalog import read_catalog
    from serve.config import Settings

    settings = Settings(model=args.model, subjects=args.subjects or "", chunk_size=args.chunk_size)
    items = read_catalog(args.catalog, settings=settings, preset=args.preset).items
    recipe = settings.recipe()
    start = PNDMScheduler(**recipe.scheduler).config
    frames = dict.fromkeys(sorted({item.preset for item in items}), 0)
    for item in items:
        frames[item.preset] += item.num_frames
    flops, peak, found = 0.0, 0, None
    work: list[str] = []
    for name, number in frames.items():
        preset = config.PRESETS[name]
        sampler = scheduler_by_name(preset.scheduler, start, **preset.scheduler_kwargs)
        calls = num_model_calls(sampler, preset.num_steps)
        found = planning.rendering(
            config.replace(
                recipe,
                image_scale=_first(preset.image_scale, recipe.image_scale),
                pose_scale=_first(preset.pose_scale, recipe.pose_scale),
            ),
            num_calls=calls,
            chunk_size=args.chunk_size,
        )
        flops += found.flops / args.chunk_size * number
        peak = max(peak, found.peak_bytes)
        work.append(f"{number:,} frames by {name}, {calls} calls of the model for each")
    assert found is not None
    num_frames = sum(frames.values())
    return planning.Plan(
        title=f"{len(items)} videos of {recipe.name}, {args.chunk_size} frames at once",
        work=tuple(work),
        how=(TRACED, RATES, "replicas compute in float32"),
        parameters=found.parameters,
        flops=flops,
        peak_bytes=peak,
        core_seconds=num_frames * POSE_SECONDS,
        read_bytes=4 * sum(found.parameters.values()),
        # Finished chunks lie there as plain frames until the video is written.
        written_bytes=num_frames * 3 * recipe.height * recipe.width,
    )


def preprocess(args: argparse.Namespace) -> "Plan":
    """Of turning videos into training data.

    Raises:
        InputError: the videos, the recipe or the model are not there.
    """
    from dreampose import planning
    from dreampose.dataset.rows import ENCODE_BATCH
    from dreampose.latents import images_at_once
    from jobs import videos

    recipe = _recipe(args)
    if args.data is not None:
        num_clips, num_frames = _rows(args.data)
    else:
        found = videos.find(args.videos)
        num_clips, num_frames = len(found), sum(_video_frames(video.path) for video in found)
    views = recipe.num_crops + recipe.num_recolours
    count, cost = 1, None
    if args.model is not None:
        count = images_at_once(recipe.height, recipe.width, at_most=ENCODE_BATCH)
        cost = planning.encoding(recipe, batch_size=count)
    return planning.Plan(
        title=f"{num_clips:,} videos to data of {recipe.name}",
        work=(f"{num_frames:,} frames, {views if cost else 1} views of each",),
        how=(TRACED, RATES, ROUGH) if cost else (ROUGH,),
        parameters=cost.parameters if cost else {},
        flops=num_frames * views * cost.flops / count if cost else 0.0,
        peak_bytes=cost.peak_bytes if cost else 0.0,
        core_seconds=num_frames * POSE_SECONDS,
        read_bytes=num_frames * 3 * recipe.height * recipe.width * MP4_SHARE,
        written_bytes=num_frames * _frame_bytes(recipe, encoded=cost is not None),
    )


def evaluate(args: argparse.Namespace) -> "Plan":
    """Of scoring clips against the true ones.

    Raises:
        InputError: the clips are not there.
    """
    from dreampose import metrics, planning
    from jobs import clips

    pairs = clips.pair(clips.methods(args.pred), args.truth)
    chosen = metrics.choose(args.metrics)
    num_frames = sum(pair.num_frames for pair in pairs)
    num_values = sum(3 * pair.num_frames * pair.height * pair.width for pair in pairs)
    return planning.Plan(
        title=f"{len(pairs)} pairs of clips, {len(chosen)} scores",
        work=(f"{num_frames:,} pairs of frames",),
        how=(ROUGH,),
        parameters={},
        core_seconds=num_frames * SCORE_SECONDS * len(chosen),
        read_bytes=2 * num_values * MP4_SHARE,
        written_bytes=1e6,
    )


def catwalk(args: argparse.Namespace) -> "Plan":
    """Of rendering the synthetic data set.

    Raises:
        InputError: a flag is out of its range.
    """
    from dreampose import planning
    from dreampose.catwalk import cli
    from dreampose.catwalk.generate import tasks

    height, width = cli.parse_size(args.size)
    todo = tasks(identities=args.identities, frames=args.frames, split=args.split, seed=args.seed,
                 height=height, width=width)  # fmt: skip
    pixels = len(todo) * args.frames * height * width
    return planning.Plan(
        title=f"{len(todo)} synthetic clips of {args.frames} frames",
        work=(f"{len(todo) * args.frames:,} frames of {height}x{width}",),
        how=(ROUGH,),
        parameters={},
        core_seconds=pixels * RENDER_SECONDS,
        written_bytes=pixels * 2.0,
    )


def _recipe(args: argparse.Namespace) -> config.Recipe:
    """The recipe that is asked for, or else the model's; at the size that is asked for."""
    name = getattr(args, "recipe", None)
    if name is None and args.model is not None:
        name = f"{args.model}/model_index.json"
    recipe = recipes.recipe(name or "catwalk")
    size = getattr(args, "size", None)
    return recipe if size is None else recipe.at(*size)


def _precision(args: argparse.Namespace) -> str:
    """What a GPU computes in."""
    return "fp32" if args.precision == "fp32" else "bf16"


def _first(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _items(args: argparse.Namespace, recipe: config.Recipe) -> tuple[int, int, str]:
    """Frames, what an epoch visits, and where both come from."""
    is_encoder = args.stage == "encoder"
    if storage.parquet_files(f"{args.data}/clips"):
        from dreampose.dataset import Dataset

        data = Dataset(args.data, recipe=recipe, columns=())
        items = len(set(data.subjects)) if is_encoder else len(data)
        return len(data), items, f"in {args.data}"
    clips, frames = UBC_FASHION
    return (
        clips * frames,
        clips if is_encoder else clips * frames,
        f"of UBC Fashion ({clips} videos of {frames} frames), since {args.data} holds none yet",
    )


def _frame_bytes(recipe: config.Recipe, *, encoded: bool) -> int:
    """Bytes of a frame in the data, see `dataset.ARRAYS`."""
    cells = math.prod(recipe.latent_size)
    views = recipe.num_crops + recipe.num_recolours
    total = 3 * recipe.height * recipe.width + 2 * views * recipe.pose_channels * cells
    if encoded:
        total += 2 * views * recipe.latent_channels * cells
        if recipe.image_encoder_frozen:
            encoder: Mapping[str, Any] = recipe.image_encoder
            tokens = (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1
            total += 2 * tokens * encoder["hidden_size"]
    return total


def _rows(data: str) -> tuple[int, int]:
    """Clips and frames of a data folder."""
    counts: list[int] = [
        number or 0
        for file in storage.parquet_files(f"{data}/clips")
        for number in storage.read_table(file, ["num_frames"])["num_frames"].to_pylist()
    ]
    if not counts:
        raise InputError(f"data must be a folder that this job made, got {data!r}")
    return len(counts), sum(counts)


def _video_frames(path: str) -> int:
    """Frames of a video by its own word; those of the paper's where it lies elsewhere."""
    if "://" in path:
        return UBC_FASHION[1]
    import av

    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            return stream.frames or round(
                float((stream.duration or 0) * (stream.time_base or 0))
                * float(stream.average_rate or 0)
            )
    except (OSError, IndexError, av.FFmpegError):
        # The job itself makes a row with the reason of it.
        return 0
