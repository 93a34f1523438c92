"""Finetuned weights of one subject: saving, loading, fingerprints, photo check."""

import copy
import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionModel

from dreampose.config import Recipe
from dreampose.errors import InputError, SubjectMismatchWarning
from dreampose.io.files import new_folder
from dreampose.models import lora
from dreampose.models.adapter import ImageAdapter
from dreampose.models.model_folder import CONVENTIONS, MODELS, hashed_conventions
from dreampose.models.refiner import Refiner
from dreampose.models.vae import VAE
from dreampose.types import Scheduler

Photo = UInt8[np.ndarray, "H W 3"]

TRAINED = {"unet": ("",), "adapter": ("",), "vae": ("decoder.", "post_quant_conv.")}
"""Components that finetuning can change, with the name prefixes of the tensors that are saved."""

WEIGHTS = "diffusion_pytorch_model.safetensors"
MISMATCH = 15.0
"""Mean CIELAB distance above which two photos are assumed to show different subjects or outfits.

Measured on two clips each of 12 catwalk identities: frames of one identity differ by at most 12
(99% of pairs: 9.8), and 88% of frames differ by more than 15 from all frames of other identities.
"""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Description of a subject's weights; `subject.json` in its folder.

    Attributes:
        name: of the subject.
        recipe: name of the base model's recipe.
        base: fingerprint of the base model.
        photos: `photo_hash` of each photo.
        looks: `outfit_colours` of each photo.
        method: 'full' or 'lora'.
        rank: of 'lora', else 0.
    """

    name: str
    recipe: str
    base: str
    photos: tuple[str, ...]
    looks: tuple[tuple[float, ...], ...]
    method: str = "full"
    rank: int = 0


@runtime_checkable
class Components(Protocol):
    """The components of a model, as in `dreampose.pipeline.DreamPosePipeline`.

    The pipeline imports the modules that are annotated with this, so they cannot import it.
    """

    vae: VAE
    image_encoder: CLIPVisionModel
    adapter: ImageAdapter
    unet: UNet2DConditionModel
    scheduler: Scheduler
    refiner: Refiner | None

    @property
    def recipe(self) -> Recipe:
        """Configuration of the model."""
        ...

    @property
    def execution_device(self) -> torch.device:
        """Device that computes, also while weights are offloaded to the CPU."""
        ...

    @property
    def subject(self) -> Subject | None:
        """Subject whose weights are loaded; None for the base model."""
        ...


def describe_subject(
    pipe: Components, name: str, photos: Sequence[Photo], *, method: str = "full", rank: int = 0
) -> Subject:
    """Describes a subject before finetuning.

    Args:
        pipe: the base model, before finetuning.
        name: of the subject.
        photos: as given by the user, before resizing.
        method: 'full' or 'lora'.
        rank: of 'lora', else 0.
    """
    return Subject(
        name=name,
        recipe=pipe.recipe.name,
        base=fingerprint(pipe),
        photos=tuple(photo_hash(photo) for photo in photos),
        looks=tuple(tuple(outfit_colours(photo).round(2).tolist()) for photo in photos),
        method=method,
        rank=rank,
    )


def fingerprint(
    pipe: Components,
    components: Sequence[str] = MODELS,
    *,
    without: tuple[str, ...] = (),
    conventions: Sequence[str] = tuple(CONVENTIONS),
) -> str:
    """Hashes weights and conventions of a model to 16 hex digits, independent of the precision.

    Weights are rounded to float16 and then to bfloat16 before hashing, so a model loaded from fp16
    files has the same fingerprint in float32, float16 and bfloat16.

    Args:
        pipe: the model.
        components: names of the components to hash.
        without: name prefixes of weights to leave out, such as 'vae.decoder'.
        conventions: names among `CONVENTIONS` to hash, where they have other values than there.
    """
    digest = hashlib.sha256()
    digest.update(hashed_conventions(pipe.recipe, conventions))
    for component in components:
        module: nn.Module = getattr(pipe, component)
        for name, tensor in sorted(module.state_dict().items()):
            if f"{component}.{name}".startswith(without):
                continue
            digest.update(f"{component}.{name}{tuple(tensor.shape)}".encode())
            coarse = tensor.detach().cpu().to(torch.float16).to(torch.bfloat16).contiguous()
            digest.update(coarse.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def photo_hash(photo: Photo) -> str:
    """Hashes the pixels of a photo to 16 hex digits."""
    return hashlib.sha256(str(photo.shape).encode() + photo.tobytes()).hexdigest()[:16]


def outfit_colours(photo: Photo) -> Float[np.ndarray, " 12"]:
    """Median CIELAB colours of the subject in four bands from head to feet.

    Pixels that differ by more than 12 from the median colour of the photo's border are taken as
    the subject.
    """
    height, width = photo.shape[:2]
    scale = 128 / max(height, width)
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    border = np.concatenate([lab[0], lab[:, 0], lab[:, -1]])
    person = np.linalg.norm(lab - np.median(border, axis=0), axis=-1) > 12
    rows = np.flatnonzero(person.mean(axis=1) > 0.02)
    top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, len(lab))
    edges = np.linspace(top, bottom, 5).round().astype(int)
    whole = np.median(lab[person], axis=0) if person.any() else np.median(lab, axis=(0, 1))
    bands: list[np.ndarray] = []
    for start, stop in pairwise(edges):
        inside = lab[start:stop][person[start:stop]]
        bands.append(np.median(inside, axis=0) if len(inside) else whole)
    return np.concatenate(bands).astype(np.float32)


def warn_on_mismatch(subject: Subject, photos: Sequence[Photo]) -> None:
    """Warns for each photo whose colours differ from all photos the subject was finetuned on.

    Args:
        subject: whose weights are used.
        photos: of a request, any size.

    Warns:
        SubjectMismatchWarning: the mean CIELAB distance is above `MISMATCH`.
    """
    known = np.array(subject.looks, np.float32).reshape(-1, 4, 3)
    for number, photo in enumerate(photos, start=1):
        if photo_hash(photo) in subject.photos or not len(known):
            continue
        colours = outfit_colours(photo).reshape(1, 4, 3)
        distances = np.linalg.norm(known - colours, axis=-1).mean(axis=-1)
        if distances.min() > MISMATCH:
            warnings.warn(
                f"photo {number} does not look like subject {subject.name!r}, whose finetuned "
                f"weights are loaded (colour distance {distances.min():.0f}, expected at most "
                f"{MISMATCH:.0f}); use that subject's photo or the base model, or silence this "
                "with check_subject=False (command line: --force-subject)",
                SubjectMismatchWarning,
                stacklevel=3,
            )


def save_subject(
    folder: str | Path,
    pipe: Components,
    subject: Subject,
    *,
    components: Sequence[str] = tuple(TRAINED),
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes a subject's weights and `subject.json`, atomically.

    For components with LoRA layers, only the LoRA weights are written.

    Args:
        folder: replaced if it exists.
        pipe: the finetuned model.
        subject: result of `describe_subject` for the base model.
        components: those that were finetuned, among 'unet', 'adapter' and 'vae'.
        dtype: of the tensors on disk; LoRA weights are always float32.
    """
    modules: dict[str, nn.Module] = {name: getattr(pipe, name) for name in components}
    with_lora = {name: module for name, module in modules.items() if lora.has_lora(module)}
    with new_folder(folder) as part:
        if with_lora:
            lora.save(part / lora.FILE, with_lora)
        for component, module in modules.items():
            if component in with_lora:
                continue
            tensors = {
                name: tensor.detach().to("cpu", dtype).contiguous()
                for name, tensor in module.state_dict().items()
                if name.startswith(TRAINED[component])
            }
            (part / component).mkdir()
            save_file(tensors, part / component / WEIGHTS)
        text = json.dumps(asdict(subject), indent=2)
        (part / "subject.json").write_text(text + "\n", encoding="utf-8")


def copy_subject(folder: str | Path, target: str | Path, name: str) -> None:
    """Copies a subject's folder under another subject name, atomically.

    Args:
        folder: of the subject.
        target: folder of the copy, replaced if it exists.
        name: subject name of the copy.

    Raises:
        InputError: `folder` is not a subject folder.
    """
    subject = replace(read_subject(folder), name=name)
    with new_folder(target) as part:
        shutil.copytree(folder, part, dirs_exist_ok=True)
        text = json.dumps(asdict(subject), indent=2)
        (part / "subject.json").write_text(text + "\n", encoding="utf-8")


def read_subject(folder: str | Path) -> Subject:
    """Reads `subject.json` of a subject folder, without the weights.

    Raises:
        InputError: the folder has no `subject.json`, or it cannot be read.
    """
    path = Path(folder) / "subject.json"
    if not path.is_file():
        raise InputError(f"subject must be a folder with a subject.json, got {str(folder)!r}")
    try:
        values: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
        looks = tuple(map(tuple, values["looks"]))  # pyright: ignore
        photos = tuple(values["photos"])  # pyright: ignore
        return Subject(**{**values, "looks": looks, "photos": photos})  # pyright: ignore
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"subject must have a valid subject.json, got {str(path)!r} ({error}): finetune again"
        ) from error


def subject_modules(pipe: Components, folder: str | Path) -> tuple[Subject, dict[str, nn.Module]]:
    """Loads a subject's weights into copies of the base model's components.

    Args:
        pipe: the base model; not changed.
        folder: written by `save_subject`.

    Returns:
        The subject, and the finetuned components by name.

    Raises:
        InputError: the folder is not a subject folder, or the subject belongs to another base
            model or recipe.
    """
    subject = read_subject(folder)
    if pipe.subject is not None:
        raise InputError(
            f"model must be a base model to load subject {subject.name!r}, "
            f"got one with subject {pipe.subject.name!r} loaded"
        )
    if subject.recipe != pipe.recipe.name:
        raise InputError(
            f"subject {subject.name!r} must belong to a model of recipe {pipe.recipe.name!r}, "
            f"got {subject.recipe!r}"
        )
    actual = fingerprint(pipe)
    if subject.base != actual and subject.base == fingerprint(pipe, conventions=()):
        warnings.warn(
            f"subject {subject.name!r} was finetuned before the range and fit of photos and poses "
            "were recorded: whether they are this model's is not known",
            SubjectMismatchWarning,
            stacklevel=2,
        )
    elif subject.base != actual:
        raise InputError(
            f"subject {subject.name!r} must be finetuned from this base model "
            f"(fingerprint {actual}), got {subject.base}: finetune it again"
        )
    modules: dict[str, nn.Module] = {}
    if subject.method == "lora":
        parts: dict[str, nn.Module] = {name: getattr(pipe, name) for name in ("unet", "adapter")}
        modules |= lora.load(parts, Path(folder) / lora.FILE)
    for component in TRAINED:
        path = Path(folder) / component / WEIGHTS
        if not path.is_file():
            continue
        module: nn.Module = copy.deepcopy(getattr(pipe, component))
        try:
            missing, unexpected = module.load_state_dict(load_file(path), strict=False)
        except (RuntimeError, SafetensorError) as error:
            raise InputError(f"{component} weights of subject {subject.name!r}: {error}") from error
        lost = [name for name in missing if name.startswith(TRAINED[component])]
        if lost or unexpected:
            raise InputError(
                f"{component} weights of subject {subject.name!r} must fit the base model, "
                f"got {len(lost)} missing and {len(unexpected)} unknown tensors"
            )
        modules[component] = module
    return subject, modules
