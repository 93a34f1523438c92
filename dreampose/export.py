"""Models and subjects as files for other programs: diffusers folders, kohya's LoRA, model cards.

Knows nothing of training. Every folder appears whole or not at all.
"""

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
"""The UNet's updates alone: programs that read this layout know of no adapter."""


def export_model(
    pipe: DreamPosePipeline,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    origin: list[str] | None = None,
    licence: str | None = None,
    data: str | None = None,
) -> None:
    """Writes a model as a diffusers folder with a card; a loaded subject is merged into it.

    Args:
        pipe: left untouched.
        folder: new.
        dtype: of the tensors on disk.
        origin: what the model was made from, a line each.
        licence: of the weights; `None` where nobody stated it.
        data: fingerprint of the training data; `None` where it is not known.
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
    """Writes a subject's folder with a card, and a LoRA in kohya's layout beside its own.

    The result is still a folder for `DreamPosePipeline.load_subject`.

    Args:
        source: written by finetuning; left untouched.
        folder: new.
        licence: of the weights; `None` where nobody stated it.

    Returns:
        Names of the files in it.

    Raises:
        InputError: the source is no subject's folder.
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
    """A UNet's updates under kohya's names: dots become underscores, and alpha stands beside them.

    `LAYER.lora_A.weight` becomes `lora_unet_LAYER.lora_down.weight`.
    """
    named: dict[str, Tensor] = {}
    for key, value in update.tensors.items():
        layer, _, kind = key.rpartition(".lora_")
        short = f"lora_unet_{layer.replace('.', '_')}"
        named[f"{short}.lora_{'down' if kind[0] == 'A' else 'up'}.weight"] = value.contiguous()
        named[f"{short}.alpha"] = torch.tensor(float(update.settings["lora_alpha"]))
    return named


def check_new(folder: Path) -> None:
    """Refuses to replace anything.

    Raises:
        InputError: something of that name exists.
    """
    if folder.exists():
        raise InputError(f"out must be a new folder, got the existing {str(folder)!r}")
