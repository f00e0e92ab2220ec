"""The float ONNX file of a net, its batch norms folded by the exporter: what INT8 inference is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["write_float_onnx"]

_OPSET: Final = 17


def write_float_onnx(net: nn.Module, example: Tensor, path: Path) -> None:
    """Write `path`: input `input` (N, C, H, W), output `logits` (N, classes), float32, any batch size.

    Args:
        net: put into eval mode. Fake quantizers in it become QuantizeLinear and DequantizeLinear, where torch can.
        example: float32, shape (N, C, H, W).
        path: of the ONNX file.

    Raises:
        torch.onnx.errors.OnnxExporterError: the net has an operation that torch doesn't write.
    """
    torch.onnx.export(
        net.eval(),
        (example,),
        str(path),
        opset_version=_OPSET,
        dynamo=False,  # the newer exporter leaves batch norms behind
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )
