"""Batch norm, addition and quantizer in one pass over memory, with the bits that one after the other would give.

A quantizer costs nothing where its tensor is in the cache already: a float net's batch norm, addition and ReLU read and
write memory three times, this once. What it saves for the gradient is what the batch norm saves; the values before the
quantizer are computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from faq_deploy.batch_statistics import normalization_gradient
from faq_deploy.fast_path import fast_path
from faq_deploy.fixed_point import PIECE, Clip
from faq_deploy.passes import Passes

__all__ = ["Normalization", "Through", "normalized"]


# the gradients of x, weight and bias of (x - mean)·scale·weight + bias, given weight, mean and scale
Through = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Normalization(Protocol):
    """A batch norm with the statistics of a batch: per channel one multiplication and one addition.

    Attributes:
        synchronized: whether these are of all processes' images.
    """

    @property
    def synchronized(self) -> bool: ...

    def into(self, x: Tensor, out: Tensor) -> None:
        """Normalize x, (N, C, ...) float32, or some of its images or rows, into `out`."""
        ...

    def coefficients(self, passes: Passes, step: float = 1.0) -> tuple[Tensor, Tensor]:
        """a and b of a·x + b, contiguous, the numbers that `into` computes with; those of `in_steps` with a step."""
        ...

    def in_steps(self, step: float) -> Normalization:
        """With results divided by `step`, a power of two: the same bits but for the exponent."""
        ...

    def gradient(self, through: Through) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, weight and bias, through the statistics too."""
        ...


class _Normalized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        other: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: Normalization,
        clip: Clip | None,
    ) -> Tensor:
        ctx.norm, ctx.clip = norm, clip  # type: ignore[attr-defined]
        ctx.save_for_backward(*(x,) if other is None else (x, other))
        ctx.again = _again  # type: ignore[attr-defined]
        return _values(x, other, norm, clip)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, None, None]:
        x, *others = ctx.saved_tensors  # type: ignore[attr-defined]
        norm: Normalization = ctx.norm  # type: ignore[attr-defined]
        clip: Clip | None = ctx.clip  # type: ignore[attr-defined]
        if clip is not None and (passes := _gradient_passes(gradient, x, others, norm)):
            of_other = torch.empty_like(x) if others else None
            coefficients = norm.coefficients(passes)
            other = others[0] if others else None

            def through(weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                return passes.gradient(x, other, gradient, of_other, *coefficients, clip, weight, mean, scale)

            of_x, of_weight, of_bias = norm.gradient(through)
            return of_x, of_other, of_weight, of_bias, None, None
        passed = gradient if clip is None else _pass_inside(gradient, x, others, norm, clip)
        of_x, of_weight, of_bias = norm.gradient(
            lambda *numbers: normalization_gradient(passed, x, *numbers, synchronized=norm.synchronized)
        )
        return of_x, passed if others else None, of_weight, of_bias, None, None


def _gradient_passes(gradient: Tensor, x: Tensor, others: Sequence[Tensor], norm: Normalization) -> Passes | None:
    """The compiled passes, if they have the whole gradient in one of these tensors."""
    passes = None if norm.synchronized else fast_path(x, gradient, *others)
    return passes if passes is not None and passes.sums_as_torch(x) else None


def _again(ctx: torch.autograd.function.FunctionCtx) -> Tensor:
    """For `made_again`."""
    x, *others = ctx.saved_tensors  # type: ignore[attr-defined]
    return _values(x, others[0] if others else None, ctx.norm, ctx.clip)  # type: ignore[attr-defined]


def _values(x: Tensor, other: Tensor | None, norm: Normalization, clip: Clip | None) -> Tensor:
    values = torch.empty_like(x)
    passes = fast_path(x, values, other)
    if clip is None:
        if passes:
            passes.affine(x, values, *norm.coefficients(passes))
        else:
            norm.into(x, values)
        return values
    if passes:
        passes.quantize(x, other, values, *norm.coefficients(passes, clip.step), clip)
        return values
    norm = norm.in_steps(clip.step)
    for part, out, *added in _pieces(x, values, other):
        norm.into(part, out)
        clip.round_(out.add_(*added, alpha=1 / clip.step) if added else out)
    return values


def _pass_inside(gradient: Tensor, x: Tensor, others: Sequence[Tensor], norm: Normalization, clip: Clip) -> Tensor:
    passed = torch.empty_like(x)
    if passes := fast_path(x, passed, gradient, *others):
        passes.pass_inside(x, others[0] if others else None, gradient, passed, *norm.coefficients(passes), clip)
        return passed
    for part, out, given, *added in _pieces(x, passed, gradient, *others):
        norm.into(part, out)
        before = out.add_(*added) if added else out
        torch.ops.aten.hardtanh_backward.grad_input(given, before, *clip.passing, grad_input=out)
    return passed


def normalized(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Normalization,
    clip: Clip | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """Batch norm by the statistics of a batch, then plus `other`, then `quantize_activation`.

    Args:
        x: float32, (N, C, ...).
        weight, bias: (C,); where their gradients go.
        norm: of this batch.
        clip: the quantizer; None for none.
        other: of the same shape; None for nothing, as without a quantizer.
    """
    values: Tensor = _Normalized.apply(x, other, weight, bias, norm, clip)
    return values


def _pieces(*tensors: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
    """The same images of several tensors, or rows of an image, so few that they fit a cache; None is left out."""
    given = tuple(t for t in tensors if t is not None)
    first = given[0]
    if first.device.type != "cpu" or first.dim() != 4 or first.numel() <= PIECE:
        yield given
        return
    images, _, rows, _ = first.shape
    size = first.numel() // images
    # rows of an image lie together where its channels come last
    if size > PIECE and rows > 1 and first.is_contiguous(memory_format=torch.channels_last):
        most = max(1, PIECE * rows // size)
        for image in range(images):
            for row in range(0, rows, most):
                yield tuple(t[image : image + 1, :, row : row + most] for t in given)
        return
    most = max(1, PIECE // size)
    for image in range(0, images, most):
        yield tuple(t[image : image + most] for t in given)
