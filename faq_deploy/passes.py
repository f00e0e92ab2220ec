"""What a training does on a CPU between two convolutions, in fewer passes over memory: batch norm, addition, quantizer
and max pool, forward and backward.

Each pass gives to the last bit what its caller would get by torch's operations; `fast_path` says where it may be used.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from faq_deploy.grids import Clip, FixedPoint

__all__ = ["Passes", "Windows", "fits"]

_FLOAT, _LONG, _INT, _POINTER = ctypes.c_float, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p

_LAYOUTS: Final = {4: torch.channels_last, 5: torch.channels_last_3d}  # besides the contiguous one


def fits(first: Tensor, *others: Tensor | None) -> bool:
    """Whether the passes can take these tensors: float32 on a CPU, of one shape and one dense layout."""
    if type(first) not in (Tensor, nn.Parameter) or first.device.type != "cpu" or first.dtype != torch.float32:
        return False
    if not (first.is_contiguous() or _is_channels_last(first)) or first.numel() == 0:
        return False
    shape, stride = first.shape, first.stride()
    return all(
        other is None
        or (
            other.dtype == torch.float32
            and other.device.type == "cpu"
            and other.shape == shape
            and other.stride() == stride
        )
        for other in others
    )


class _Axis(ctypes.Structure):
    _fields_ = [(name, _LONG) for name in ("size", "count", "kernel", "stride", "padding")]


class _Gradient(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("x", "other", "given", "passed", "out", "a", "b", "weight", "mean", "scale")),
        *((name, _POINTER) for name in ("of_weight", "of_bias")),
        *((name, _LONG) for name in ("images", "channels", "length")),
        *((name, _FLOAT) for name in ("low", "high")),
    ]


@dataclass(frozen=True)
class Windows:
    """Windows over the rows and columns of images.

    Attributes:
        kernel, stride, padding: of rows and of columns; at most 256 places a window.
        count: how many windows there are down and across.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    count: tuple[int, int]

    def over(self, x: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64, _Axis, _Axis]:
        """Images, channels that come last, rows and columns of (N, C, H, W)."""
        images, channels, *sizes = x.shape
        if x.is_contiguous():
            images, channels = images * channels, 1
        axes = zip(sizes, self.count, self.kernel, self.stride, self.padding, strict=True)
        y, x_axis = (_Axis(*numbers) for numbers in axes)
        return _LONG(images), _LONG(channels), y, x_axis


@dataclass(frozen=True)
class Passes:
    """The functions of passes.c on tensors that fit.

    Args:
        functions: of the compiled library.
        lanes: numbers in a vector of torch's kernels, 8 or 16, by which they sum up the gradients of batch norms; 0 if
            that is not known.
    """

    functions: ctypes.CDLL
    lanes: int = 0

    def batch_norm_coefficients(
        self, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, step: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """a and b of a·x + b = ((x - mean)/√var·weight + bias)/step, as torch's kernel for a batch norm computes them.

        Args:
            weight, bias, mean, var: float32, (channels,), contiguous.
            step: a power of two.
        """
        a, b = torch.empty_like(weight), torch.empty_like(bias)
        count = _LONG(len(weight))
        self.functions.coefficients(*map(_at, (weight, bias, mean, var, a, b)), _FLOAT(1 / step), count)
        return a, b

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (divided by n) of each channel.

        Args:
            x: (N, C, ...), contiguous.
        """
        images, channels = x.shape[:2]
        mean, var = x.new_empty(channels), x.new_empty(channels)
        sizes = images, channels, x.numel() // (images * channels)
        self.functions.statistics(*map(_at, (x, mean, var)), *map(_LONG, sizes), _threads())
        return mean, var

    def affine(self, x: Tensor, out: Tensor, a: Tensor, b: Tensor) -> None:
        """a·x + b into `out`.

        Args:
            x, out: (N, C, ...).
            a, b: float32, (channels,), contiguous.
        """
        self.functions.affine(*map(_at, (x, out, a, b)), *_rows_of(x), _threads())

    def quantize(self, x: Tensor, other: Tensor | None, out: Tensor, a: Tensor, b: Tensor, clip: Clip) -> None:
        """`Clip.round_` of a·x + b + other/step into `out`.

        Args:
            x, other, out: (N, C, ...).
            a, b: float32, (channels,), contiguous, divided by the clip's step.
            clip: the quantizer.
        """
        self.functions.quantize(*map(_at, (x, other, out, a, b)), *_rows_of(x), *_numbers_of(clip), _threads())

    def pass_inside(
        self, x: Tensor, other: Tensor | None, given: Tensor, out: Tensor, a: Tensor, b: Tensor, clip: Clip
    ) -> None:
        """Into `out` the gradient `given` where a·x + b + other lies inside the clip's range, else 0.

        Args:
            x, other, given, out: (N, C, ...).
            a, b: float32, (channels,), contiguous.
            clip: the quantizer.
        """
        self.functions.pass_inside(
            *map(_at, (x, other, given, out, a, b)), *_rows_of(x), *map(_FLOAT, clip.passing), _threads()
        )

    def sums_as_torch(self, x: Tensor) -> bool:
        """Whether `gradient` is to be had of this tensor."""
        return self.lanes > 0 and len(x) * x.shape[1] < x.numel()

    def gradient(
        self,
        x: Tensor,
        other: Tensor | None,
        given: Tensor,
        passed: Tensor | None,
        a: Tensor,
        b: Tensor,
        clip: Clip,
        weight: Tensor,
        mean: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`pass_inside`, and its gradient through (x - mean)·scale·weight + bias with a batch's own mean and scale.

        Args:
            x, other, given: (N, C, ...), of which x `sums_as_torch`.
            passed: where to put what `pass_inside` would; None where nobody asks for it.
            a, b: float32, (channels,), contiguous; a·x + b is what the quantizer reads, but for `other`.
            clip: the quantizer.
            weight, mean, scale: float32, (channels,), contiguous.

        Returns:
            The gradients of x, weight and bias, as `native_batch_norm_backward` gives them.
        """
        out, of_weight, of_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        tensors = (x, other, given, passed, out, a, b, weight, mean, scale, of_weight, of_bias)
        images, channels = x.shape[:2]
        sizes = images, channels, x.numel() // (images * channels)
        described = ctypes.byref(_Gradient(*map(_at, tensors), *sizes, *clip.passing))
        if x.is_contiguous():
            self.functions.gradient_first(described, _INT(self.lanes), _threads())
        else:
            sums = x.new_zeros(2, torch.get_num_threads(), channels)
            self.functions.gradient_last(described, _at(sums), _INT(self.lanes), _threads())
        return out, of_weight, of_bias

    def quantize_numbers(self, x: Tensor, out: Tensor, passing: Tensor | None, clip: Clip) -> None:
        """`Clip.into` of a tensor of any shape.

        Args:
            x, out: of one layout.
            passing: uint8, as they; 1 where the gradient passes, else 0. None if nobody asks for it.
            clip: the quantizer.
        """
        numbers = *_numbers_of(clip), *map(_FLOAT, clip.passing)
        self.functions.quantize_numbers(*map(_at, (x, out, passing)), _LONG(x.numel()), *numbers, _threads())

    def pass_on(self, given: Tensor, passing: Tensor, out: Tensor) -> None:
        """Into `out` the gradient `given` where it passes, else 0; all of one layout."""
        self.functions.pass_on(*map(_at, (given, passing, out)), _LONG(out.numel()), _threads())

    def quantize_rows(
        self,
        weight: Tensor,
        out: Tensor,
        grid: FixedPoint,
        inverse_steps: Tensor,
        steps: Tensor,
        factors: Tensor | None = None,
    ) -> None:
        """A weight, times `factors` where there are any, on the grids of its output channels.

        Args:
            weight, out: output channel first.
            grid: the codes.
            inverse_steps, steps, factors: float32, (channels,), contiguous.
        """
        rows = len(steps)
        self.functions.quantize_rows(
            *map(_at, (weight, factors, inverse_steps, steps, out)),
            *map(_LONG, (rows, weight.numel() // rows)),
            *map(_FLOAT, (grid.min_code, grid.max_code)),
            _threads(),
        )

    def residuals(self, weight: Tensor, inverse_steps: Tensor, grid: FixedPoint) -> Tensor:
        """What rounding and clipping adds to a weight, in steps.

        Args:
            weight: float32, (channels, products), contiguous.
            inverse_steps: float32, (channels,) in all, contiguous.
            grid: the codes.
        """
        out = torch.empty_like(weight)
        self.functions.residuals(
            *map(_at, (weight, inverse_steps, out)),
            *map(_LONG, weight.shape),
            *map(_FLOAT, (grid.min_code, grid.max_code)),
            _threads(),
        )
        return out

    def largest(self, x: Tensor, out: Tensor, places: Tensor | None, windows: Windows) -> None:
        """The largest number of each window into `out`; into `places` where in its window it lies.

        Args:
            x, out: (N, C, H, W), of one layout.
            places: uint8, as `out`; None if nobody asks for it.
            windows: that there are.
        """
        images, channels, y, x_axis = windows.over(x)
        at = map(_at, (x, out, places))
        self.functions.largest(*at, images, channels, ctypes.byref(y), ctypes.byref(x_axis), _threads())

    def largest_backward(self, given: Tensor, places: Tensor, out: Tensor, windows: Windows) -> None:
        """The gradient of `largest`.

        Args:
            given: of the windows, in the layout of `out`.
            places: as `largest` found them.
            out: of x.
            windows: that there are.
        """
        images, channels, y, x_axis = windows.over(out)
        at = map(_at, (given, places, out))
        self.functions.largest_backward(*at, images, channels, ctypes.byref(y), ctypes.byref(x_axis), _threads())


def _rows_of(x: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]:
    """Rows, their length, channels, and whether these come last in memory."""
    channels, count = x.shape[1], x.numel()
    if x.dim() == 2 or not x.is_contiguous():
        return _LONG(count // channels), _LONG(channels), _LONG(channels), _INT(1)
    rows = len(x) * channels
    return _LONG(rows), _LONG(count // rows), _LONG(channels), _INT(0)


def _numbers_of(clip: Clip) -> tuple[ctypes.c_float, ...]:
    return tuple(map(_FLOAT, (1 / clip.step, *clip.codes, clip.step)))


def _is_channels_last(x: Tensor) -> bool:
    layout = _LAYOUTS.get(x.dim())
    return layout is not None and x.is_contiguous(memory_format=layout)


def _at(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _threads() -> ctypes.c_int:
    return _INT(torch.get_num_threads())
