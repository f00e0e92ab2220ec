"""Tensors that autograd does not keep for a gradient: they are made again, from what is kept anyway."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

__all__ = ["made_again"]


def made_again(tensor: Tensor | None) -> contextlib.AbstractContextManager[None]:
    """While this holds, operations that take `tensor` keep no copy of it for their gradients.

    A float net keeps its weights' own memory; ours would keep every quantized weight beside it from the forward pass
    to the gradient, and the sum of a residual keeps nothing where ours needs its terms. The function that made the
    tensor remembers what it was made of, and its `again` repeats it.

    Args:
        tensor: what an operation is given. One whose maker has no `again` is kept as usual.
    """
    maker = None if tensor is None else tensor.grad_fn
    if tensor is None or not hasattr(maker, "again"):
        return contextlib.nullcontext()
    address, shape = tensor.data_ptr(), tensor.shape

    def pack(saved: Tensor) -> object:
        return maker if saved.data_ptr() == address and saved.shape == shape else saved

    # the hooks outlive this call, and must not hold the tensor itself
    return torch.autograd.graph.saved_tensors_hooks(pack, _unpacked)


def _unpacked(packed: object) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    made: Tensor = packed.again(packed)  # type: ignore[attr-defined]
    return made
