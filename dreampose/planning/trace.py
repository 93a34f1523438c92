"""What a computation costs, found by running it on tensors that have no contents.

Every operation runs, forward and backward, on torch's fake tensors: shapes, types and lifetimes are
the real ones, numbers are not computed and memory is not taken. Knows nothing of models. This is
the one place that uses torch's fake tensors, which are not a public interface.

What operations give back and keep is counted exactly: it equals what torch's CPU allocator hands
out in real runs, to a percent (tests/planning/test_trace.py). What a kernel takes for itself and
frees before it ends is not a tensor, depends on the device, and is bounded instead. On the CPU
nearly all of it is convolutions, which copy what they read and write into another memory layout;
cuDNN's workspaces on GPUs do the like. Kernels that pad channels, to 16 on the CPU, take more than
the bound where there are fewer channels than that, as in tests' smallest models.
"""

import contextlib
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own customary name
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a computation costs.

    held_bytes: of the tensors that were there when it began (weights). peak_bytes: most that lived
    at once, those included. scratch_bytes: what that rises by where every convolution copies all
    that it reads and writes. flops: a multiplication and an addition count as two.
    """

    held_bytes: int
    peak_bytes: int
    scratch_bytes: int
    flops: int


def measure(build: Callable[[], Any], run: Callable[[Any], Any]) -> Trace:
    """The cost of `run(build())`; what `build` makes counts as held, how it is made does not.

    Args:
        build: makes everything that lives before, such as a model.
        run: what is measured. It may not look into a tensor (`item`, `numpy`).
    """
    ledger = Ledger()
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        subject = build()
        ledger.begin()
        held = ledger.live_bytes
        with _norms_in_float32():
            run(subject)
    peak = ledger.peak_bytes
    return Trace(
        held_bytes=held,
        peak_bytes=peak,
        scratch_bytes=max(0, ledger.copying_bytes - peak),
        flops=ledger.flops,
    )


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, from their making to their release.

    `copying_bytes`: most at once in a convolution that copies what it reads and writes. `flops`:
    by torch's formulas. Its own counter is not used, since it follows modules by references in
    circles, which keep recomputed activations alive until the garbage collector comes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.copying_bytes = 0
        self.flops = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = _FORMULAS.get(func.overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **kwargs, out_val=result))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.take(made)
        if func in _CONVOLUTIONS:
            copied = [*made, *(value for value in args if isinstance(value, Tensor))]
            copies = sum(value.nbytes for value in copied)
            self.copying_bytes = max(self.copying_bytes, self.live_bytes + copies)
        return result

    def begin(self) -> None:
        """Counts operations, and what lives at most, from here on."""
        self.peak_bytes = self.copying_bytes = self.live_bytes
        self.flops = 0

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Counts the memory of tensors, each memory once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage in self._known:
                continue
            size = storage.nbytes()
            self._known[storage] = size
            weakref.finalize(storage, self._release, size).atexit = False
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _release(self, size: int) -> None:
        self.live_bytes -= size


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.convolution.default, _aten.convolution_backward.default)
_FORMULAS: Mapping[Any, Callable[..., Any]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Attention on the CPU never makes the matrix of all pairs, as on GPUs; torch does not count it."""


@contextlib.contextmanager
def _norms_in_float32() -> Generator[None, None, None]:
    """Mixed precision of GPUs computes norms in float32; that of CPUs, traced here, does not.

    The functions themselves are replaced: torch's modes are off where activations are computed
    again in the middle of going backward.
    """

    def widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def norm(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            wide = values.float() if torch.is_autocast_enabled("cpu") else values
            return function(wide, *args, **kwargs)

        return norm

    kept = {name: getattr(F, name) for name in ("group_norm", "layer_norm")}
    for name, function in kept.items():
        setattr(F, name, widened(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(F, name, function)


@contextlib.contextmanager
def mixed_precision(precision: str) -> Generator[None, None, None]:
    """Traces what is in the block in 'bf16' as accelerate runs it, or as it is in 'fp32'."""
    assert precision in ("fp32", "bf16"), precision
    if precision == "fp32":
        yield
        return
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
