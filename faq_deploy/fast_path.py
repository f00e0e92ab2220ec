"""Whether a CPU's compiled passes are used: they must give the bits of torch's operations on this processor."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from faq_deploy.compiled import library
from faq_deploy.grids import Clip, FixedPoint
from faq_deploy.passes import Passes, Windows, fits

__all__ = ["fast_path", "first_difference", "why_not"]

_LANES: Final = {"AVX2": 8, "AVX512": 16}  # float32 numbers in a vector of torch's kernels
_SHAPE: Final = (2, 32, 8, 8)  # rows of whole vectors: torch treats NaN otherwise in what is left over


_Trial = tuple[str, Tensor, Tensor]


def fast_path(first: Tensor, *others: Tensor | None) -> Passes | None:
    """The compiled passes, if they can take these tensors and are right on this machine.

    The first call of a process loads them, and compiles them where nobody has yet: about three seconds.
    """
    return _choice().passes if fits(first, *others) else None


def why_not() -> str:
    """Why this machine's CPU has no compiled passes; empty if it has."""
    return _choice().trouble


@dataclass(frozen=True)
class _Choice:
    passes: Passes | None
    trouble: str = ""


@functools.cache
def _choice() -> _Choice:
    found = library()
    if found.functions is None:
        return _Choice(None, found.trouble)
    passes = Passes(found.functions, _LANES.get(torch.backends.cpu.get_cpu_capability(), 0))
    if name := first_difference(passes):
        return _Choice(None, f"torch's {name} rounds otherwise on this processor")
    if passes.lanes and _different(_gradient_through_batch_norm(passes)):
        passes = replace(passes, lanes=0)  # torch sums up otherwise: its own kernel does that
    return _Choice(passes)


def first_difference(passes: Passes) -> str:
    """What the passes compute otherwise than torch's operations do, but for `Passes.gradient`; empty if nothing.

    Tried with halves, signed zeros, NaN, infinities and numbers below the normal ones, in both layouts.
    """
    for layout, clip in itertools.product(
        (torch.contiguous_format, torch.channels_last),
        (Clip(2.0**-3, (0, 15), (0.0, 2.0)), Clip(2.0**-6, (-128, 127), (-2.0, 2.0))),
    ):
        x, other, given = (_numbers(seed).contiguous(memory_format=layout) for seed in range(3))
        trials = [
            _batch_norm(passes, x),
            *_affine(passes, x, None, given, clip),
            *_affine(passes, x, other, given, clip),
            *_rounding(passes, x, given, clip),
            *_weight(passes, x),
            *_statistics(passes, x),
            *_max_pool(passes, x, given),
        ]
        if name := _different(trials):
            return name
    return ""


def _different(trials: Iterable[_Trial]) -> str:
    for name, wanted, got in trials:
        if not torch.equal(wanted.contiguous().view(torch.int32), got.contiguous().view(torch.int32)):
            return name
    return ""


def _numbers(seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    values = torch.randn(_SHAPE, generator=source)
    halves = torch.randint(-20, 20, _SHAPE, generator=source) / 16
    values = torch.where(torch.rand(_SHAPE, generator=source) < 0.3, halves, values).flatten()
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 3e38, -3e38, 0.5, 1.5, 2.5, -0.5, 2.0, -2.0]
    values[7 * seed : 7 * seed + len(special)] = torch.tensor(special)
    return values.reshape(_SHAPE)


def _batch_norm(passes: Passes, x: Tensor) -> _Trial:
    channels = torch.linspace(0.1, 1.7, x.shape[1])
    weight, bias, mean, var = channels, 0.7 - channels, channels / 3, channels.flip(0).contiguous()
    wanted, got, unused = torch.empty_like(x), torch.empty_like(x), x.new_empty(0)
    torch.ops.aten.native_batch_norm.out(
        x, weight, bias, mean, var, False, 0.0, 0.0, out=wanted, save_mean=unused, save_invstd=unused.clone()
    )
    passes.affine(x, got, *passes.batch_norm_coefficients(weight, bias, mean, var))
    return "batch norm", wanted, got


def _affine(passes: Passes, x: Tensor, other: Tensor | None, given: Tensor, clip: Clip) -> list[_Trial]:
    a, b = torch.linspace(-1.3, 1.9, x.shape[1]), torch.linspace(0.3, -0.7, x.shape[1])
    shape, affine = (1, -1, 1, 1), torch.empty_like(x)
    passes.affine(x, affine, a, b)
    plain = torch.addcmul(b.reshape(shape), x, a.reshape(shape))
    rounded = plain.clone() if other is None else plain.add(other, alpha=1 / clip.step)
    before = plain if other is None else plain.add(other)
    clip.round_(rounded)
    passed = torch.ops.aten.hardtanh_backward(given, before, *clip.passing)
    got, got_passed = torch.empty_like(x), torch.empty_like(x)
    passes.quantize(x, other, got, a, b, clip)
    passes.pass_inside(x, other, given, got_passed, a, b, clip)
    name = "product and sum" if other is None else "addition"
    return [
        ("product and sum", plain, affine),
        (name, rounded, got),
        (f"gradient after the {name}", passed, got_passed),
    ]


def _rounding(passes: Passes, x: Tensor, given: Tensor, clip: Clip) -> list[_Trial]:
    wanted, got, alone, got_passed = (torch.empty_like(x) for _ in range(4))
    clip.into(x, wanted)
    passing = torch.empty_like(x, dtype=torch.uint8)
    passes.quantize_numbers(x, alone, None, clip)
    passes.quantize_numbers(x, got, passing, clip)
    passes.pass_on(given, passing, got_passed)
    passed = torch.ops.aten.hardtanh_backward(given, x, *clip.passing)
    return [("rounding", wanted, alone), ("rounding", wanted, got), ("gradient after the rounding", passed, got_passed)]


def _weight(passes: Passes, x: Tensor) -> list[_Trial]:
    grid, got = FixedPoint(8, signed=True, narrow=True), torch.empty_like(x)
    factors = torch.tensor([0.9, 1.1])
    inverse_steps, steps = torch.tensor([64.0, 32.0]), torch.tensor([1 / 64, 1 / 32])
    passes.quantize_rows(x, got, grid, inverse_steps, steps, factors)
    column = (-1, 1, 1, 1)
    wanted = (x * factors.reshape(column)).mul_(inverse_steps.reshape(column)).round_()
    wanted.clamp_(grid.min_code, grid.max_code).mul_(steps.reshape(column))
    rows = x.flatten(1)
    scaled = rows * inverse_steps.reshape(-1, 1)
    rest = scaled.round().clamp_(grid.min_code, grid.max_code).sub_(scaled)
    return [("product", wanted, got), ("subtraction", rest, passes.residuals(rows, inverse_steps, grid))]


def _statistics(passes: Passes, x: Tensor) -> list[_Trial]:
    finite = torch.where(x.isfinite(), x, 1.0).contiguous()
    unused = x.new_zeros(x.shape[1])
    wanted = torch.ops.aten.batch_norm_update_stats(finite, unused, unused, 0.0)
    return [("sum of a batch", a, b) for a, b in zip(wanted, passes.statistics(finite), strict=True)]


def _max_pool(passes: Passes, x: Tensor, given: Tensor) -> list[_Trial]:
    windows = Windows((3, 3), (2, 2), (1, 1), (4, 4))
    wanted, indices = torch.ops.aten.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])
    got, of_x = torch.empty_like(wanted), torch.empty_like(x)
    places = torch.empty_like(wanted, dtype=torch.uint8)
    passes.largest(x, got, places, windows)
    gradient = torch.empty_like(wanted).copy_(given[:, :, :4, :4])
    passes.largest_backward(gradient, places, of_x, windows)
    wanted_of_x = torch.ops.aten.max_pool2d_with_indices_backward(
        gradient, x, [3, 3], [2, 2], [1, 1], [1, 1], False, indices
    )
    return [("max pool", wanted, got), ("gradient of a max pool", wanted_of_x, of_x)]


def _gradient_through_batch_norm(passes: Passes) -> Iterator[_Trial]:
    """Rows and channels that are no whole vectors, and rows of less than one."""
    clip = Clip(2.0**-3, (0, 15), (0.0, 2.0))
    for shape, layout in itertools.product(
        [(3, 21, 5, 15), (2, 3, 1, 5)], [torch.contiguous_format, torch.channels_last]
    ):
        source = torch.Generator().manual_seed(1)
        x, other, given = (torch.randn(shape, generator=source).contiguous(memory_format=layout) for _ in range(3))
        a, b, weight, mean, scale = torch.randn(5, shape[1], generator=source).unbind()
        for added in (None, other):
            passed, of_other = torch.empty_like(x), torch.empty_like(x)
            passes.pass_inside(x, added, given, passed, a, b, clip)
            wanted = torch.ops.aten.native_batch_norm_backward(
                passed, x, weight, None, None, mean, scale, True, 0.0, [True] * 3
            )
            for kept in (None, of_other):
                found = passes.gradient(x, added, given, kept, a, b, clip, weight, mean, scale)
                for one, got in zip(wanted, found, strict=True):
                    yield "gradient of a batch norm", one, got
            yield "gradient of a batch norm", passed, of_other
