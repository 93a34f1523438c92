"""Training of models and finetuning on subjects."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import Accelerator

from dreampose import checkpoints
from dreampose.config import NO_SAVINGS, Recipe, Savings
from dreampose.data.streaming import CACHE_BYTES, SHUFFLE_CLIPS, StreamedDataset, open_dataset
from dreampose.errors import InputError
from dreampose.pipeline import DreamPosePipeline
from dreampose.training import base_stage, distributed, encoder_stage, trainer, vae_stage
from dreampose.training.stage import Stage, StepReport
from dreampose.training.subject import finetune_subject

__all__ = ["STAGES", "StepReport", "columns_of", "finetune_subject", "train"]

STAGES = ("vae", "encoder", "base")
"""Names of the stages, in the order of training."""


def columns_of(stage: str, recipe: Recipe) -> tuple[str, ...]:
    """Array columns of the data that a stage reads."""
    if stage == "base":
        return base_stage.columns(recipe)
    return vae_stage.COLUMNS if stage == "vae" else encoder_stage.COLUMNS


def train(
    stage: str,
    *,
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    accelerator: Accelerator,
    validation: str | Path | None = None,
    model: str | Path | None = None,
    warm_start: str | Path | None = None,
    max_steps: int | None = None,
    seed: int = 0,
    resume: bool = True,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_every: int = 500,
    validate_every: int = 500,
    num_validation: int = 128,
    keep: int = 2,
    keep_best: bool = True,
    savings: Savings = NO_SAVINGS,
    data_cache: int = CACHE_BYTES,
) -> Iterator[StepReport]:
    """Trains one stage; called again with the same arguments, it resumes.

    Args:
        stage: one of `STAGES`.
        recipe: of the model; data and `model` must have the same recipe.
        data: folder or URI of preprocessed clips; see `dreampose.data.Dataset`.
        out: folder of the run: `checkpoints/step_*` during training, and `model` (a pipeline folder
            with the averaged weights) at the end.
        accelerator: device, precision and ranks.
        validation: held-out data, or None.
        model: pipeline folder to start from; None starts from random weights.
        warm_start: pipeline folder, possibly of another recipe, whose weights replace those of the
            model with the same name and shape, except the VAE's.
        max_steps: overrides the recipe's number of steps.
        seed: of initial weights, data order and all noise.
        resume: continue from the last complete checkpoint in `out`.
        stop: polled after each step; once it returns True, a checkpoint is written and the
            generator ends.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations.
        num_validation: number of held-out samples per validation.
        keep: number of checkpoints to keep.
        keep_best: write the model with the lowest validation loss to `out/best`.
        savings: options that reduce memory.
        data_cache: bytes of arrays that each rank keeps locally; larger data are streamed.

    Yields:
        A report of each step.

    Raises:
        InputError: the stage or optimizer is unknown; data, model and recipe do not match; the
            stage needs a trained model; `out` contains another run; or too many consecutive steps
            were skipped.
    """
    if stage not in STAGES:
        raise InputError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    if stage == "vae" and distributed.is_sharded(accelerator):
        # The latent scale is measured by one rank when the VAE is saved.
        raise InputError("stage must be encoder or base with sharded weights, got 'vae'")
    if distributed.is_sharded(accelerator) and (
        savings.average_on_cpu or savings.optimizer != "adamw"
    ):
        raise InputError(
            "savings must be gradient_checkpointing only with sharded weights, average and "
            f"moments, got {savings}"
        )
    pipe = _start(recipe, model, seed)
    if warm_start is not None:
        checkpoints.take_over(pipe, checkpoints.load(warm_start))
    yield from trainer.run(
        _make_stage(
            stage,
            pipe,
            recipe=recipe,
            data=data,
            validation=validation,
            seed=seed,
            data_cache=data_cache,
        ),
        config=getattr(recipe, f"{stage}_stage"),
        accelerator=accelerator,
        out=Path(out),
        options=trainer.RunOptions(
            name=f"{stage} {recipe.name} seed={seed}",
            label=stage,
            seed=seed,
            max_steps=max_steps,
            resume=resume,
            checkpoint_every=checkpoint_every,
            validate_every=validate_every,
            num_validation=num_validation,
            keep=keep,
            keep_best=keep_best,
            savings=savings,
        ),
        stop=stop,
    )


def _make_stage(
    name: str,
    pipe: DreamPosePipeline,
    *,
    recipe: Recipe,
    data: str | Path,
    validation: str | Path | None,
    seed: int,
    data_cache: int,
) -> Stage:
    columns = columns_of(name, recipe)
    train_set = open_dataset(data, recipe=recipe, columns=columns, cache_bytes=data_cache)
    held_out = None
    if validation is not None:
        held_out = open_dataset(validation, recipe=recipe, columns=columns, cache_bytes=data_cache)
    if isinstance(train_set, StreamedDataset):
        # A rank shuffles the clips of each of its lanes, and reads on in all of them.
        lanes = getattr(recipe, f"{name}_stage").gradient_accumulation * len(recipe.frame_sizes)
        train_set.require_clips((SHUFFLE_CLIPS + 1) * lanes)
    if name == "vae":
        config = recipe.vae_stage
        return vae_stage.VaeStage(pipe, data=train_set, validation=held_out, config=config)
    if name == "encoder":
        return encoder_stage.EncoderStage(
            pipe, data=train_set, validation=held_out, recipe=recipe, seed=seed
        )
    return base_stage.BaseStage(
        pipe, data=train_set, validation=held_out, recipe=recipe, config=recipe.base_stage
    )


def _start(recipe: Recipe, model: str | Path | None, seed: int) -> DreamPosePipeline:
    if model is None:
        return checkpoints.build(recipe, seed=seed)
    pipe = checkpoints.load(model)
    for name in (
        *("name", "height", "width", "num_poses", "vae", "unet", "image_encoder"),
        *("photo_fit", "image_range", "pose_range", "pose_resize", "pose_detail"),
        *("null_image", "photo_latents", "pose_kind", "frame_fit"),
    ):
        # Compared as JSON with sorted keys, as in the model's folder.
        expected, got = (
            json.dumps(getattr(owner, name), sort_keys=True) for owner in (recipe, pipe.recipe)
        )
        if expected != got:
            raise InputError(
                f"model must have {name} {expected} as in the recipe, got {got} in {str(model)!r}"
            )
    # The model is saved with the hyperparameters of this stage.
    pipe.register_to_config(recipe=recipe.to_dict())
    return pipe
