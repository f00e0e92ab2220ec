"""Sliding windows over images of one to three dimensions: convolution, maximum and sum, exact to the last bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from engines.fixed_tensor import MAX_BITS, IntArray, Refused
from engines.qdq_graph import Attribute

__all__ = [
    "MAX_DIMENSIONS",
    "Number",
    "Pool",
    "WideArray",
    "convolve",
    "convolve_floats",
    "exact_dtype",
    "numbers",
    "pool_of",
    "pooled_max",
    "pooled_sum",
    "product",
]

WideArray = npt.NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)

MAX_DIMENSIONS: Final = 3
_MINUS_INFINITY: Final = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Pool:
    """Where the windows of one operator lie; one number for each of the n dimensions of an image, outermost first.

    Args:
        kernel: elements of a window.
        stride: step from window to window.
        pads: 2n numbers: what is added at the beginning of each dimension, then at the end of each.
        dilation: step from element to element.
        output: number of windows.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[int, ...]
    dilation: tuple[int, ...]
    output: tuple[int, ...]


def pool_of(attributes: Mapping[str, Attribute], kernel: Sequence[int], size: Sequence[int]) -> Pool:
    """The windows that an ONNX Conv or pool means.

    Args:
        attributes: of the node: strides, pads, dilations, ceil_mode.
        kernel: size of a window, n numbers.
        size: of the image, n numbers.

    Returns:
        The windows, with their number.

    Raises:
        Refused: automatic padding, windows of another number of dimensions, or an image smaller than one window.
    """
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise Refused("automatic padding is not supported")
    n = len(kernel)
    if not 1 <= n <= MAX_DIMENSIONS or len(size) != n:
        raise Refused(f"its windows have {n} dimensions and its input {len(size)}; 1 to {MAX_DIMENSIONS} are supported")
    stride, dilation = numbers(attributes, "strides", (1,) * n), numbers(attributes, "dilations", (1,) * n)
    pads = numbers(attributes, "pads", (0,) * (2 * n))
    output = []
    for i in range(n):
        room = size[i] + pads[i] + pads[i + n] - (dilation[i] * (kernel[i] - 1) + 1)
        if room < 0:
            raise Refused(f"a window does not fit into its input of {' x '.join(map(str, size))}")
        count = room // stride[i] + 1
        # ceil_mode: one more, unless it would begin in the padding behind the image (as torch does)
        if attributes.get("ceil_mode", 0) and room % stride[i] and count * stride[i] < size[i] + pads[i]:
            count += 1
        output.append(count)
    return Pool(tuple(kernel), stride, pads, dilation, tuple(output))


def convolve(x: IntArray, weight: IntArray, pool: Pool, groups: int) -> IntArray:
    """Sums of products of codes, as ONNX Conv without a bias.

    Args:
        x: codes, shape (N, C, *size).
        weight: codes, shape (O, C / groups, *kernel).
        pool: the windows.
        groups: of channels that do not mix.

    Returns:
        int64, shape (N, O, *output).

    Raises:
        Refused: the sums may not fit int64.
    """
    dtype = exact_dtype(x, weight.reshape(weight.shape[0], -1))
    sums: IntArray = _window_products(x.astype(dtype), weight.astype(dtype), pool, groups).astype(np.int64)
    return sums


def convolve_floats(x: WideArray, weight: WideArray, pool: Pool, groups: int) -> WideArray:
    """As `convolve`, in float64 arithmetic, for layers that stay float."""
    return _window_products(x, weight, pool, groups)


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
    dtype = exact_dtype(x, weight)
    sums: IntArray = (x.astype(dtype) @ weight.astype(dtype).T).astype(np.int64)
    return sums


def pooled_max(x: npt.NDArray[Number], pool: Pool) -> npt.NDArray[Number]:
    """Largest element of each window; the padding is minus infinity.

    Args:
        x: codes or floats, shape (N, C, *size).
        pool: the windows.

    Returns:
        The dtype of x, shape (N, C, *output).

    Raises:
        Refused: a window lies wholly in the padding.
    """
    lowest = _MINUS_INFINITY if x.dtype.kind == "i" else -np.inf
    if _counted(x.shape, pool, include_pad=False).min(initial=1) == 0:
        raise Refused("a window lies wholly in the padding")
    largest = np.full((*x.shape[:2], *pool.output), lowest, x.dtype)
    for _, part in _elements(_padded(x, pool, lowest), pool):
        np.maximum(largest, part, out=largest)
    return largest


def pooled_sum(x: npt.NDArray[Number], pool: Pool, include_pad: bool) -> tuple[npt.NDArray[Number], IntArray]:
    """Sum of each window, and the number of elements an average divides it by.

    Args:
        x: int64 codes, or float64; shape (N, C, *size).
        pool: the windows.
        include_pad: count the padding, but never what ceil_mode adds beyond it (as torch does).

    Returns:
        Sums in the dtype of x, shape (N, C, *output); counts, shape (1, 1, *output).

    Raises:
        Refused: the sums may not fit, or a window lies wholly in the padding.
    """
    if x.dtype.kind == "i" and x.size and float(np.abs(x).max()) * math.prod(pool.kernel) > 2.0**MAX_BITS:
        raise Refused(f"its sums need more than {MAX_BITS} bits")
    counts = _counted(x.shape, pool, include_pad)
    if (counts == 0).any():
        raise Refused("a window lies wholly in the padding")
    sums = np.zeros((*x.shape[:2], *pool.output), x.dtype)
    for _, part in _elements(_padded(x, pool, 0), pool):
        np.add(sums, part, out=sums)
    return sums, counts


def exact_dtype(x: IntArray, weight: IntArray) -> npt.DTypeLike:
    """The fastest type in which sums of products are exact in any order.

    Args:
        x: codes, any shape.
        weight: codes, shape (O, K): one row for each output.

    Returns:
        float32 where every partial sum stays below 2^24; float64 below 2^53; int64 up to 2^60.

    Raises:
        Refused: the sums may not fit int64.
    """
    largest = float(np.abs(x).max(initial=0)) * float(np.abs(weight).sum(axis=1).max(initial=0))
    if largest < 2.0**24:
        return np.float32
    if largest < 2.0**53:
        return np.float64
    if largest <= 2.0**MAX_BITS:
        return np.int64
    raise Refused(f"its sums need more than {MAX_BITS} bits")


def numbers(attributes: Mapping[str, Attribute], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """An attribute that holds as many integers as its default.

    Args:
        attributes: of the node.
        name: of the attribute.
        default: where it is absent.

    Returns:
        The integers.

    Raises:
        Refused: it holds something else.
    """
    value = attributes.get(name, default)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(default):
        raise Refused(f"its {name} are {value}, not {len(default)} numbers")
    return tuple(value)


def _window_products(
    x: npt.NDArray[Number], weight: npt.NDArray[Number], pool: Pool, groups: int
) -> npt.NDArray[Number]:
    images, outputs = x.shape[0], weight.shape[0]
    kernels = weight.reshape(groups, outputs // groups, -1)
    sums = np.empty((images, outputs, *pool.output), x.dtype)
    columns = np.empty((x.shape[1], *pool.kernel, *pool.output), x.dtype)
    for image in range(images):  # one at a time: the columns of a whole batch would need gigabytes
        for element, part in _elements(_padded(x[image], pool, 0), pool):
            place: tuple[int | slice, ...] = (slice(None), *element)
            columns[place] = part
        result = np.matmul(kernels, columns.reshape(groups, kernels.shape[2], -1))
        sums[image] = result.reshape(outputs, *pool.output)
    return sums


def _counted(shape: Sequence[int], pool: Pool, include_pad: bool) -> IntArray:
    """Number of elements that each window holds, shape (1, 1, *output)."""
    n = len(pool.kernel)
    # the pads themselves first (whatever ceil_mode adds beyond them counts as nothing), then the windows
    inside = np.ones((1, 1, *shape[2:]), np.int64)
    counted = _padded(inside, replace(pool, output=(0,) * n), int(include_pad))
    beyond = replace(pool, pads=(0,) * (2 * n))
    counts = np.zeros((1, 1, *pool.output), np.int64)
    for _, part in _elements(_padded(counted, beyond, 0), beyond):
        counts += part
    return counts


def _elements(padded: npt.NDArray[Number], pool: Pool) -> Iterator[tuple[tuple[int, ...], npt.NDArray[Number]]]:
    """For each position in a window: its index, and the view of that element of all windows."""
    for element in itertools.product(*map(range, pool.kernel)):
        starts = [index * step for index, step in zip(element, pool.dilation, strict=True)]
        steps = zip(starts, pool.output, pool.stride, strict=True)
        places = tuple(slice(start, start + (count - 1) * step + 1, step) for start, count, step in steps)
        yield element, padded[(slice(None),) * (padded.ndim - len(places)) + places]


def _padded(x: npt.NDArray[Number], pool: Pool, value: float) -> npt.NDArray[Number]:
    """x with its pads, and as many rows and columns more as the last window needs (ceil_mode)."""
    sides, n = [], len(pool.kernel)
    for i in range(n):
        reach = (pool.output[i] - 1) * pool.stride[i] + pool.dilation[i] * (pool.kernel[i] - 1) + 1
        size = pool.pads[i] + x.shape[i - n]
        sides.append((pool.pads[i], max(pool.pads[i + n], reach - size)))
    if not any(map(any, sides)):
        return x
    widths = [(0, 0)] * (x.ndim - n) + sides
    return np.pad(x, widths, constant_values=value)
