"""Dropouts stay visible while a model is traced in eval mode, so that fine-tuning has them again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MARKS", "marked_dropouts"]

_DROPOUTS: Final = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
# torchvision's and timm's modules that drop whole residual branches
_STOCHASTIC_DEPTH: Final = frozenset({"StochasticDepth", "DropPath"})


@torch.library.custom_op("faq_deploy::dropout", mutates_args=())
def _dropout(x: Tensor, p: float) -> Tensor:
    return x.clone()


@_dropout.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("faq_deploy::stochastic_depth", mutates_args=())
def _stochastic_depth(x: Tensor, p: float) -> Tensor:
    return x.clone()


@_stochastic_depth.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return torch.empty_like(x)


MARKS: Final = (torch.ops.faq_deploy.dropout.default, torch.ops.faq_deploy.stochastic_depth.default)


def _mark(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Stands for the functions of `torch.nn.functional`, so it has their signature."""
    marked: Tensor = _dropout(input, float(p)) if p > 0 else input
    return marked


def _branch(p: float, x: Tensor) -> Tensor:
    marked: Tensor = _stochastic_depth(x, p)
    return marked


@contextlib.contextmanager
def _patched(owner: object, name: str, value: object) -> Iterator[None]:
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def marked_dropouts(model: nn.Module) -> Iterator[None]:
    """Trace inside this block: dropouts become ops `faq_deploy::dropout` and `faq_deploy::stochastic_depth`.

    Args:
        model: its modules of stochastic depth are patched inside the block.
    """
    with contextlib.ExitStack() as stack:
        for name in _DROPOUTS:
            stack.enter_context(_patched(F, name, _mark))
        for module in model.modules():
            p = getattr(module, "p", getattr(module, "drop_prob", None))
            if type(module).__name__ in _STOCHASTIC_DEPTH and p:
                stack.enter_context(_patched(module, "forward", partial(_branch, float(p))))
        yield
