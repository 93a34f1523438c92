"""What training and finetuning will take. Knows flags and data, no modules."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from dreampose import config
from dreampose.errors import InputError
from jobs.common import storage
from jobs.evaluation import clips
from jobs.plans import rates

if TYPE_CHECKING:
    from dreampose.planning import Plan


def train(args: argparse.Namespace) -> "Plan":
    """Of one stage of training.

    Raises:
        InputError: there is no such stage, recipe, model or optimizer.
    """
    from dreampose import planning
    from dreampose.options import arguments

    if args.stage not in ("vae", "encoder", "base"):
        raise InputError(f"stage must be one of vae, encoder, base, got {args.stage!r}")
    savings = arguments.savings(args)
    recipe = rates.recipe_of(args)
    stage: config.StageConfig = getattr(recipe, f"{args.stage}_stage")
    num_frames, items, source = _items(args, recipe)
    accumulation = stage.gradient_accumulation
    global_batch = stage.batch_size * accumulation * args.workers
    steps = args.steps or stage.num_steps or stage.num_epochs * math.ceil(items / global_batch)
    precision = rates.precision_of(args)
    cost = planning.training_step(
        args.stage, recipe, savings=savings, precision=precision, num_workers=args.workers
    )
    samples = steps * global_batch
    flops = cost.flops / stage.batch_size * samples
    how = [rates.TRACED, rates.RATES, rates.ROUGH]
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
        scratch_bytes=cost.scratch_bytes,
        read_bytes=num_frames * rates.frame_bytes(recipe, encoded=args.stage == "base"),
        written_bytes=2 * (cost.state_bytes + model_bytes) + model_bytes,
        published_flops=published,
    )


def finetune(args: argparse.Namespace) -> "Plan":
    """Of finetuning on many people.

    Raises:
        InputError: the list of people, the model or an optimizer is not there.
    """
    from dreampose import planning
    from dreampose.options import arguments
    from jobs.common import subject_table

    savings = arguments.savings(args)
    people = [row for row in subject_table.read(args.subjects) if not row.error]
    recipe = rates.recipe_of(args)
    precision = rates.precision_of(args)
    is_lora = args.method == "lora"
    first = planning.subject_step(
        recipe, method=args.method, rank=args.rank, savings=savings, precision=precision
    )
    second = planning.subject_decoder_step(recipe, savings=savings, precision=precision)
    default = 0 if is_lora else recipe.subject_vae_stage.num_steps
    steps = recipe.subject_stage.num_steps if args.steps is None else args.steps
    decoder_steps = default if args.vae_steps is None else args.vae_steps
    most = planning.subject_encoding(recipe)
    for cost, number in ((first, steps), (second, decoder_steps)):
        most = rates.larger(most, cost) if number else most
    kept = first.num_trained + (second.num_trained if decoder_steps else 0)
    return planning.Plan(
        title=f"{len(people)} people, method {args.method}, of {recipe.name}",
        work=(
            f"{steps:,} steps of UNet and adapter, {first.flops / 1e12:.3f} TFLOP each",
            f"{decoder_steps:,} steps of the decoder, {second.flops / 1e12:.3f} TFLOP each",
        ),
        how=(
            rates.TRACED,
            rates.RATES,
            "several GPUs work on several people: one person alone uses one",
        ),
        parameters=first.parameters,
        num_trained=first.num_trained,
        precision=precision,
        flops=len(people) * (steps * first.flops + decoder_steps * second.flops),
        peak_bytes=most.peak_bytes,
        scratch_bytes=most.scratch_bytes,
        read_bytes=4 * sum(first.parameters.values()),
        written_bytes=len(people) * (4 if is_lora else 2) * kept,
    )


def ablate(args: argparse.Namespace) -> "Plan":
    """Of the ablations, all of them: what an earlier run did is counted as well.

    Raises:
        InputError: what the job itself refuses: people, model or data are not there.
    """
    from dreampose import planning
    from jobs import ablate as job

    asked, seeds, people = job.check(args)
    # Not above: they need the scores' packages, of which the check speaks.
    from jobs.evaluation import ablation

    recipe = rates.recipe_of(argparse.Namespace(model=args.vae_model))
    per_clip = len(ablation.scored_frames(ablation.MIN_FRAMES))
    cells = ablation.cells(seeds, people)
    most = planning.subject_encoding(recipe)
    flops = 0.0
    num_samples = num_clips = num_trained = 0
    for variant in ablation.VARIANTS:
        own = ablation.recipe_of(recipe, variant)
        base, subject = planning.training_step("base", own), planning.subject_step(own)
        decoder = planning.subject_decoder_step(own)
        scaled, calls = rates.sampling_of(own, asked.preset)
        chunk = planning.rendering(scaled, num_calls=calls, chunk_size=ablation.CHUNK)
        for cost in (base, subject, decoder, chunk):
            most = rates.larger(most, cost)
        stage = own.base_stage
        batches = asked.base_steps * stage.gradient_accumulation
        num_samples += len(seeds) * batches * stage.batch_size
        flops += len(seeds) * batches * base.flops
        mine = [cell for cell in cells if cell.base.variant == variant]
        flops += len(mine) * asked.num_steps * subject.flops
        flops += len(mine) * asked.num_vae_steps * decoder.flops
        rendered = len(ablation.DEFAULT_MOTIONS) * sum(len(cell.rows) for cell in mine)
        flops += rendered * per_clip * chunk.flops / ablation.CHUNK
        num_clips += rendered
        num_trained = max(num_trained, base.num_trained)
    num_bases = len(seeds) * len(ablation.VARIANTS)
    clip_frames = sum(
        clips.measure(Path(file))[0] for person in people for file in person.files.values()
    )
    model_bytes = 4 * sum(most.parameters.values())
    return planning.Plan(
        title=f"ablations of {recipe.name}: {len(people)} people, {len(seeds)} seeds",
        work=(
            f"{num_bases} trainings of {asked.base_steps:,} steps",
            f"{len(cells)} finetunings of {asked.num_steps:,} steps, then {asked.num_vae_steps:,} "
            "of the decoder",
            f"{num_clips} clips rendered, {per_clip} frames of each",
        ),
        how=(rates.TRACED, rates.RATES, "in float32; what was done before is counted as well"),
        parameters=most.parameters,
        num_trained=num_trained,
        flops=flops,
        peak_bytes=most.peak_bytes,
        scratch_bytes=most.scratch_bytes,
        core_seconds=clip_frames * rates.POSE_SECONDS
        + num_clips * per_clip * len(ablation.METRICS) * rates.SCORE_SECONDS,
        read_bytes=num_samples * rates.frame_bytes(recipe, encoded=True),
        written_bytes=num_bases * model_bytes,
    )


def _items(args: argparse.Namespace, recipe: config.Recipe) -> tuple[int, int, str]:
    """Frames, what an epoch visits, and where both come from."""
    is_encoder = args.stage == "encoder"
    if storage.parquet_files(f"{args.data}/clips"):
        from dreampose.data import Dataset

        data = Dataset(args.data, recipe=recipe, columns=())
        items = len(set(data.subjects)) if is_encoder else len(data)
        return len(data), items, f"in {args.data}"
    videos, frames = rates.UBC_FASHION
    return (
        videos * frames,
        videos if is_encoder else videos * frames,
        f"of UBC Fashion ({videos} videos of {frames} frames), since {args.data} holds none yet",
    )
