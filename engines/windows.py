"""Sliding windows over integer images: convolution, maximum and sum, exact to the last bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from engines.fixed_tensor import MAX_BITS, IntArray, Refused
from engines.qdq_graph import Attribute

__all__ = ["Pool", "convolve", "pool_of", "pooled_max", "pooled_sum", "product"]

Number = TypeVar("Number", bound=np.generic)

_MINUS_INFINITY: Final = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Pool:
    """Where the windows of one operator lie. All pairs are (height, width).

    Args:
        kernel: elements of a window.
        stride: step from window to window.
        pads: rows and columns added at the top, left, bottom and right.
        dilation: step from element to element.
        output: number of windows.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    output: tuple[int, int]


def pool_of(attributes: Mapping[str, Attribute], kernel: Sequence[int], size: Sequence[int]) -> Pool:
    """The windows that an ONNX Conv or pool means.

    Args:
        attributes: of the node: strides, pads, dilations, ceil_mode.
        kernel: height and width of a window.
        size: height and width of the image.

    Returns:
        The windows, with their number.

    Raises:
        Refused: automatic padding, windows that are not two-dimensional, or an image smaller than one window.
    """
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise Refused("automatic padding is not supported")
    if len(kernel) != 2:
        raise Refused("only two-dimensional windows are supported")
    stride, dilation = _numbers(attributes, "strides", (1, 1)), _numbers(attributes, "dilations", (1, 1))
    pads = _numbers(attributes, "pads", (0, 0, 0, 0))
    output = []
    for i in range(2):
        room = size[i] + pads[i] + pads[i + 2] - (dilation[i] * (kernel[i] - 1) + 1)
        if room < 0:
            raise Refused(f"a window does not fit into its input of {size[0]} x {size[1]}")
        count = room // stride[i] + 1
        # ceil_mode: one more, unless it would begin in the padding behind the image (as torch does)
        if attributes.get("ceil_mode", 0) and room % stride[i] and count * stride[i] < size[i] + pads[i]:
            count += 1
        output.append(count)
    return Pool(
        (kernel[0], kernel[1]),
        (stride[0], stride[1]),
        (pads[0], pads[1], pads[2], pads[3]),
        (dilation[0], dilation[1]),
        (output[0], output[1]),
    )


def convolve(x: IntArray, weight: IntArray, pool: Pool, groups: int) -> IntArray:
    """Sums of products of codes, as ONNX Conv without a bias.

    Args:
        x: codes, shape (N, C, H, W).
        weight: codes, shape (O, C / groups, kernel height, kernel width).
        pool: the windows.
        groups: of channels that do not mix.

    Returns:
        int64, shape (N, O, output height, output width).

    Raises:
        Refused: the sums may not fit int64.
    """
    dtype = _exact_dtype(x, weight.reshape(weight.shape[0], -1))
    images, outputs = x.shape[0], weight.shape[0]
    kernels = weight.reshape(groups, outputs // groups, -1).astype(dtype)
    sums = np.empty((images, outputs, *pool.output), np.int64)
    columns = np.empty((x.shape[1], *pool.kernel, *pool.output), dtype)
    for image in range(images):  # one at a time: the columns of a whole batch would need gigabytes
        padded = _padded(x[image], pool, 0).astype(dtype)
        for row, column, part in _elements(padded, pool):
            columns[:, row, column] = part
        result = kernels @ columns.reshape(groups, kernels.shape[2], -1)
        sums[image] = result.reshape(outputs, *pool.output)
    return sums


def product(x: IntArray, weight: IntArray) -> IntArray:
    """x @ weight.T of codes.

    Args:
        x: codes, shape (N, K).
        weight: codes, shape (O, K).

    Returns:
        int64, shape (N, O).

    Raises:
        Refused: the sums may not fit int64.
    """
    dtype = _exact_dtype(x, weight)
    return (x.astype(dtype) @ weight.astype(dtype).T).astype(np.int64)


def pooled_max(x: IntArray, pool: Pool) -> IntArray:
    """Largest code of each window; the padding is minus infinity.

    Args:
        x: codes, shape (N, C, H, W).
        pool: the windows.

    Returns:
        int64, shape (N, C, output height, output width).

    Raises:
        Refused: a window lies wholly in the padding.
    """
    largest = np.full((*x.shape[:2], *pool.output), _MINUS_INFINITY)
    for _, _, part in _elements(_padded(x, pool, _MINUS_INFINITY), pool):
        np.maximum(largest, part, out=largest)
    if largest.size and largest.min() == _MINUS_INFINITY:
        raise Refused("a window lies wholly in the padding")
    return largest


def pooled_sum(x: IntArray, pool: Pool, include_pad: bool) -> tuple[IntArray, IntArray]:
    """Sum of each window, and the number of elements an average divides it by.

    Args:
        x: codes, shape (N, C, H, W).
        pool: the windows.
        include_pad: count the padding, but never what ceil_mode adds beyond it (as torch does).

    Returns:
        Sums, shape (N, C, output height, output width); counts, shape (1, 1, output height, output width).

    Raises:
        Refused: the sums may not fit, or a window lies wholly in the padding.
    """
    if x.size and float(np.abs(x).max()) * math.prod(pool.kernel) > 2.0**MAX_BITS:
        raise Refused(f"its sums need more than {MAX_BITS} bits")
    inside = np.ones((1, 1, *x.shape[2:]), np.int64)
    counted = _padded(inside, Pool(pool.kernel, pool.stride, pool.pads, pool.dilation, (0, 0)), int(include_pad))
    beyond = Pool(pool.kernel, pool.stride, (0, 0, 0, 0), pool.dilation, pool.output)
    sums = np.zeros((*x.shape[:2], *pool.output), np.int64)
    counts = np.zeros((1, 1, *pool.output), np.int64)
    for _, _, part in _elements(_padded(x, pool, 0), pool):
        sums += part
    for _, _, part in _elements(_padded(counted, beyond, 0), beyond):
        counts += part
    if (counts == 0).any():
        raise Refused("a window lies wholly in the padding")
    return sums, counts


def _elements(padded: npt.NDArray[Number], pool: Pool) -> Iterator[tuple[int, int, npt.NDArray[Number]]]:
    """For each position in a window: row, column, and the view of that element of all windows."""
    for row in range(pool.kernel[0]):
        top = row * pool.dilation[0]
        bottom = top + (pool.output[0] - 1) * pool.stride[0] + 1
        for column in range(pool.kernel[1]):
            left = column * pool.dilation[1]
            right = left + (pool.output[1] - 1) * pool.stride[1] + 1
            yield row, column, padded[..., top : bottom : pool.stride[0], left : right : pool.stride[1]]


def _padded(x: IntArray, pool: Pool, value: int) -> IntArray:
    """x with its pads, and as many rows and columns more as the last window needs (ceil_mode)."""
    sides = []
    for i in range(2):
        reach = (pool.output[i] - 1) * pool.stride[i] + pool.dilation[i] * (pool.kernel[i] - 1) + 1
        size = pool.pads[i] + x.shape[i - 2]
        sides.append((pool.pads[i], max(pool.pads[i + 2], reach - size)))
    if not any(map(any, sides)):
        return x
    widths = [(0, 0)] * (x.ndim - 2) + sides
    return np.pad(x, widths, constant_values=value)


def _exact_dtype(x: IntArray, weight: IntArray) -> type[np.float64] | type[np.int64]:
    """float64 where every partial sum stays below 2^53, in any order; int64 up to 2^60."""
    largest = float(np.abs(x).max(initial=0)) * float(np.abs(weight).sum(axis=1).max(initial=0))
    if largest < 2.0**53:
        return np.float64
    if largest <= 2.0**MAX_BITS:
        return np.int64
    raise Refused(f"its sums need more than {MAX_BITS} bits")


def _numbers(attributes: Mapping[str, Attribute], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = attributes.get(name, default)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(default):
        raise Refused("only two-dimensional windows are supported")
    return tuple(value)
