"""Low-rank updates of a module's layers, by peft: put in, trained, kept in a file, put on a base.

Knows nothing of people, pipelines or losses. A file has diffusers' LoRA layout: tensors
`COMPONENT.LAYER.lora_A.weight` and `….lora_B.weight`, peft's configuration in its metadata.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dreampose.errors import InputError

FILE = "pytorch_lora_weights.safetensors"
"""The name diffusers gives such a file."""

METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's configuration."""

_NAME = "default"
"""peft's own name of a module's one update."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a file holds for one component.

    tensors: by the layer's name and `lora_A.weight` or `lora_B.weight`. settings: of
    `peft.LoraConfig`.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    @property
    def scale(self) -> float:
        """What B A is multiplied with."""
        return float(self.settings["lora_alpha"]) / float(self.settings["r"])


def is_in(module: nn.Module) -> bool:
    """Whether low-rank updates are in a module."""
    return hasattr(module, "peft_config")


def check(modules: Mapping[str, nn.Module], *, rank: int, targets: Iterable[str]) -> None:
    """Checks that updates of these layers can be made.

    Args:
        modules: by component.
        rank: at least 1.
        targets: ends of names of linear or convolution layers.

    Raises:
        InputError: the rank is less than 1, or no layer has such a name; those there are are named.
    """
    if rank < 1:
        raise InputError(f"rank must be at least 1, got {rank}")
    known = {name: layer for module in modules.values() for name, layer in _layers(module).items()}
    wanted = tuple(targets)
    if not wanted:
        raise InputError("lora_targets must be at least one, got none")
    for target in wanted:
        if not any(_matches(name, target) for name in known):
            ends = sorted({_short(name) for name in known})
            raise InputError(
                f"lora_targets must be ends of layers' names such as {', '.join(ends)}, "
                f"got {target!r}"
            )


def add(
    modules: Mapping[str, nn.Module], *, rank: int, targets: Iterable[str], seed: int = 0
) -> None:
    """Puts updates that change nothing yet into modules, in place; they alone require gradients.

    W becomes W + B A with A random and B zero (arXiv 2106.09685).

    Args:
        modules: by component.
        rank: of B A.
        targets: ends of the names of the layers.
        seed: of A.

    Raises:
        InputError: see `check`.
    """
    # Here and not above: it takes seconds, and most uses of a model need none of it.
    from peft import LoraConfig, inject_adapter_in_model

    wanted = tuple(targets)
    check(modules, rank=rank, targets=wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in modules.values():
            names = [name for name in _layers(module)
                     if any(_matches(name, target) for target in wanted)]  # fmt: skip
            if names:
                config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(
                    {target for target in wanted if any(_matches(n, target) for n in names)}
                ))  # fmt: skip
                inject_adapter_in_model(config, module, _NAME)
            else:
                module.requires_grad_(False)


def shared(module: nn.Module) -> Any:
    """A copy of a module whose weights are the same memory, so that layers can be put into it."""
    memo: dict[int, Any] = {id(value): value for value in module.buffers()}
    for value in module.parameters():
        memo[id(value)] = nn.Parameter(value.detach(), requires_grad=False)
    return copy.deepcopy(module, memo)


def save(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Writes the updates in modules, in float32; components without any are left out."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for component, module in modules.items():
        if not is_in(module):
            continue
        state = get_peft_model_state_dict(module, adapter_name=_NAME)
        for key, value in state.items():
            tensors[f"{component}.{key}"] = value.detach().float().cpu().contiguous()
        config: Any = module.peft_config
        for key, value in config[_NAME].to_dict().items():
            settings[f"{component}.{key}"] = sorted(value) if isinstance(value, set) else value
    text = json.dumps(settings, indent=2, sort_keys=True)
    save_file(tensors, path, metadata={"format": "pt", METADATA: text})


def read(path: Path) -> dict[str, Update]:
    """The updates of each component in a file.

    Raises:
        InputError: it is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        settings = json.loads(metadata[METADATA])
        components = {key.partition(".")[0] for key in tensors}
        updates = {
            component: Update(
                tensors=_part(tensors, component), settings=_part(settings, component)
            )
            for component in sorted(components)
        }
        if any(update.scale <= 0 for update in updates.values()):
            raise ValueError("a scale that is not positive")
    except (OSError, SafetensorError, ValueError, KeyError, ZeroDivisionError) as error:
        raise InputError(
            f"lora must be a file that this package or diffusers wrote, got {str(path)!r} ({error})"
        ) from error
    return updates


def attach(modules: Mapping[str, nn.Module], path: Path) -> dict[str, nn.Module]:
    """Copies of base modules with a file's updates in them; the base's weights are shared.

    Args:
        modules: by component; left untouched.
        path: written by `save`.

    Raises:
        InputError: the file is damaged, or its layers are not those of the modules.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    attached: dict[str, nn.Module] = {}
    for component, update in read(path).items():
        if component not in modules:
            raise InputError(
                f"lora must hold layers of {' and '.join(modules)}, got {component} in "
                f"{str(path)!r}"
            )
        base = modules[component]
        _check_layers(_layers(base), update, f"{component} of {str(path)!r}")
        module: nn.Module = shared(base)
        settings: Any = update.settings
        config = LoraConfig(r=settings["r"], lora_alpha=settings["lora_alpha"],
                            target_modules=settings["target_modules"])  # fmt: skip
        tensors = dict(update.tensors)
        inject_adapter_in_model(config, module, _NAME, state_dict=tensors)
        set_peft_model_state_dict(module, tensors, adapter_name=_NAME)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(False)
            if ".lora_" in name:
                parameter.data = parameter.data.to(next(base.parameters()))
        attached[component] = module.eval()
    return attached


def merged(module: Any) -> Any:
    """The module with its updates added to its weights: a copy; itself where there are none."""
    if not is_in(module):
        return module
    from peft.tuners.tuners_utils import BaseTunerLayer

    module = copy.deepcopy(module)
    found = [(name, layer) for name, layer in module.named_modules()
             if isinstance(layer, BaseTunerLayer)]  # fmt: skip
    for name, layer in found:
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.get_base_layer())
    del module.peft_config
    return module


def num_parameters(modules: Iterable[nn.Module]) -> int:
    """Parameters of the updates in modules."""
    return sum(value.numel() for module in modules for name, value in module.named_parameters()
               if ".lora_" in name)  # fmt: skip


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
    """The last part of a name, or the last two where the last is a number."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]


def _check_layers(layers: Mapping[str, nn.Module], update: Update, name: str) -> None:
    for key, value in update.tensors.items():
        layer_name, _, kind = key.rpartition(".lora_")
        layer = layers.get(layer_name)
        if layer is None or kind not in ("A.weight", "B.weight"):
            raise InputError(f"lora must hold layers of the base model, got {key} in {name}")
        shape: Any = layer.weight.shape
        rank = int(update.settings["r"])
        expected = (rank, shape[1]) if kind[0] == "A" else (shape[0], rank)
        other = f"{layer_name}.lora_{'B' if kind[0] == 'A' else 'A'}.weight"
        if expected != tuple(value.shape[:2]) or other not in update.tensors:
            raise InputError(
                f"lora must hold A and B of each layer, {key} of shape {expected}, got "
                f"{tuple(value.shape)} in {name}"
            )
