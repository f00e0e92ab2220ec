"""What does not work yet, with the words that users get. `tests/test_known_gaps.py` fails when a gap closes unnoticed.

A gap is not a bug: it is refused in a sentence. Closing one means to remove it here and from the page that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from engines import show_build
from engines.image_files import SUFFIXES
from engines.ort import OrtRunner
from engines.qdq_graph import load_model
from engines.reference import ReferenceRunner
from faq_deploy.capture import capture
from tests.engine_nets import classifier, two_inputs

__all__ = ["GAPS", "Gap"]


@dataclass(frozen=True)
class Gap:
    """One thing that does not work.

    Args:
        what: for readers of the list.
        page: that tells users of it, below the root; None where only the error does.
        said: part of the refusal.
        attempt: tries it, given an empty folder; raises while the gap is there.
    """

    what: str
    page: str | None
    said: str
    attempt: Callable[[Path], object]


class _Around(nn.Module):
    """A convolution, then what is tried, then a linear layer."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.linear, self.middle = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), middle

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.linear(self.middle(self.conv(x)).mean((2, 3)))
        return logits


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv2d(3, 8, 3), nn.LSTM(8, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Last state."""
        states: Tensor = self.lstm(self.conv(x).flatten(2).transpose(1, 2))[0]
        return states[:, -1]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 3), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Mean of what is attended to."""
        rows = self.conv(x).flatten(2).transpose(1, 2)
        attended: Tensor = self.attention(rows, rows, rows, need_weights=False)[0]
        return attended.mean(1)


def _captured(net: nn.Module) -> Callable[[Path], object]:
    return lambda folder: capture(net.eval(), torch.zeros(2, 3, 8, 8))


def _branching(folder: Path) -> object:
    """An ONNX `If`."""
    path = classifier(folder / "model.onnx")
    model = onnx.load(path)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["logits"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], "if", then_branch=branch, else_branch=branch))
    model.graph.output[0].name = "chosen"
    onnx.save(model, path)
    return ReferenceRunner(path)(np.zeros((1, 3, 16, 16), np.float32))


def _dla(folder: Path) -> object:
    return show_build.build(folder / "model.onnx", None, {"dla": True}, force=False, as_json=False)


def _gif(_: Path) -> object:
    if ".gif" not in SUFFIXES:
        raise LookupError(".gif is not among the suffixes")
    return None


GAPS: Final = (
    Gap("attention", "docs/layers.md", "is not supported", _captured(_Attention())),
    Gap("recurrent layers", None, "is not supported", _captured(_Recurrent())),
    Gap(
        "variance of activations",
        "docs/networks.md",
        "var is not supported",
        _captured(_Around(lambda x: x - x.var(1, keepdim=True))),
    ),
    Gap(
        "vector norms of activations",
        "docs/networks.md",
        "linalg_vector_norm is not supported",
        _captured(_Around(lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True))),
    ),
    Gap("rolled activations", None, "roll is not supported", _captured(_Around(lambda x: x.roll(1, 2)))),
    Gap("branches on values", "docs/layers.md", "", _captured(_Around(lambda x: x if x.sum() > 0 else -x))),
    Gap("ONNX control flow in the integer reference", None, "is not an operator of the integer reference", _branching),
    Gap(
        "several inputs in the runners of images",
        None,
        "has 2 inputs; a network of images has one",
        lambda folder: load_model(two_inputs(folder / "m.onnx")),
    ),
    Gap(
        "several inputs in onnxruntime's runner",
        None,
        "2 inputs",
        lambda folder: OrtRunner(two_inputs(folder / "m.onnx")),
    ),
    Gap("DLA of Jetsons", "docs/engines.md", "DLA", _dla),
    Gap("GIF pictures", None, ".gif is not among the suffixes", _gif),
)
