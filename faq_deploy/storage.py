"""How a target stores a quantized tensor in the ONNX file."""

from __future__ import annotations

import numpy as np

from faq_deploy.layers import ActivationQuantizer
from faq_deploy.place import Target

__all__ = ["Storage"]


class Storage:
    """How a quantized tensor is stored: type, zero point, and the codes that need a Clip to be kept in.

    Attributes:
        kind: `int8` or `uint8`.
        zero_point: added to a code when stored.
        low, high: the grid's codes, zero point not added.
    """

    def __init__(self, target: Target, layer: ActivationQuantizer) -> None:
        grid = layer.grid
        self.low, self.high = grid.min_code, layer.top_code
        self.zero_point = 0
        if target == "tensorrt":
            self.kind = "int8"
        elif target == "onnxruntime":
            self.kind = "uint8"
            self.zero_point = -grid.min_code if not grid.narrow else -grid.min_code + 1
        else:
            self.kind = "int8" if grid.signed else "uint8"

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        """NumPy type of a stored code."""
        return np.int8 if self.kind == "int8" else np.uint8

    @property
    def saturates(self) -> bool:
        """Whether the type's own saturation keeps codes inside the grid (S6)."""
        limits = np.iinfo(self.dtype)
        return limits.max - self.zero_point == self.high and limits.min - self.zero_point in {self.low, self.low - 128}
