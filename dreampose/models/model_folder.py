"""Contents of a model folder, read without torch.

Loading a model takes seconds. This module reads only the JSON files and the safetensors, for
reports about a folder.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreampose.config import Recipe
from dreampose.errors import InputError

MODELS = ("vae", "image_encoder", "adapter", "unet")
"""Components of a model whose weights enter its fingerprint, in this order."""

CONVENTIONS: Mapping[str, object] = {
    "image_range": (-1.0, 1.0),
    "pose_range": (0.0, 1.0),
    "photo_fit": "letterbox",
    "frame_fit": "letterbox",
    "pose_resize": "area",
    "pose_kind": "any",
    "null_image": "zeros",
}
"""Fields of the recipe that affect the meaning of weights, and values that fingerprints leave out,
so that models and subjects from before these fields keep their fingerprints."""

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
"""numpy dtypes of safetensors; numpy has no bfloat16, so its bits are read."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    path: Path
    dtype: str
    """In safetensors' notation, such as 'F16'."""
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""
    num_bytes: int

    def read(self) -> np.ndarray:
        """Values; bfloat16 is converted to float32."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            values = np.frombuffer(file.read(self.num_bytes), _DTYPES[self.dtype])
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """Description of a model folder."""

    recipe: Recipe
    classes: Mapping[str, str]
    """Class name of each component that has weights, in the order of `MODELS`, then others."""
    scheduler: Mapping[str, Any]
    """Settings of the noise process."""
    tensors: Mapping[str, Mapping[str, StoredTensor]]
    """Tensors by component and name."""

    def num_parameters(self, component: str) -> int:
        """Number of parameters of a component."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors[component].values())

    def fingerprint(self) -> str:
        """Same as `dreampose.models.subject.fingerprint` of the loaded model."""
        digest = hashlib.sha256(hashed_conventions(self.recipe))
        for component in MODELS:
            for name, tensor in sorted(self.tensors[component].items()):
                digest.update(f"{component}.{name}{tensor.shape}".encode())
                digest.update(_as_bfloat16(tensor.read()).tobytes())
        return digest.hexdigest()[:16]


def read_model_folder(folder: Path) -> ModelFolder:
    """Reads the description of a model folder.

    Raises:
        InputError: the folder is not a complete model folder of this package.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(f"model must be a folder with a model_index.json, got {str(folder)!r}")
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        components = {
            name: value[1]
            for name, value in index.items()
            if isinstance(value, list) and value[1] is not None and name != "scheduler"
        }
        names = [*MODELS, *sorted(components.keys() - set(MODELS))]
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text("utf-8"))
        return ModelFolder(
            recipe=Recipe.from_dict(index["recipe"]),
            classes={name: components[name] for name in names},
            scheduler=scheduler,
            tensors={name: dict(_stored_tensors(folder / name)) for name in names},
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        reason = str(error) if isinstance(error, OSError | InputError) else repr(error)
        raise InputError(f"model must be one this package wrote, got {folder}: {reason}") from error


def hashed_conventions(recipe: Recipe, names: Sequence[str] = tuple(CONVENTIONS)) -> bytes:
    """Contribution of a recipe to fingerprints: the conventions that differ from `CONVENTIONS`."""
    values = {name: getattr(recipe, name) for name in names}
    changed = {name: value for name, value in values.items() if value != CONVENTIONS[name]}
    return json.dumps(changed, sort_keys=True).encode() if changed else b""


def conventions(recipe: Recipe) -> list[str]:
    """Lines on the ranges and resizing of photos and poses that the weights expect."""
    (black, white), (low, high) = recipe.image_range, recipe.pose_range
    return [
        f"photos: {recipe.photo_fit} for the image encoder, {black:g} to {white:g} for the VAE; "
        f"null image: {recipe.null_image}; frames: {recipe.frame_fit}",
        f"poses: {low:g} to {high:g}, {recipe.pose_resize} onto the latent grid"
        + f", {recipe.pose_kind}" * (recipe.pose_kind != "any")
        + (
            f", {recipe.pose_detail}x{recipe.pose_detail} squares a cell" * (recipe.pose_detail > 1)
        ),
    ]


def stated_licence(card: Path) -> str | None:
    """Licence stated in a model card; None without a card or a licence."""
    if not card.is_file():
        return None
    found = re.search(r"licen[cs]e: *([\w.-]*\w)", card.read_text(encoding="utf-8"), re.IGNORECASE)
    return found[1] if found else None


def stated_origin(card: Path) -> list[str]:
    """Lines of a model card that start with 'made from'."""
    if not card.is_file():
        return []
    return re.findall(r"^- (made from .*)$", card.read_text(encoding="utf-8"), re.MULTILINE)


def _stored_tensors(folder: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Names and tensors of all safetensors in a folder."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no .safetensors in {folder}")
    for path in files:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= path.stat().st_size else None
        if not isinstance(header, dict):
            raise ValueError(f"{path} is not a safetensors file")
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            if entry["dtype"] not in _DTYPES or 8 + size + end > path.stat().st_size:
                raise ValueError(f"{path} is truncated or has an unknown dtype")
            yield (
                name,
                StoredTensor(
                    path=path,
                    dtype=entry["dtype"],
                    shape=tuple(entry["shape"]),
                    start=8 + size + start,
                    num_bytes=end - start,
                ),
            )


def _as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of the values, rounded to float16 and then to bfloat16 (half to even), as torch does."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float16).astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
