"""A layer's activations as one flat run of floats, and the checks that every estimator makes on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calibration.errors import CalibrationError

__all__ = ["flat_values", "peak", "require_finite"]


def flat_values(tensor: Tensor) -> Tensor:
    """All elements of one batch in memory order, because no range depends on the order.

    Dense tensors in any layout (NCHW, channels last, transposed) are viewed, not copied.

    Args:
        tensor: floating point, any shape and layout.

    Returns:
        1-D float32 (float64 if given so), detached; half-precision input is widened exactly.

    Raises:
        CalibrationError: the tensor is empty or doesn't hold real floating-point numbers.
    """
    if not tensor.is_floating_point():
        raise CalibrationError(f"activations are {tensor.dtype}, not floating point")
    if tensor.numel() == 0:
        raise CalibrationError("a batch of activations is empty")
    dense = tensor.detach()
    strides = dense.stride()
    dense = dense.permute(sorted(range(dense.dim()), key=lambda axis: -strides[axis]))
    flat = dense.reshape(-1)
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def require_finite(low: Tensor, high: Tensor) -> tuple[float, float]:
    """Refuse NaN and Inf by the extremes alone: both carry a NaN on, so the check costs no pass of its own.

    Args:
        low: rank 0, `amin` of the values.
        high: rank 0, `amax` of the values.

    Returns:
        Both as Python floats.

    Raises:
        CalibrationError: one of them is NaN or Inf.
    """
    least, greatest = low.item(), high.item()
    if not (math.isfinite(least) and math.isfinite(greatest)):
        raise CalibrationError("activations hold NaN or Inf")
    return least, greatest


def peak(values: Tensor, *, signed: bool) -> float:
    """The greatest magnitude (`signed`), or the greatest value where negative ones count as 0.

    Args:
        values: 1-D, as `flat_values` returns them.
        signed: whether the tensor will be quantized on a signed grid.

    Returns:
        That value, >= 0, exactly.

    Raises:
        CalibrationError: NaN or Inf among the values.
    """
    least, greatest = require_finite(*torch.aminmax(values))
    return max(greatest, -least if signed else 0.0)
