"""Second moments of what a layer's weights are multiplied with: all that least squares needs of the images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from faq_deploy.products import Convolution, Product
from faq_deploy.side_by_side import Seen

__all__ = ["LARGEST_ROW", "Moments", "moments"]

LARGEST_ROW: Final = 8192  # weights of one output: its moments have 0.5 GB in float64

_SAMPLES_A_WEIGHT: Final = 8  # positions of all images together that are looked at, and at least:
_LEAST_SAMPLES: Final = 2**14


@dataclass(frozen=True)
class Moments:
    """Covariances of the inputs that an output channel sums over, K of them in each group of channels.

    Attributes:
        quantized: Cov(x̃, x̃), float64, shape (groups, K, K).
        crossed: Cov(x, x̃), float64, shape (groups, K, K): row i belongs to the float net's input i.
        samples: positions they were taken from.
    """

    quantized: Tensor
    crossed: Tensor
    samples: int


def moments(product: Product, shape: Sequence[int], seen: Seen) -> Moments:
    """Measure them, at a regular choice of positions where there are more than needed.

    Args:
        product: of the layer, not transposed.
        shape: of its weight.
        seen: what it reads.
    """
    images = sum(len(batch) for batch in seen.exact)
    size = math.prod(shape[1:])
    limit = max(_SAMPLES_A_WEIGHT * size, _LEAST_SAMPLES) / images
    sums = [torch.zeros(())] * 4
    samples = 0
    for exact, quantized in zip(seen.exact, seen.quantized, strict=True):
        x, y = (_columns(product, shape, batch, limit) for batch in (exact, quantized))
        found = [y @ y.transpose(1, 2), x @ y.transpose(1, 2), x.sum(2), y.sum(2)]
        sums = [total + new.double() for total, new in zip(sums, found, strict=True)]
        samples += x.shape[2]
    squares, products, mean_exact, mean_quantized = (total / samples for total in sums)
    return Moments(
        squares - mean_quantized.unsqueeze(2) * mean_quantized.unsqueeze(1),
        products - mean_exact.unsqueeze(2) * mean_quantized.unsqueeze(1),
        samples,
    )


def _columns(product: Product, shape: Sequence[int], x: Tensor, limit: float) -> Tensor:
    """What the weights are multiplied with, one column a position: shape (groups, K, samples)."""
    if not isinstance(product, Convolution):
        return x.t().unsqueeze(0)
    kernel = shape[2:]
    count = len(kernel)
    begins, ends = product.padding[:count], product.padding[-count:]
    x = F.pad(x, [p for axis in reversed(range(count)) for p in (begins[axis], ends[axis])])
    spans = [d * (k - 1) for d, k in zip(product.dilation, kernel, strict=True)]
    places = [
        (total - span - 1) // s + 1 for total, span, s in zip(x.shape[2:], spans, product.stride, strict=True)
    ]  # positions along each axis
    every = max(1, math.ceil((math.prod(places) / limit) ** (1 / count)))
    taps = []
    for tap in itertools.product(*map(range, kernel)):
        starts = [t * d for t, d in zip(tap, product.dilation, strict=True)]
        slices = [
            slice(start, start + s * (n - 1) + 1, s * every)
            for start, s, n in zip(starts, product.stride, places, strict=True)
        ]
        taps.append(x[(slice(None), slice(None), *slices)].flatten(2))
    columns = torch.stack(taps, 2)  # (N, C, taps, positions)
    images, channels, kernel_size, positions = columns.shape
    grouped = columns.reshape(images, product.groups, channels // product.groups * kernel_size, positions)
    return grouped.permute(1, 2, 0, 3).reshape(product.groups, grouped.shape[2], images * positions)
