"""Weights finetuned on one person, and whose they are. Knows nothing of training or sampling.

A subject's folder holds only the tensors that finetuning may change, as safetensors, or low-rank
updates of them (`dreampose.models.lora`), beside `subject.json`: name, recipe, fingerprint of the
base model, and what its photos look like.
"""

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
from dreampose.models.vae import VAE
from dreampose.types import Scheduler

Photo = UInt8[np.ndarray, "H W 3"]

TRAINED = {"unet": ("",), "adapter": ("",), "vae": ("decoder.", "post_quant_conv.")}
"""Components that finetuning may change, and the prefixes of the tensors kept of each."""

MODELS = ("vae", "image_encoder", "adapter", "unet")
WEIGHTS = "diffusion_pytorch_model.safetensors"
MISMATCH = 15.0
"""Mean CIELAB distance from which two photos are taken to show different people or outfits.

Over two clips each of 12 catwalk identities one person's frames are at most 12 apart (99% of pairs
9.8), and 88% of frames are farther than 15 from every frame of anybody else.
"""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whose weights these are and which base model they belong to.

    looks: `look` of each photo. photos: `photo_hash` of each photo. method: 'full' or 'lora', then
    with its rank.
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
    """The parts of a model; `dreampose.pipeline.DreamPosePipeline` has them."""

    vae: VAE
    image_encoder: CLIPVisionModel
    adapter: ImageAdapter
    unet: UNet2DConditionModel
    scheduler: Scheduler

    @property
    def recipe(self) -> Recipe:
        """Sizes and numbers of the model."""
        ...

    @property
    def execution_device(self) -> torch.device:
        """Where the parts compute, wherever they lie meanwhile."""
        ...

    @property
    def subject(self) -> Subject | None:
        """Whose weights are loaded; None is the base model."""
        ...


def describe(
    pipe: Components, name: str, photos: Sequence[Photo], *, method: str = "full", rank: int = 0
) -> Subject:
    """The `Subject` of these photos, for weights that are about to be trained from `pipe`.

    Args:
        pipe: the base model, before it is changed.
        name: of the subject, as the user calls it.
        photos: as the user gave them, before any resizing.
        method: 'full' or 'lora'.
        rank: of the updates of 'lora'.
    """
    return Subject(
        name=name,
        recipe=pipe.recipe.name,
        base=fingerprint(pipe),
        photos=tuple(photo_hash(photo) for photo in photos),
        looks=tuple(tuple(look(photo).round(2).tolist()) for photo in photos),
        method=method,
        rank=rank,
    )


def fingerprint(
    pipe: Components, components: Sequence[str] = MODELS, *, without: tuple[str, ...] = ()
) -> str:
    """16 hex digits of the weights; equal for a model in memory and the same saved and loaded.

    Weights are hashed as bfloat16 of their float16 form, so that the fp16 files and the float32,
    float16 or bfloat16 model read from them agree.

    Args:
        pipe: the model.
        components: whose weights count.
        without: beginnings of the names, such as 'vae.decoder', of weights that do not.
    """
    digest = hashlib.sha256()
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
    """16 hex digits of a photo's pixels."""
    return hashlib.sha256(str(photo.shape).encode() + photo.tobytes()).hexdigest()[:16]


def look(photo: Photo) -> Float[np.ndarray, " 12"]:
    """Median CIELAB colour of the person in four bands from head to feet.

    The person is what differs from the median colour of the picture's border.
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


def check(subject: Subject, photos: Sequence[Photo]) -> None:
    """Warns when none of a subject's own photos looks like one of these.

    Warns:
        SubjectMismatchWarning: with the subject's name and how to silence it.
    """
    known = np.array(subject.looks, np.float32).reshape(-1, 4, 3)
    for number, photo in enumerate(photos, start=1):
        if photo_hash(photo) in subject.photos or not len(known):
            continue
        distances = np.linalg.norm(known - look(photo).reshape(1, 4, 3), axis=-1).mean(axis=-1)
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
    """Writes a subject's weights; the folder appears whole or not at all.

    Of a component with low-rank updates in it, those alone are written.

    Args:
        folder: replaced when it exists.
        pipe: the finetuned model.
        subject: from `describe`, called on the base model before it was finetuned.
        components: those that were changed, among 'unet', 'adapter' and 'vae'.
        dtype: of the tensors on disk; updates are float32.
    """
    modules: dict[str, nn.Module] = {name: getattr(pipe, name) for name in components}
    updated = {name: module for name, module in modules.items() if lora.is_in(module)}
    with new_folder(folder) as part:
        if updated:
            lora.save(part / lora.FILE, updated)
        for component, module in modules.items():
            if component in updated:
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
    """Gives a subject's weights another name beside; the copy appears whole or not at all.

    Args:
        folder: of the subject.
        target: folder of the copy, replaced when it exists.
        name: of the copy's subject.

    Raises:
        InputError: `folder` is no subject's.
    """
    subject = replace(read_subject(folder), name=name)
    with new_folder(target) as part:
        shutil.copytree(folder, part, dirs_exist_ok=True)
        text = json.dumps(asdict(subject), indent=2)
        (part / "subject.json").write_text(text + "\n", encoding="utf-8")


def read_subject(folder: str | Path) -> Subject:
    """Whose weights a folder holds, without reading them.

    Raises:
        InputError: it is no subject's folder.
    """
    path = Path(folder) / "subject.json"
    if not path.is_file():
        raise InputError(f"subject must be a folder with a subject.json, got {str(folder)!r}")
    try:
        values: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
        looks = tuple(tuple(look_) for look_ in values["looks"])  # pyright: ignore
        photos = tuple(values["photos"])  # pyright: ignore
        return Subject(**{**values, "looks": looks, "photos": photos})  # pyright: ignore
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"subject.json must be one this package wrote, got {error}") from error


def subject_modules(pipe: Components, folder: str | Path) -> tuple[Subject, dict[str, nn.Module]]:
    """A subject and copies of the base model's components with its weights in them.

    Args:
        pipe: the base model; left untouched.
        folder: written by `save_subject`.

    Raises:
        InputError: the folder is no subject's, or belongs to another base model or recipe.
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
    if subject.base != actual:
        raise InputError(
            f"subject {subject.name!r} must be finetuned from this base model "
            f"(fingerprint {actual}), got {subject.base}: finetune it again"
        )
    modules: dict[str, nn.Module] = {}
    if subject.method == "lora":
        parts: dict[str, nn.Module] = {name: getattr(pipe, name) for name in ("unet", "adapter")}
        modules |= lora.attach(parts, Path(folder) / lora.FILE)
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
