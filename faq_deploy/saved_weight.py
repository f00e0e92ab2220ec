"""A quantized weight that autograd does not keep for the gradient: it is quantized again, from the float weight."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

__all__ = ["quantized_again"]


def quantized_again(weight: Tensor) -> contextlib.AbstractContextManager[None]:
    """While this holds, operations that take `weight` keep no copy of it for their gradients.

    A float net keeps its weights' own memory; ours would keep every quantized weight beside it from the forward pass
    to the gradient. The function that made it remembers what it was made of, and its method `again` repeats it.

    Args:
        weight: what the layer's operation is given. One without such a method is kept as usual.
    """
    maker = weight.grad_fn
    if not hasattr(maker, "again"):
        return contextlib.nullcontext()
    address, shape = weight.data_ptr(), weight.shape

    def pack(saved: Tensor) -> object:
        return maker if saved.data_ptr() == address and saved.shape == shape else saved

    # the hooks outlive this call, and must not hold the weight itself
    return torch.autograd.graph.saved_tensors_hooks(pack, _unpacked)


def _unpacked(packed: object) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    made: Tensor = packed.again(packed)  # type: ignore[attr-defined]
    return made
