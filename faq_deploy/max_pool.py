"""Max pooling that keeps a byte of each window for its gradient, not its input and an index of eight bytes."""

from __future__ import annotations

import math
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
    windows = _windows(x, kernel, stride, padding, ceil_mode) if x.dim() == 4 and dilation == [1, 1] else None
    passes = fast_path(x) if windows else None
    if passes is None:
        return F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    pooled: Tensor = _MaxPool.apply(x, passes, windows)
    return pooled


def _windows(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool) -> Windows | None:
    """None where a byte can't tell a window's places, and where torch refuses, which it then says itself."""
    axes = list(zip(x.shape[2:], kernel, stride, padding, strict=True))
    if math.prod(kernel) > _PLACES or not all(k > 0 and s > 0 and 0 <= 2 * p <= k for _, k, s, p in axes):
        return None
    down, across = (_count(*axis, ceil_mode) for axis in axes)
    if min(down, across) < 1:
        return None
    return Windows(_pair(kernel), _pair(stride), _pair(padding), (down, across))


def _count(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """How many windows torch takes along an axis: aten/src/ATen/native/Pool.h."""
    count = (size + 2 * padding - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1  # it would begin behind the image
    return count


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, passes: Passes, windows: Windows) -> Tensor:
        layout = _layout(x)
        pooled = torch.empty((*x.shape[:2], *windows.count), dtype=x.dtype, memory_format=layout)
        places = torch.empty_like(pooled, dtype=torch.uint8) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        passes.largest(x, pooled, places, windows)
        if places is not None:
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


def _pair(numbers: list[int]) -> tuple[int, int]:
    first, second = numbers
    return first, second
