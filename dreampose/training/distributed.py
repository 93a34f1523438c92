"""Weights that are spread over ranks (FSDP2): how they are spread, gathered and filled in.

Knows nothing of losses or of the loop. Where nothing is spread, everything here does nothing.
"""

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer")
"""Classes of modules that are gathered, used and spread again one by one; what lies outside of
them stays whole for the length of a step."""


def plugin() -> FullyShardedDataParallelPlugin:
    """For `Accelerator(fsdp_plugin=…)`: FSDP2 as this package's stages need it."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(BLOCKS),
        reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )


def is_on(accelerator: Accelerator) -> bool:
    """Whether weights will be spread; accelerate does so on accelerators, not on CPUs."""
    return accelerator.distributed_type == DistributedType.FSDP


def make_ready(module: nn.Module, accelerator: Accelerator) -> None:
    """What `accelerator.prepare` needs of a module and of the plugin before it spreads weights."""
    if not is_on(accelerator):
        return
    # FSDP2 knows weights in the order of their dimensions alone.
    module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    present = {type(part).__name__ for part in module.modules()}
    settings = accelerator.state.fsdp_plugin
    assert settings is not None
    settings.transformer_cls_names_to_wrap = [name for name in BLOCKS if name in present]


def spread_again(module: nn.Module) -> None:
    """Lets go of whole weights that a forward without a backward has left gathered.

    The next forward would use them, whatever has been written to the spread ones since.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor; where it is spread, every rank has to call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copies a whole tensor, which every rank has, into one that may be spread."""
    if isinstance(target, DTensor):
        # Each rank cuts its part out of its own copy: nothing is sent.
        value = distribute_tensor(
            value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(value)


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Whole tensors on the CPU of the main process; the other ranks' are empty.

    state: see `state.tensors_of`. weights: every parameter of the stage, by name; averaged.
    """

    state: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]


def gather(
    module: nn.Module,
    *,
    averages: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    keep: bool,
) -> Gathered | None:
    """Gathers all that is spread; `None` where nothing is. Every rank has to call this.

    Args:
        module: the stage.
        averages: stand in for the parameters of these names.
        state: further tensors, such as the optimizer's.
        keep: whether this rank is to hold the result.
    """
    parameters = dict(module.named_parameters())
    if not any(isinstance(value, DTensor) for value in parameters.values()):
        return None
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for kept, values in zip(found, (state, {**parameters, **averages}), strict=True):
        for name, value in values.items():
            complete = whole(value.detach())
            if keep:
                kept[name] = complete.cpu()
    return Gathered(state=found[0], weights=found[1])


@contextlib.contextmanager
def standing_in(module: nn.Module, weights: Mapping[str, Tensor]) -> Generator[None, None, None]:
    """Puts whole weights in the place of those that are spread, to be saved and not to be run."""
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    for path, value in weights.items():
        owner, _, name = path.rpartition(".")
        part = module.get_submodule(owner)
        places.append((part, name, getattr(part, name)))
        setattr(part, name, nn.Parameter(value, requires_grad=False))
    try:
        yield
    finally:
        for part, name, parameter in places:
            setattr(part, name, parameter)
