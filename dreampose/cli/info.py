"""Describes a model or subject folder: components, recipe, presets, fingerprint, licence."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from dreampose.config import PRESETS, Preset, Recipe, StageConfig
from dreampose.models import model_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", type=Path, help="folder of a model, or of a finetuned subject")


def run(args: argparse.Namespace) -> None:
    """Prints the description."""
    folder: Path = args.model
    lines = (
        describe_subject(folder) if (folder / "subject.json").is_file() else describe_model(folder)
    )
    print("\n".join(lines))


def describe_model(folder: Path) -> Iterator[str]:
    """Lines that describe a model folder.

    Raises:
        InputError: the folder is not a model folder.
    """
    model = model_folder.read_model_folder(folder)
    recipe = model.recipe
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield f"model         {folder} ({size / 1e6:.1f} MB)"
    yield f"fingerprint   {model.fingerprint()}"
    yield f"licence       {licence(folder)}"
    yield (
        f"recipe        {recipe.name}: {recipe.height}x{recipe.width} pixels, latents "
        + "x".join(str(length) for length in (recipe.latent_channels, *recipe.latent_size))
    )
    if recipe.sizes:
        sizes = ", ".join(f"{height}x{width}" for height, width in recipe.sizes)
        yield f"further sizes {sizes}"
    yield f"window        {recipe.num_poses} poses, {recipe.pose_channels} channels each"
    for line in model_folder.conventions(recipe):
        kind, _, text = line.partition(": ")
        yield f"{kind:<14}{text}"
    yield f"guidance      image_scale {recipe.image_scale:g}, pose_scale {recipe.pose_scale:g}"
    yield f"prediction    {model.scheduler['prediction_type']}"
    yield "components"
    numbers = {name: model.num_parameters(name) for name in model.classes}
    for name, number in numbers.items():
        frozen = " (frozen)" if name == "image_encoder" and recipe.image_encoder_frozen else ""
        yield f"  {name:<14}{model.classes[name]:<24}{number / 1e6:>8.2f} M parameters{frozen}"
    yield f"  {'total':<38}{sum(numbers.values()) / 1e6:>8.2f} M parameters"
    yield "presets"
    for name, preset in PRESETS.items():
        yield f"  {name:<14}{describe_preset(preset)}"
    yield "training"
    yield from describe_stages(recipe)


def describe_preset(preset: Preset) -> str:
    """One line that describes a preset."""
    options = "".join(f", {key}={value}" for key, value in preset.scheduler_kwargs.items())
    return f"{preset.scheduler}, {preset.num_steps} steps{options}"


def describe_stages(recipe: Recipe) -> Iterator[str]:
    """One line for each training stage of a recipe."""
    for name, stage in vars(recipe).items():
        if isinstance(stage, StageConfig):
            length = f"{stage.num_steps} steps" if stage.num_steps else f"{stage.num_epochs} epochs"
            yield (
                f"  {name.removesuffix('_stage'):<14}{length} of "
                f"{stage.batch_size * stage.gradient_accumulation}, lr {stage.learning_rate:g}"
            )


def describe_subject(folder: Path) -> Iterator[str]:
    """Lines that describe the folder of a finetuned subject.

    Raises:
        InputError: the folder is not a subject folder.
    """
    from dreampose.models import lora  # loads torch
    from dreampose.models import subject as subjects

    subject = subjects.read_subject(folder)
    parts = sorted(path.parent.name for path in folder.glob(f"*/{subjects.WEIGHTS}"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield f"subject       {subject.name} ({folder}, {size / 1e6:.1f} MB)"
    yield f"recipe        {subject.recipe}"
    yield f"base model    {subject.base}"
    yield f"photos        {len(subject.photos)}"
    if subject.method == "lora":
        for name, update in lora.read(folder / lora.FILE).items():
            number = sum(tensor.numel() for tensor in update.tensors.values())
            yield (
                f"updates       {name}: rank {subject.rank}, {number / 1e6:.3f} M parameters of "
                f"{len(update.tensors) // 2} layers"
            )
    if parts:
        yield f"weights of    {', '.join(parts)}"


def licence(folder: Path) -> str:
    """Licence stated in the folder's model card."""
    return (
        model_folder.stated_licence(folder / "README.md") or "not stated in the folder's README.md"
    )
