"""Sharding of weights over ranks with FSDP2."""

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
"""Module classes that FSDP2 wraps; parameters outside of them stay gathered during a step."""


def plugin() -> FullyShardedDataParallelPlugin:
    """FSDP2 settings for `Accelerator(fsdp_plugin=…)`."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(BLOCKS),
        reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether `accelerator.prepare` shards weights; accelerate does so on GPUs only."""
    return accelerator.distributed_type == DistributedType.FSDP


def prepare_module(module: nn.Module, accelerator: Accelerator) -> None:
    """Prepares a module and the plugin for sharding; call it before `accelerator.prepare`."""
    if not is_sharded(accelerator):
        return
    # FSDP2 does not support channels_last weights.
    module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    present = {type(part).__name__ for part in module.modules()}
    settings = accelerator.state.fsdp_plugin
    assert settings is not None
    settings.transformer_cls_names_to_wrap = [name for name in BLOCKS if name in present]


def reshard(module: nn.Module) -> None:
    """Frees gathered weights after a forward pass without a backward pass.

    The next forward pass would use them even if the sharded weights have changed.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_tensor(value: Tensor) -> Tensor:
    """Gathers a tensor if it is sharded; all ranks must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def copy_full(target: Tensor, value: Tensor) -> None:
    """Copies a full tensor, which every rank has, into one that can be sharded."""
    if isinstance(target, DTensor):
        # Each rank takes its shard from its own copy, without communication.
        value = distribute_tensor(
            value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(value)


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Gathered tensors on the CPU of the main process; empty on other ranks.

    Attributes:
        state: see `state.tensors_of`.
        weights: averaged parameters of the stage, by name.
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
    """Gathers sharded tensors; returns None if nothing is sharded. All ranks must call this.

    Args:
        module: the stage.
        averages: used instead of the parameters with these names.
        state: other tensors, such as those of the optimizer.
        keep: whether this rank keeps the result.
    """
    parameters = dict(module.named_parameters())
    if not any(isinstance(value, DTensor) for value in parameters.values()):
        return None
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for kept, values in zip(found, (state, {**parameters, **averages}), strict=True):
        for name, value in values.items():
            complete = full_tensor(value.detach())
            if keep:
                kept[name] = complete.cpu()
    return Gathered(state=found[0], weights=found[1])


@contextlib.contextmanager
def parameters_replaced(
    module: nn.Module, weights: Mapping[str, Tensor]
) -> Generator[None, None, None]:
    """Replaces sharded parameters by full weights within a context, for saving only."""
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
