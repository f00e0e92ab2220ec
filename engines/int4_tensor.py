"""One ONNX tensor of 4-bit integers: two in a byte, or a byte each."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

__all__ = ["NIBBLES", "fits_int4", "store_as_int4", "store_as_int8"]

NIBBLES: Final = (TensorProto.INT4, TensorProto.UINT4)
_LOWEST, _HIGHEST = -8, 7


def fits_int4(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor holds INT8 codes that all lie in -8..7."""
    if tensor.data_type != TensorProto.INT8:
        return False
    codes = numpy_helper.to_array(tensor)
    return bool(codes.size == 0 or (codes.min() >= _LOWEST and codes.max() <= _HIGHEST))


def store_as_int4(tensor: onnx.TensorProto) -> None:
    """Store INT8 codes that fit as INT4, in place: two in a byte, the first one in the low half.

    An odd count leaves the last high half 0: ONNX packs the flat tensor, whatever its shape.
    """
    nibbles = np.ascontiguousarray(numpy_helper.to_array(tensor)).reshape(-1).astype(np.uint8) & 0x0F
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    _hold(tensor, TensorProto.INT4, (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes())


def store_as_int8(tensor: onnx.TensorProto) -> None:
    """Store INT4 or UINT4 codes as INT8, in place; 0..15 of UINT4 fit as they are."""
    _hold(tensor, TensorProto.INT8, numpy_helper.to_array(tensor).astype(np.int8).tobytes())


def _hold(tensor: onnx.TensorProto, data_type: int, data: bytes) -> None:
    tensor.data_type = data_type
    tensor.ClearField("int32_data")
    tensor.raw_data = data
