"""Safe reading of weight files, and strict loading into modules."""

import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreampose.errors import InputError
from dreampose.io import formats

WRAPPERS = ("module.", "_orig_mod.")
"""What `DistributedDataParallel` and `torch.compile` put before every name."""

_NAMES_SHOWN = 20
_COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")
_REFUSED = re.compile(r"(?:GLOBAL|[Cc]lass|type) ([\w.]+\.[\w.]+)")
"""What torch calls a class that it does not load."""


class _Unused:
    """Stands in for a class that old training checkpoints mention beside their weights."""


_HARMLESS: list[Any] = [(_Unused, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def read(path: str | Path, name: str) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU, as they are stored.

    Pickles are loaded with `weights_only=True`: nothing in them is executed.

    Args:
        path: `.safetensors`, or what `torch.save` wrote of a state dict, plain or under the key
            `state_dict`.
        name: of the field, for the message.

    Raises:
        InputError: the file is missing, damaged, or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{name} must be an existing file of weights, got {str(path)!r}")
    with path.open("rb") as file:
        head = file.read(formats.HEAD_BYTES)
    if found := formats.describe(head):
        raise InputError(f"{name}: {str(path)!r} is {found}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            # Only the newer, zipped form can stay on disk until it is read.
            content: Any = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    # Whatever a damaged file makes the readers raise.
    except Exception as error:
        raise InputError(
            f"{name} must be a file of tensors alone (nothing in it is executed), got "
            f"{str(path)!r}: {_reason(error)}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise InputError(f"{name} must hold a state dict, got {_kind(content)} in {str(path)!r}")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} must hold tensors alone, got {_kind(value)} named {key!r} in {str(path)!r}"
            )
    return dict(content)


def read_shards(index: Path, name: str) -> dict[str, Tensor]:
    """All tensors of files that an index (`*.index.json`) lists.

    Raises:
        InputError: the index or one of its files is missing or damaged.
    """
    try:
        files = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name} must have a readable index, got {str(index)!r}") from error
    tensors: dict[str, Tensor] = {}
    for file in sorted(files):
        tensors |= read(index.parent / Path(file).name, name)
    return tensors


def unwrap(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same tensors without the prefixes of wrapped modules.

    Raises:
        InputError: two names become one.
    """
    plain: dict[str, Tensor] = {}
    for key, value in tensors.items():
        short = key
        while short.startswith(WRAPPERS):
            short = short.split(".", 1)[1]
        if short in plain:
            raise InputError(f"{name} must name every tensor once, got {short!r} with and without "
                             "the prefix of a wrapper")  # fmt: skip
        plain[short] = value
    return plain


def fit(module: nn.Module, tensors: Mapping[str, Tensor], name: str, path: str | Path) -> None:
    """Puts tensors into a module, in float32; they must be exactly its own.

    Args:
        module: may be on the meta device: the tensors become its parameters.
        tensors: under the module's names.
        name: of the field, for the message.
        path: where the tensors come from, likewise.

    Raises:
        InputError: tensors are missing, unknown, of another shape or not finite; all are named.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    faults = [
        _list("missing", (key for key in expected if key not in tensors)),
        _list("unknown", (key for key in tensors if key not in expected)),
        _list(
            "of another shape",
            (
                f"{key} {_shape(value.shape)} instead of {_shape(expected[key])}"
                for key, value in tensors.items()
                if key in expected and tuple(value.shape) != expected[key]
            ),
        ),
        _list("not finite", (key for key, value in tensors.items() if not _is_finite(value))),
    ]
    if any(faults):
        raise InputError(
            f"{name} must hold the {len(expected)} tensors of its model, got "
            f"{'; '.join(filter(None, faults))} in {str(path)!r}"
        )
    values = {
        key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
    }
    module.load_state_dict(values, strict=True, assign=True)


def _reason(error: Exception) -> str:
    """Why a file could not be read, on one line, with the class that a pickle refers to."""
    text = _COLOUR_CODES.sub("", str(error))
    if found := _REFUSED.search(text):
        return (
            f"it refers to {found.group(1)}, and objects other than tensors are not loaded; save "
            "its state_dict() alone, or convert it to .safetensors"
        )
    if text.startswith("Weights only load failed"):
        return "it is not a file of tensors that torch.save wrote"
    return next(filter(None, map(str.strip, text.splitlines())), type(error).__name__)


def _is_finite(values: Tensor) -> bool:
    """Whether all values are finite; 8-bit floats are compared as 32-bit ones."""
    narrow = values.is_floating_point() and values.element_size() == 1
    return bool((values.float() if narrow else values).isfinite().all())


def _list(kind: str, names: Iterable[str]) -> str:
    found = list(names)
    if not found:
        return ""
    more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
    return f"{len(found)} {kind}: {', '.join(found[:_NAMES_SHOWN])}{more}"


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"
