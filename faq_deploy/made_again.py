"""Tensors that autograd does not keep for a gradient: they are made again, from what is kept anyway."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["made_again"]


def made_again(tensor: Tensor | None) -> contextlib.AbstractContextManager[None]:
    """While this holds, operations that take `tensor` keep no copy of it for their gradients.

    A float net keeps its weights' own memory; ours would keep every quantized weight beside it from the forward pass
    to the gradient, and the sum of a residual keeps nothing where ours needs its terms. The function that made the
    tensor remembers what it was made of, and its `again` repeats it.

    Args:
        tensor: what an operation is given. One whose maker has no `again` is kept as usual, and so are all where
            somebody else's hooks say how, such as those of gradient checkpointing, which give a tensor once only.
    """
    maker = None if tensor is None else tensor.grad_fn
    if tensor is None or not hasattr(maker, "again") or _somebody_has_hooks():
        return contextlib.nullcontext()
    address, count = tensor.data_ptr(), tensor.numel()

    def pack(saved: Tensor) -> object:
        if saved.data_ptr() == address and saved.numel() == count:
            return _View(maker, saved.shape, saved.stride())
        return saved

    # the hooks outlive this call, and must not hold the tensor itself
    return torch.autograd.graph.saved_tensors_hooks(pack, _unpacked)


def _somebody_has_hooks() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


@dataclass(frozen=True)
class _View:
    """All numbers of a tensor that is made again; a linear layer keeps its weight transposed."""

    maker: Any
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _unpacked(packed: object) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    assert isinstance(packed, _View)
    made: Tensor = packed.maker.again(packed.maker)
    return made.as_strided(packed.shape, packed.stride)
