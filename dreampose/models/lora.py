"""LoRA: adding low-rank updates to models, saving, loading, merging."""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.peft import PeftAdapterMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dreampose.errors import InputError

FILE = "pytorch_lora_weights.safetensors"
"""File name of LoRA weights in diffusers.

Tensors are called `COMPONENT.LAYER.lora_A.weight` and `COMPONENT.LAYER.lora_B.weight`.
"""

METADATA = "lora_adapter_metadata"
"""Key of peft's configuration in the file's metadata, as in diffusers."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_rslora": (),
    "use_dora": (),
    "use_qalora": (),
    "use_bdlora": (),
    "rank_pattern": (),
    "alpha_pattern": (),
    "bias": ("none",),
    "lora_bias": (),
    "modules_to_save": (),
    "fan_in_fan_out": (),
    "layer_replication": (),
    "trainable_token_indices": (),
    "target_parameters": (),
    "arrow_config": (),
    "kasa_config": (),
    "monteclora_config": (),
    "velora_config": (),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
    "alora_invocation_tokens": (),
}
"""Settings of `peft.LoraConfig` that are not applied, with the values other than none, empty and
false that change nothing."""

_NAME = "default"
"""Name of the adapter in peft."""


@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """LoRA weights of one component of a pipeline.

    Attributes:
        tensors: by layer name and `lora_A.weight` or `lora_B.weight`.
        settings: fields of `peft.LoraConfig`.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    @property
    def scale(self) -> float:
        """Factor of the product B A: `lora_alpha` / `r`."""
        return float(self.settings["lora_alpha"]) / float(self.settings["r"])


def has_lora(module: nn.Module) -> bool:
    """Whether LoRA layers were added to a module."""
    return hasattr(module, "peft_config")


def check_targets(modules: Mapping[str, nn.Module], *, rank: int, targets: Iterable[str]) -> None:
    """Checks that LoRA layers of this rank can be added to these layers.

    Args:
        modules: by component name.
        rank: at least 1.
        targets: suffixes of the names of linear or convolution layers.

    Raises:
        InputError: the rank is less than 1, there is no target, or a target matches no layer.
    """
    if rank < 1:
        raise InputError(f"rank must be at least 1, got {rank}")
    known = {name: layer for module in modules.values() for name, layer in _layers(module).items()}
    wanted = tuple(targets)
    if not wanted:
        raise InputError("lora_targets must name at least one layer, got none")
    for target in wanted:
        if not any(_matches(name, target) for name in known):
            ends = sorted({_short(name) for name in known})
            raise InputError(
                f"lora_targets must be suffixes of layer names such as {', '.join(ends)}, "
                f"got {target!r}"
            )


def add_lora(
    modules: Mapping[str, nn.Module], *, rank: int, targets: Iterable[str], seed: int = 0
) -> None:
    """Adds LoRA layers to modules, in place; only their weights require gradients afterwards.

    W becomes W + B A with A random and B zero, so outputs do not change yet (arXiv 2106.09685).

    Args:
        modules: by component name.
        rank: of B A.
        targets: suffixes of the names of the layers.
        seed: of the random A.

    Raises:
        InputError: see `check_targets`.
    """
    # Imported here because peft takes seconds to import and most uses of a model do not need it.
    from peft import LoraConfig

    wanted = tuple(targets)
    check_targets(modules, rank=rank, targets=wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in modules.values():
            names = [name for name in _layers(module)
                     if any(_matches(name, target) for target in wanted)]  # fmt: skip
            if names:
                config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(
                    {target for target in wanted if any(_matches(n, target) for n in names)}
                ))  # fmt: skip
                _with_adapters(module).add_adapter(config, _NAME)
            else:
                module.requires_grad_(False)


def copy_sharing_weights(module: nn.Module) -> Any:
    """Copies a module without its weights: the copy's parameters share memory with the original."""
    memo: dict[int, Any] = {id(value): value for value in module.buffers()}
    for value in module.parameters():
        memo[id(value)] = nn.Parameter(value.detach(), requires_grad=False)
    return copy.deepcopy(module, memo)


def save(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Writes the LoRA weights of modules in float32; components without LoRA are left out.

    diffusers' `save_lora_adapter` writes one component per file and its `save_lora_weights` knows
    no image adapter, hence the file is written here.

    Args:
        path: of the safetensors file.
        modules: by component name.
    """
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for component, module in modules.items():
        if not has_lora(module):
            continue
        state = get_peft_model_state_dict(module, adapter_name=_NAME)
        for key, value in state.items():
            tensors[f"{component}.{key}"] = value.detach().float().cpu().contiguous()
        config: Any = module.peft_config
        for key, value in config[_NAME].to_dict().items():
            settings[f"{component}.{key}"] = sorted(value) if isinstance(value, set) else value
    text = json.dumps(settings, indent=2, sort_keys=True)
    save_file(tensors, path, metadata={"format": "pt", METADATA: text})


def read(path: Path) -> dict[str, LoraWeights]:
    """Reads the LoRA weights of each component from a file.

    Raises:
        InputError: the file is not a LoRA file of diffusers' layout with peft's metadata.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        settings = json.loads(metadata[METADATA])
        components = {key.partition(".")[0] for key in tensors}
        updates = {
            component: LoraWeights(
                tensors=_part(tensors, component), settings=_part(settings, component)
            )
            for component in sorted(components)
        }
        if any(update.scale <= 0 for update in updates.values()):
            raise ValueError("its scale is not positive")
    except (OSError, SafetensorError, ValueError, KeyError, ZeroDivisionError) as error:
        raise InputError(
            f"lora must be a file written by this package or diffusers, got {str(path)!r} ({error})"
        ) from error
    _check_settings(settings, path)
    return updates


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Refuses settings of peft that change what weights mean and are not applied here.

    Raises:
        InputError: one of them is set; all are named.
    """
    found = [
        f"{name}={value!r}"
        for name, value in settings.items()
        if (key := name.rpartition(".")[2]) in _NEUTRAL
        and value not in (*_NEUTRAL[key], None)
        and value not in ({}, [], False)
    ]
    if found:
        raise InputError(
            f"lora: {str(path)!r} has settings that are not applied here, {', '.join(found)}; "
            "merge it into its model with the program that made it"
        )


def load(modules: Mapping[str, nn.Module], path: Path) -> dict[str, nn.Module]:
    """Loads a LoRA file into copies of base modules; the copies share the base's weights.

    Args:
        modules: by component name; not changed.
        path: file written by `save`.

    Returns:
        Frozen copies, in evaluation mode, of the components that the file has weights for.

    Raises:
        InputError: the file is damaged, or its layers or shapes do not match the modules.
    """
    attached: dict[str, nn.Module] = {}
    for component, update in read(path).items():
        if component not in modules:
            raise InputError(
                f"lora must contain layers of {' or '.join(modules)} only, got {component} in "
                f"{str(path)!r}"
            )
        base = modules[component]
        _check_layers(_layers(base), update, f"{component} of {str(path)!r}")
        module: nn.Module = copy_sharing_weights(base)
        settings: Any = update.settings
        # Other settings depend on the version of peft that wrote the file.
        names = ("r", "lora_alpha", "target_modules")
        _with_adapters(module).load_lora_adapter(
            dict(update.tensors),
            prefix=None,
            adapter_name=_NAME,
            metadata={name: settings[name] for name in names},
        )
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(False)
            if ".lora_" in name:
                parameter.data = parameter.data.to(next(base.parameters()))
        attached[component] = module.eval()
    return attached


def merge(module: Any) -> Any:
    """Returns a copy with the LoRA weights added to the base weights.

    A module without LoRA layers is returned as it is.
    """
    if not has_lora(module):
        return module
    module = _with_adapters(copy.deepcopy(module))
    module.fuse_lora()
    module.unload_lora()
    return module


def num_parameters(modules: Iterable[nn.Module]) -> int:
    """Number of LoRA parameters in modules."""
    return sum(value.numel() for module in modules for name, value in module.named_parameters()
               if ".lora_" in name)  # fmt: skip


def _with_adapters(module: nn.Module) -> Any:
    """The module, checked to have diffusers' methods for LoRA adapters."""
    assert isinstance(module, PeftAdapterMixin)
    return module


def _part(values: Mapping[str, Any], component: str) -> dict[str, Any]:
    start = f"{component}."
    return {key.removeprefix(start): value for key, value in values.items()
            if key.startswith(start)}  # fmt: skip


def _layers(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: layer for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name}  # fmt: skip


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _short(name: str) -> str:
    """Last part of a dotted name, or the last two if the last is a number."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]


def _check_layers(layers: Mapping[str, nn.Module], update: LoraWeights, name: str) -> None:
    """Checks that each pair of tensors fits a layer of the base model.

    Raises:
        InputError: a tensor has no layer, no counterpart or another shape.
    """
    for key, value in update.tensors.items():
        layer_name, _, kind = key.rpartition(".lora_")
        layer = layers.get(layer_name)
        if layer is None or kind not in ("A.weight", "B.weight"):
            raise InputError(f"lora must fit the base model, got unknown tensor {key} in {name}")
        shape: Any = layer.weight.shape
        rank = int(update.settings["r"])
        expected = (rank, shape[1]) if kind[0] == "A" else (shape[0], rank)
        other = f"{layer_name}.lora_{'B' if kind[0] == 'A' else 'A'}.weight"
        if expected != tuple(value.shape[:2]) or other not in update.tensors:
            raise InputError(
                f"lora must have A and B of each layer, {key} with shape {expected}, got "
                f"{tuple(value.shape)} in {name}"
            )
