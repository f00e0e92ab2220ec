"""ONNX operators by what they are to a quantized network."""

from __future__ import annotations

from typing import Final

__all__ = ["WEIGHTED"]

WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})  # products with a weight: the layers
