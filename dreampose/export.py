"""Export of models and subjects to diffusers folders and kohya's LoRA format."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dreampose import checkpoints
from dreampose.errors import InputError
from dreampose.io.files import new_folder
from dreampose.models import card, lora
from dreampose.models import subject as subjects
from dreampose.pipeline import DreamPosePipeline

KOHYA_FILE = "kohya_unet.safetensors"
"""LoRA weights of the UNet only: programs that read this format do not have the adapter."""


def export_model(
    pipe: DreamPosePipeline,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    origin: list[str] | None = None,
    licence: str | None = None,
    data: str | None = None,
) -> None:
    """Writes a model as a diffusers folder with a model card, atomically.

    Args:
        pipe: the model; a loaded subject is merged into the written weights.
        folder: new folder.
        dtype: dtype of the written weights.
        origin: sources of the model, one line each, for the card.
        licence: licence of the weights; `None` if unknown.
        data: fingerprint of the training data; `None` if unknown.
    """
    lines = list(origin or [])
    if pipe.subject is not None:
        lines.append(
            f"subject: {pipe.subject.name}, merged, from photos "
            f"`{card.photos_hash(pipe.subject.photos)}`"
        )
    merged = DreamPosePipeline(
        **{name: lora.merge(part) if name in subjects.MODELS else part
           for name, part in pipe.components.items()},
        recipe=pipe.config["recipe"],
    )  # fmt: skip
    text = card.of_model(merged, origin=lines, licence=licence, data=data)
    checkpoints.save(merged, folder, dtype=dtype, text=text)


def export_subject(source: Path, folder: Path, *, licence: str | None = None) -> list[str]:
    """Writes a subject folder with a model card, and LoRA weights also in kohya's format.

    `DreamPosePipeline.load_subject` can load the result. The folder is written atomically.

    Args:
        source: subject folder, written by finetuning.
        folder: new folder.
        licence: licence of the weights; `None` if unknown.

    Returns:
        Paths of the written files, relative to `folder`.

    Raises:
        InputError: `source` is not a subject folder.
    """
    subject = subjects.read_subject(source)
    with new_folder(folder) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)
        if subject.method == "lora":
            updates = lora.read(source / lora.FILE)
            if "unet" in updates:
                metadata = {
                    "format": "pt",
                    "ss_network_module": "networks.lora",
                    "ss_network_dim": str(subject.rank),
                    "ss_network_alpha": str(updates["unet"].settings["lora_alpha"]),
                }
                save_file(kohya(updates["unet"]), part / KOHYA_FILE, metadata=metadata)
        text = card.of_subject(subject, recipe=None, licence=licence)
        (part / "README.md").write_text(text, "utf-8")
        return sorted(path.relative_to(part).as_posix() for path in part.rglob("*")
                      if path.is_file())  # fmt: skip


def kohya(update: lora.LoraWeights) -> dict[str, Tensor]:
    """Converts LoRA weights of a UNet to kohya's names, with an alpha for each layer.

    `LAYER.lora_A.weight` becomes `lora_unet_LAYER.lora_down.weight`; dots in LAYER become
    underscores.
    """
    named: dict[str, Tensor] = {}
    for key, value in update.tensors.items():
        layer, _, kind = key.rpartition(".lora_")
        short = f"lora_unet_{layer.replace('.', '_')}"
        named[f"{short}.lora_{'down' if kind[0] == 'A' else 'up'}.weight"] = value.contiguous()
        named[f"{short}.alpha"] = torch.tensor(float(update.settings["lora_alpha"]))
    return named


def check_new(folder: Path) -> None:
    """Checks that a folder does not exist.

    Raises:
        InputError: the path exists.
    """
    if folder.exists():
        raise InputError(f"out must be a new folder, got the existing {str(folder)!r}")
