"""Max pooling that keeps a byte of each window for its gradient, not its input and an index of eight bytes."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from faq_deploy.fast_path import fast_path
from faq_deploy.passes import Passes, Windows

__all__ = ["max_pool2d"]

_PLACES: Final = 256  # of a window that a byte can tell


def max_pool2d(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    """`torch.nn.functional.max_pool2d` and its gradient, to the last bit: a tie goes to the first, NaN to the last.

    Args:
        x: (N, C, H, W).
        kernel, stride, padding, dilation: of rows and of columns.
        ceil_mode: keep windows that hang over the end.
    """
    passes = fast_path(x) if x.dim() == 4 and dilation == [1, 1] and kernel[0] * kernel[1] <= _PLACES else None
    if passes is None:
        return F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    # torch counts the windows, and refuses what can't be
    shape = F.max_pool2d(x.detach().to("meta"), kernel, stride, padding, dilation, ceil_mode).shape
    windows = Windows(_pair(kernel), _pair(stride), _pair(padding), _pair(shape[2:]))
    pooled: Tensor = _MaxPool.apply(x, passes, windows)
    return pooled


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, passes: Passes, windows: Windows) -> Tensor:
        layout = _layout(x)
        pooled = torch.empty((*x.shape[:2], *windows.count), dtype=x.dtype, memory_format=layout)
        if not ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            passes.largest(x, pooled, None, windows)
            return pooled
        places = torch.empty_like(pooled, dtype=torch.uint8)
        passes.largest(x, pooled, places, windows)
        ctx.save_for_backward(places)
        ctx.passes, ctx.windows, ctx.shape, ctx.layout = passes, windows, x.shape, layout  # type: ignore[attr-defined]
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors  # type: ignore[attr-defined]
        layout = ctx.layout  # type: ignore[attr-defined]
        of_x = torch.empty(ctx.shape, dtype=gradient.dtype, memory_format=layout)  # type: ignore[attr-defined]
        ctx.passes.largest_backward(gradient.contiguous(memory_format=layout), places, of_x, ctx.windows)  # type: ignore[attr-defined]
        return of_x, None, None


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _pair(numbers: list[int] | torch.Size) -> tuple[int, int]:
    first, second = numbers
    return first, second
