"""Lint on files that other tools wrote: what is right is not remarked, what is wrong is named once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.lint import Finding, lint
from engines.lint_fix import fixed_model
from engines.same_outputs import differing_outputs, outputs_of, random_inputs
from tests.peer_models import ONNXRUNTIME_FORMS, PEER_FILES, peer_model


def counted(findings: list[Finding]) -> dict[str, int]:
    """Places by rule, the remarks on powers of two left out: float scales are what these tools write."""
    return dict(Counter(finding.rule for finding in findings if finding.rule != "scale-power-of-two"))


CONCAT = {"concat-scales": 1}  # onnxruntime gives each input of a Concat its own scale

# what each tool leaves to remark, by target
REMARKS: dict[str, dict[str | None, dict[str, int]]] = {
    "signed": {None: CONCAT, "tensorrt": CONCAT, "onnxruntime": CONCAT},
    "unsigned": {
        None: CONCAT,
        "tensorrt": {"zero-point": 16, "unsigned-codes": 20, **CONCAT},
        "onnxruntime": CONCAT,
    },
    "float weights": {None: {"bias-grid": 3, **CONCAT}, "tensorrt": {"bias-grid": 3, **CONCAT}},
    "brevitas": {
        None: {"double-quantization": 1, "one-sided-layer": 1},
        "tensorrt": {"unsigned-codes": 4, "clip-on-codes": 3, "double-quantization": 1, "one-sided-layer": 1},
    },
    "modelopt": {None: {"bias-grid": 3, "skip-input": 1}, "tensorrt": {"bias-grid": 3, "skip-input": 1}},
}


@pytest.mark.parametrize(("name", "target"), [(name, target) for name, by in REMARKS.items() for target in by])
def test_file_of_another_tool_gets_the_remarks_it_deserves(name: str, target: str | None, tmp_path: Path) -> None:
    assert counted(lint(peer_model(name, tmp_path), target)) == REMARKS[name][target]


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("brevitas", "one-sided-layer", "Gemm /head/Gemm: only its weight is quantized, so that it runs in float."),
        (
            "brevitas",
            "clip-on-codes",
            "Clip /first/weight_quant/export_handler/Clip clips the codes of a constant; TensorRT's Clip takes floats "
            "only.",
        ),
        (
            "modelopt",
            "skip-input",
            "Add /Add: its skip input /second/input_quantizer/Cast_output_0 is not quantized, so that the Add runs in "
            "float.",
        ),
    ],
)
def test_place_is_named_as_the_tool_named_it(name: str, rule: str, message: str, tmp_path: Path) -> None:
    found = [finding for finding in lint(peer_model(name, tmp_path), "tensorrt") if finding.rule == rule]
    assert found[0].message == message


def test_int32_bias_whose_scale_is_the_rounded_product_is_on_the_grid(tmp_path: Path) -> None:
    """Float32 can't hold s_x x s_w; the codes are whole all the same, and every tool writes them so."""
    model = peer_model("unsigned", tmp_path)
    assert "bias-grid" not in counted(lint(model))
    scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("stem.b_quantized_scale"))
    wrong = onnx.numpy_helper.to_array(scale) * np.float32(1.001)
    scale.CopyFrom(onnx.numpy_helper.from_array(wrong, scale.name))
    (found,) = [finding for finding in lint(model) if finding.rule == "bias-grid"]
    assert found.node == "stem"


def test_clips_of_brevitas_are_folded_and_change_no_bit(tmp_path: Path) -> None:
    model = peer_model("brevitas", tmp_path)
    fixed, repaired, refused = fixed_model(model, "tensorrt")
    assert (list(repaired), refused) == (["clip-on-codes"], {})
    assert counted(lint(fixed, "tensorrt")) == {"unsigned-codes": 4, "double-quantization": 1, "one-sided-layer": 1}
    inputs = random_inputs(model, seed=1)
    assert differing_outputs(outputs_of(model, inputs), outputs_of(fixed, inputs)) == []


@pytest.mark.parametrize("name", ["brevitas", "modelopt"])
def test_peer_files_are_what_the_tool_wrote(name: str) -> None:
    """Their form, so that nobody edits them by hand: Brevitas stores codes and clips them, ModelOpt floats."""
    model = onnx.load(PEER_FILES / f"{name}.onnx")
    assert (model.producer_name, model.opset_import[0].version) == ("pytorch", 17)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["Clip"], kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == {
        "brevitas": (3, 5, 10),
        "modelopt": (0, 7, 7),
    }[name]


def test_every_form_of_onnxruntime_is_looked_at() -> None:
    assert set(ONNXRUNTIME_FORMS) | {"brevitas", "modelopt"} == set(REMARKS)
