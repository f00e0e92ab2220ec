"""A batch of images as the runtimes need it: float32, native byte order, C order, no NaN, the right shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from engines.errors import InputError
from engines.runner import FloatArray

__all__ = ["native_batch"]

_REMEDY: Final = "pass the preprocessed images as a float32 array of shape (N, C, H, W)."


def native_batch(batch: npt.NDArray[np.generic], shape: Sequence[int | None], name: str) -> FloatArray:
    """The same numbers in the memory layout that every runtime reads right.

    Fortran order, slices, negative strides and foreign byte order are copied. Other number types are converted where
    every value is exactly a float32, and refused otherwise: a silent rounding would move codes.

    Args:
        batch: images, shape (N, C, H, W), N >= 0.
        shape: what the engine takes; None where any size will do.
        name: the engine's name, for messages.

    Returns:
        float32 of the same shape, C contiguous, native byte order. `batch` itself where it is so already.

    Raises:
        InputError: the wrong shape, a type that is no number, values that float32 cannot hold, or NaN.
    """
    if batch.ndim != len(shape) or any(
        size not in (None, found) for found, size in zip(batch.shape[1:], shape[1:], strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in ("N", *shape[1:]))
        raise InputError(f"{name} takes a batch of shape ({wanted}), not {batch.shape}.", _REMEDY)
    if batch.dtype.kind not in "fiu":
        raise InputError(f"{name} takes float32 images, not {batch.dtype}.", _REMEDY)
    with np.errstate(over="ignore"):
        native = np.ascontiguousarray(batch, dtype=np.float32)
    if batch.dtype.newbyteorder("=") != np.float32 and not _same_numbers(batch, native):
        raise InputError(
            f"{name} was given {batch.dtype} values that float32 cannot hold exactly.",
            "round them with .astype(numpy.float32) in the preprocessing, so that every engine gets the same.",
        )
    if (bad := np.isnan(native)).any():
        image = int(bad.any(axis=tuple(range(1, native.ndim))).argmax())
        raise InputError(f"image {image} of the batch for {name} holds NaN.", "check the image and the preprocessing.")
    return native


def _same_numbers(batch: npt.NDArray[np.generic], native: FloatArray) -> bool:
    if batch.dtype.kind == "f":
        return bool(np.array_equal(batch, native.astype(np.float64), equal_nan=True))
    # every integer of up to 64 bits, exactly: float64 would round the large ones before they are compared
    return bool(np.all(np.abs(native) < 2.0**63) and np.array_equal(batch, native.astype(batch.dtype)))
