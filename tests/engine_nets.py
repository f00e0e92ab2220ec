"""A two-layer QDQ classifier of 16x16 images for the engine tests, and a run that holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.build import BuildResult, build_engines
from engines.build_options import BuildOptions
from engines.host import RuntimeName, this_host
from engines.run_folder import RunFolder

__all__ = ["DEFAULTS", "VERSION", "built", "classifier", "exported_run", "needs_rtx", "statuses", "two_inputs"]

VERSION: Final = "0.1.0"
DEFAULTS: Final = BuildOptions()
FOR_TENSORRT: Final[Mapping[str, object]] = {"target": "tensorrt", "recipe": {"bits": 8}}

needs_rtx = pytest.mark.skipif(
    "tensorrt-rtx" not in this_host().versions, reason="tensorrt_rtx is not installed: pip install 'faq-deploy[rtx]'"
)

Flaw = Literal["unknown operator", "negative scale"]


def classifier(
    path: Path,
    *,
    zero_point: npt.ArrayLike | None = None,
    input_shape: tuple[int | str, ...] = ("N", 3, 16, 16),
    gemm: bool = False,
    flaw: Flaw | None = None,
    metadata: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Path:
    """Write Conv, Relu, pool and classifier (a 1x1 Conv, or a float Gemm) and return the path."""
    rng = np.random.default_rng(seed)
    values = {
        "x.scale": np.float32(-1.0 if flaw == "negative scale" else 2.0**-5),
        "x.zero_point": np.asarray(np.int8(0) if zero_point is None else zero_point),
        "conv.weight_codes": rng.integers(-127, 128, (8, 3, 3, 3), dtype=np.int8),
        "conv.scale": np.full(8, 2.0**-8, np.float32),
        "conv.zero_point": np.zeros(8, np.int8),
        "head.weight_codes": rng.integers(-127, 128, (10, 8, 1, 1), dtype=np.int8),
        "head.scale": np.full(10, 2.0**-8, np.float32),
        "head.zero_point": np.zeros(10, np.int8),
        "head.weight": rng.normal(size=(10, 8)).astype(np.float32),
    }
    grid = ["x.scale", "x.zero_point"]
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["input", *grid], ["x.codes"], "x.quantize"),
        node("DequantizeLinear", ["x.codes", *grid], ["x.values"], "x.dequantize"),
        node("DequantizeLinear", ["conv.weight_codes", "conv.scale", "conv.zero_point"], ["conv.w"], "conv.dq", axis=0),
        node("Conv", ["x.values", "conv.w"], ["conv.y"], "conv", pads=[1, 1, 1, 1]),
        node("Relu", ["conv.y"], ["relu.y"], "relu"),
        node("GlobalAveragePool", ["relu.y"], ["pool.y"], "pool"),
        node("QuantizeLinear", ["pool.y", *grid], ["p.codes"], "p.quantize"),
        node("DequantizeLinear", ["p.codes", *grid], ["p.values"], "p.dequantize"),
        node("DequantizeLinear", ["head.weight_codes", "head.scale", "head.zero_point"], ["head.w"], "head.dq", axis=0),
    ]
    if flaw == "unknown operator":
        nodes[4] = node("Nonsense", ["conv.y"], ["relu.y"], "layer3.conv2")
    if gemm:
        nodes += [
            node("Flatten", ["p.values"], ["flat.y"], "flat"),
            node("Gemm", ["flat.y", "head.weight"], ["logits"], "classifier", transB=1),
        ]
    else:
        nodes += [
            node("Conv", ["p.values", "head.w"], ["head.y"], "head"),
            node("Flatten", ["head.y"], ["logits"], "flat"),
        ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(input_shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [input_shape[0], 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=f"faq_deploy.{key}", value=json.dumps(value))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def two_inputs(path: Path) -> Path:
    """Write a net that adds two images, the left one of any batch and the right one of batch 1; return the path."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["left", "right"], ["logits"], "add")],
        "two_inputs",
        [
            helper.make_tensor_value_info("left", TensorProto.FLOAT, ["N", 3, 16, 16]),
            helper.make_tensor_value_info("right", TensorProto.FLOAT, [1, 3, 16, 16]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, 16, 16])],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def exported_run(folder: Path, *, seed: int = 0, **flags: Any) -> RunFolder:
    """A run with a classifier as `quantize` and `export` leave it; `flags` as for `classifier`."""
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    (folder / "quantized.pt").write_bytes(b"weights of seed %d" % seed)
    classifier(folder / "model.onnx", seed=seed, **({"metadata": FOR_TENSORRT} | flags))
    run.record("quantize", version=VERSION, outputs=["quantized.pt"])
    run.record("export", version=VERSION, inputs=["quantized.pt"], outputs=["model.onnx"], after=["build"])
    return run


def built(
    run: RunFolder,
    runtimes: Sequence[RuntimeName],
    sms: Sequence[int] = (),
    options: BuildOptions = DEFAULTS,
) -> dict[str, BuildResult]:
    """What `build` answers, by engine."""
    return {result.name: result for result in build_engines(run, runtimes, sms, options, version=VERSION)}


def statuses(results: Mapping[str, BuildResult]) -> dict[str, str]:
    """Only each engine's status."""
    return {name: result.status for name, result in results.items()}
