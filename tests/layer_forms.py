"""One quantized layer between two quantizers, and what its rewritten form must keep."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from engines.errors import FaqError
from engines.ort import OrtRunner
from engines.profile import Profile
from engines.reference import ReferenceRunner
from engines.tensorrt import build_rtx
from tests.onnx_nets import around, saved

__all__ = ["assert_same_codes_twice", "layer", "refusal"]


def layer(
    kind: str,
    image: Sequence[int],
    weight: Sequence[int],
    *,
    left: bool = False,
    bias: int | None = None,
    axis: int | None = 0,
    quantized: bool = True,
    out: int | None = -3,
    **attributes: object,
) -> onnx.ModelProto:
    """One weighted layer with random codes.

    Args:
        kind: of the node.
        image: shape of the input, without the batch.
        weight: its shape.
        left: whether the weight is the left factor.
        bias: how many numbers, on the grid of the sums; None for none.
        axis: where the weight's scales lie; None for one scale.
        quantized: whether the weight is codes and DequantizeLinear, or float numbers of any value.
        out: exponent of the codes behind it; None returns its output.
        attributes: of the node.
    """
    rng = np.random.default_rng(3)
    constants: dict[str, npt.ArrayLike] = {}
    nodes = []
    if quantized:
        count = () if axis is None else weight[axis]
        constants["w.codes_"] = rng.integers(-127, 128, tuple(weight), dtype=np.int8)
        constants["w.scale"] = np.ldexp(np.float32(1), rng.integers(-9, -6, count)).astype(np.float32)
        constants["w.zero"] = np.zeros(count, np.int8)
        nodes.append(helper.make_node("DequantizeLinear", ["w.codes_", "w.scale", "w.zero"], ["w"], axis=axis or 0))
    else:
        constants["w"] = rng.normal(size=tuple(weight)).astype(np.float32) / 8
    inputs = ["w", "x.values"] if left else ["x.values", "w"]
    if bias is not None:
        constants["b"] = (rng.integers(-(2**12), 2**12, bias) * 2.0**-14).astype(np.float32)
        inputs.append("b")
    nodes.append(helper.make_node(kind, inputs, ["y"], "y", **attributes))  # type: ignore[arg-type]
    return around(nodes, constants, tuple(image), exponent=-5, codes_exponent=out)  # type: ignore[arg-type]


def assert_same_codes_twice(
    before: onnx.ModelProto, after: onnx.ModelProto, image: Sequence[int], *, referred: bool = True
) -> None:
    """Two networks give the same codes in the integer reference and in onnxruntime without optimizations.

    Args:
        before: the network that was rewritten.
        after: what was made of it.
        image: shape of the input, without the batch.
        referred: whether the integer reference knows the first one's operators.
    """
    batch = np.random.default_rng(4).normal(size=(3, *image)).astype(np.float32)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        oracles = [
            OrtRunner(saved(model, Path(folder)), oracle=True, threads=1, with_codes=True)
            for model, folder in ((before, first), (after, second))
        ]
        references = [ReferenceRunner(saved(after, Path(second)))]
        if referred:
            references.append(ReferenceRunner(saved(before, Path(first))))
        wanted = references[0].codes(batch)
        assert len(np.unique(wanted["y.codes"])) > 3  # a dead tensor would agree with anything
        runners: list[ReferenceRunner | OrtRunner] = [*references, *oracles]
        for runner in runners:
            found = runner.codes(batch)
            assert set(found) == set(wanted)
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted), runner.name


def refusal(model: onnx.ModelProto, sm: int) -> str:
    """Why TensorRT-RTX refuses a network; empty where it builds."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            build_rtx(saved(model, Path(folder)), sm, Profile(), Path(folder) / "engine")
        except FaqError as error:
            return error.what
    return ""
