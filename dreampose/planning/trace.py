"""What a computation costs, found by running it on tensors that have no contents.

Every operation runs, forward and backward, on torch's fake tensors: shapes, types and lifetimes are
the real ones, numbers are not computed and memory is not taken. Knows nothing of models. This is
the one place that uses torch's fake tensors, which are not a public interface.
"""

import contextlib
import weakref
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own customary name
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a computation costs.

    held_bytes: of the tensors that were there when it began (weights). peak_bytes: most that lived
    at once, those included. flops: a multiplication and an addition count as two.
    """

    held_bytes: int
    peak_bytes: int
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
        ledger.peak_bytes = held = ledger.live_bytes
        counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
        with _NormsInFloat32(), counter:
            run(subject)
    return Trace(
        held_bytes=held, peak_bytes=ledger.peak_bytes, flops=int(counter.get_total_flops())
    )


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, from their making to their release."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.take(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

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
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


_aten = torch.ops.aten
_CPU_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Attention on the CPU never makes the matrix of all pairs, as on GPUs; torch does not count it."""


class _NormsInFloat32(TorchFunctionMode):
    """Mixed precision of GPUs computes norms in float32; that of CPUs, traced here, does not."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (F.group_norm, F.layer_norm) and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def mixed_precision(precision: str) -> Generator[None, None, None]:
    """Traces what is in the block in 'bf16' as accelerate runs it, or as it is in 'fp32'."""
    assert precision in ("fp32", "bf16"), precision
    if precision == "fp32":
        yield
        return
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
