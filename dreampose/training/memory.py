"""Training in less memory: recomputed activations, 8-bit Adam. Knows nothing of losses or data."""

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
"""Values of 8-bit moments that share one scale (bitsandbytes)."""
_SMALLEST = 4096
"""Tensors of fewer values keep their moments in 32 bits (bitsandbytes)."""


def check(savings: Savings) -> None:
    """Checks that training can save memory in these ways.

    Raises:
        InputError: there is no such optimizer, or its package is not installed.
    """
    if savings.optimizer not in OPTIMIZERS:
        raise InputError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {savings.optimizer!r}"
        )
    if savings.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "the package of the extra 'low-memory' must be installed for optimizer 'adamw8bit' "
            "(pip install -e '.[low-memory]'), got no bitsandbytes"
        )


def mixed_precision(precision: str) -> str:
    """What accelerate calls a precision: 'auto' is bfloat16 where there is a GPU that knows it.

    Weights, gradients and moments stay float32 in any case.

    Raises:
        InputError: there is no such precision.
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
    """AdamW with a stage's numbers, its moments in 32 or in 8 bits.

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
    # Here and not above: the package is optional, and looks for GPUs when it is imported.
    return importlib.import_module("bitsandbytes.optim").AdamW8bit(parameters, **options)


def moment_bytes(num_values: int, savings: Savings) -> int:
    """Bytes of Adam's two moments of a tensor with so many values."""
    if savings.optimizer == "adamw" or num_values < _SMALLEST:
        return 8 * num_values
    scales = -(-num_values // _BLOCK)
    # Two tables of 256 values tell what the 8 bits stand for.
    return 2 * (num_values + 4 * scales + 4 * 256)


def prepare(stage: nn.Module, savings: Savings) -> None:
    """Makes a stage ready to be trained so, in place, before its optimizer is made."""
    if savings.gradient_checkpointing:
        recompute_activations(stage)
    if savings.optimizer == "adamw8bit":
        # It walks raw memory, and brings weights, but not their moments, into this order itself.
        stage.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def recompute_activations(stage: nn.Module) -> None:
    """Makes the blocks of diffusers' and transformers' models keep their inputs alone.

    What is between is computed again when the gradient needs it: about a third more work.
    """
    again = partial(checkpoint, use_reentrant=False)
    for module in stage.modules():
        if hasattr(module, "gradient_checkpointing"):
            # What the libraries' own methods set, which parts of a model (a decoder) do not have.
            setattr(module, "gradient_checkpointing", True)  # noqa: B010
            setattr(module, "_gradient_checkpointing_func", again)  # noqa: B010
