"""Memory options of training: gradient checkpointing and 8-bit Adam."""

import importlib
import importlib.util
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dreampose.config import Savings, StageConfig
from dreampose.errors import InputError

OPTIMIZERS = ("adamw", "adamw8bit")
PRECISIONS = ("auto", "fp32", "bf16")

_BLOCK = 256
"""Number of 8-bit values that share one scale in bitsandbytes."""
_SMALLEST = 4096
"""Tensors with fewer values have 32-bit moments in bitsandbytes."""


def check(savings: Savings) -> None:
    """Checks that the memory options can be used.

    Raises:
        InputError: the optimizer is unknown, or its package is not installed.
    """
    if savings.optimizer not in OPTIMIZERS:
        raise InputError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {savings.optimizer!r}"
        )
    if savings.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "optimizer 'adamw8bit' needs the package bitsandbytes, which is not installed: "
            "pip install -e '.[low-memory]'"
        )


def mixed_precision(precision: str) -> str:
    """Converts a precision to accelerate's `mixed_precision`.

    Weights, gradients and moments are always float32.

    Args:
        precision: 'fp32', 'bf16', or 'auto' for bf16 on GPUs that support it.

    Raises:
        InputError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "auto":
        precision = "fp32"
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported():
            precision = "bf16"
    return "bf16" if precision == "bf16" else "no"


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: StageConfig, savings: Savings
) -> torch.optim.Optimizer:
    """Makes AdamW with the hyperparameters of a stage, with 32-bit or 8-bit moments.

    Raises:
        InputError: see `check`.
    """
    check(savings)
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if savings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    # Imported here because the package is optional and initialises GPUs on import.
    return importlib.import_module("bitsandbytes.optim").AdamW8bit(parameters, **options)


def moment_bytes(num_values: int, savings: Savings) -> int:
    """Number of bytes of Adam's two moments of a tensor with `num_values` values."""
    if savings.optimizer == "adamw" or num_values < _SMALLEST:
        return 8 * num_values
    scales = -(-num_values // _BLOCK)
    # Each moment has a table of the 256 values that the 8 bits encode.
    return 2 * (num_values + 4 * scales + 4 * 256)


def prepare(stage: nn.Module, savings: Savings) -> None:
    """Applies the memory options to a stage, in place; call it before `make_optimizer`."""
    if savings.gradient_checkpointing:
        recompute_activations(stage)
    if savings.optimizer == "adamw8bit":
        # bitsandbytes makes weights contiguous itself, but not their moments.
        stage.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def recompute_activations(stage: nn.Module) -> None:
    """Enables gradient checkpointing in all blocks of diffusers' and transformers' models.

    Only the inputs of blocks are kept; the backward pass recomputes the rest, which takes about a
    third more time.
    """
    again = partial(checkpoint, use_reentrant=False)
    for module in stage.modules():
        if hasattr(module, "gradient_checkpointing"):
            # As set by the libraries' own methods, which parts of a model (a decoder) do not have.
            setattr(module, "gradient_checkpointing", True)  # noqa: B010
            setattr(module, "_gradient_checkpointing_func", again)  # noqa: B010
