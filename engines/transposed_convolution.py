"""Transposed convolution over codes: every input element adds a copy of the kernel to the output."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.fixed_tensor import IntArray, Refused
from engines.reference_values import Attributes
from engines.windows import MAX_DIMENSIONS, Number, WideArray, exact_dtype, numbers

__all__ = ["Spread", "convolve_transposed", "convolve_transposed_floats", "spread_of"]


@dataclass(frozen=True)
class Spread:
    """Where the kernels of one transposed convolution fall; one number for each of the n dimensions.

    Args:
        kernel: elements of a kernel.
        stride: step from kernel to kernel in the output.
        crop: elements left out at the beginning of each dimension (ONNX calls them pads).
        dilation: step from element to element of a kernel.
        output: size of the result.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    crop: tuple[int, ...]
    dilation: tuple[int, ...]
    output: tuple[int, ...]


def spread_of(attributes: Attributes, kernel: Sequence[int], size: Sequence[int]) -> Spread:
    """What an ONNX ConvTranspose means.

    Args:
        attributes: of the node: strides, pads, dilations, output_padding.
        kernel: its size, n numbers.
        size: of the input image, n numbers.

    Returns:
        The places, with the size of the output.

    Raises:
        Refused: automatic padding, a wanted output_shape, another number of dimensions, or nothing is left.
    """
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes:
        raise Refused("automatic padding and output_shape are not supported")
    n = len(kernel)
    if not 1 <= n <= MAX_DIMENSIONS or len(size) != n:
        raise Refused(f"its kernels have {n} dimensions and its input {len(size)}; 1 to {MAX_DIMENSIONS} are supported")
    stride, dilation = numbers(attributes, "strides", (1,) * n), numbers(attributes, "dilations", (1,) * n)
    pads, extra = numbers(attributes, "pads", (0,) * (2 * n)), numbers(attributes, "output_padding", (0,) * n)
    output = tuple(
        stride[i] * (size[i] - 1) + extra[i] + dilation[i] * (kernel[i] - 1) + 1 - pads[i] - pads[i + n]
        for i in range(n)
    )
    if min(output) < 1:
        raise Refused("its pads leave nothing of the output")
    return Spread(tuple(kernel), stride, pads[:n], dilation, output)


def convolve_transposed(x: IntArray, weight: IntArray, spread: Spread, groups: int) -> IntArray:
    """Sums of products of codes, as ONNX ConvTranspose without a bias.

    Args:
        x: codes, shape (N, C, *size).
        weight: codes, shape (C, O / groups, *kernel).
        spread: where they fall.
        groups: of channels that do not mix.

    Returns:
        int64, shape (N, O, *output).

    Raises:
        Refused: the sums may not fit int64.
    """
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    dtype = exact_dtype(x, split.swapaxes(1, 2).reshape(groups * weight.shape[1], -1))
    sums: IntArray = _spread_products(x.astype(dtype), weight.astype(dtype), spread, groups).astype(np.int64)
    return sums


def convolve_transposed_floats(x: WideArray, weight: WideArray, spread: Spread, groups: int) -> WideArray:
    """As `convolve_transposed`, in float64 arithmetic, for layers that stay float."""
    return _spread_products(x, weight, spread, groups)


def _spread_products(
    x: npt.NDArray[Number], weight: npt.NDArray[Number], spread: Spread, groups: int
) -> npt.NDArray[Number]:
    size, outputs = x.shape[2:], weight.shape[1] * groups
    # (groups, O / groups x elements of a kernel, C / groups)
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1).swapaxes(1, 2)
    # the canvas holds every kernel in full; the output is cut out of it, and may reach beyond it by output_padding
    ends = [spread.crop[i] + count for i, count in enumerate(spread.output)]
    steps = zip(spread.stride, size, spread.dilation, spread.kernel, strict=True)
    full = [stride * (count - 1) + dilation * (kernel - 1) + 1 for stride, count, dilation, kernel in steps]
    sums = np.empty((x.shape[0], outputs, *spread.output), x.dtype)
    cut = tuple(slice(first, end) for first, end in zip(spread.crop, ends, strict=True))
    for image in range(x.shape[0]):
        canvas = np.zeros((outputs, *map(max, full, ends)), x.dtype)
        products = np.matmul(kernels, x[image].reshape(groups, kernels.shape[2], -1))
        parts = products.reshape(outputs, *spread.kernel, *size)
        for element in itertools.product(*map(range, spread.kernel)):
            starts = [index * step for index, step in zip(element, spread.dilation, strict=True)]
            where = zip(starts, size, spread.stride, strict=True)
            places = tuple(slice(start, start + (count - 1) * step + 1, step) for start, count, step in where)
            view = canvas[(slice(None), *places)]
            np.add(view, parts[(slice(None), *element)], out=view)
        sums[image] = canvas[(slice(None), *cut)]
    return sums
