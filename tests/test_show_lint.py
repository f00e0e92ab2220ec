"""The verb `lint`: any ONNX file, one line a rule for people, everything for machines, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import InputError
from engines.lint import lint_file
from engines.show_lint import lint
from tests.engine_nets import classifier
from tests.onnx_nets import residual_net, saved


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def float_net(path: Path, kind: str = "Relu", inputs: int = 1) -> Path:
    """One node from all inputs to y."""
    names = [f"x{index}" for index in range(inputs)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in names]
    node = helper.make_node(kind, names, ["y"], "only")
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph([node], "net", values, [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def two_inputs(path: Path) -> Path:
    """Two quantized inputs, one with a negative step, added."""
    grids = {"a.scale": np.float32(0.25), "b.scale": np.float32(-1), "zero": np.int8(0)}
    nodes = []
    for name in "ab":
        nodes += [
            helper.make_node("QuantizeLinear", [name, f"{name}.scale", "zero"], [f"{name}.codes"], f"{name}.q"),
            helper.make_node(
                "DequantizeLinear", [f"{name}.codes", f"{name}.scale", "zero"], [f"{name}.v"], f"{name}.dq"
            ),
        ]
    nodes.append(helper.make_node("Add", ["a.v", "b.v"], ["y"], "add"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "ab"]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in grids.items()]
    graph = helper.make_graph(nodes, "net", values, [result], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_clean_file_is_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(residual_net("tensorrt", 0), tmp_path)
    assert lint(path, "tensorrt", "text") == 0
    assert capsys.readouterr().out == f"{path}, for target tensorrt: nothing to remark.\n"


@pytest.mark.parametrize(
    ("said", "asked", "taken"),
    [("onnxruntime", None, "onnxruntime"), ("onnxruntime", "paper", "paper"), ("mobile", None, None), (7, None, None)],
)
def test_target_is_what_was_asked_for_else_what_the_file_says(
    tmp_path: Path, said: object, asked: str | None, taken: str | None
) -> None:
    path = classifier(tmp_path / "net.onnx", metadata={"target": said})
    assert lint_file(path, asked) == (taken, [])


def test_target_unknown_to_us_is_refused(tmp_path: Path) -> None:
    path = classifier(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="no target 'mobile'"):
        lint_file(path, "mobile")


def test_each_rule_is_one_row_with_its_first_places_and_json_has_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(residual_net("onnxruntime", 0), tmp_path)
    assert lint(path, "tensorrt", "json") == 1
    result = json.loads(capsys.readouterr().out)
    places = [finding for finding in result["findings"] if finding["rule"] == "unsigned-codes"]
    assert (result["exit_code"], result["target"]) == (1, "tensorrt")
    assert len(places) > 3
    assert set(places[0]) == {"rule", "level", "node", "message", "remedy", "page"}
    assert result["counts"]["error"] == len([f for f in result["findings"] if f["level"] == "error"])
    assert lint(path, "tensorrt", "text") == 1
    out = capsys.readouterr().out
    assert [place["message"] in out for place in places[:4]] == [True, True, True, False]
    assert f"and {len(places) - 3} more; --json lists them." in out
    assert out.count(places[0]["remedy"]) == 1
    assert out.splitlines()[-1] == f"{path}, for target tensorrt: {result['counts']['error']} errors."


def test_verdict_counts_one_of_a_kind_in_the_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = classifier(tmp_path / "net.onnx", flaw="negative scale")
    assert lint(path, None, "text") == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{path}, by the rules of every engine: 4 errors."
    assert lint(float_net(tmp_path / "float.onnx"), None, "text") == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"{tmp_path / 'float.onnx'}, by the rules of every engine: 1 remark."
    )


def test_float_file_is_said_to_be_unquantized_and_is_no_error(tmp_path: Path) -> None:
    (found,) = lint_file(float_net(tmp_path / "net.onnx"))[1]
    assert (found.rule, found.level, found.node) == ("not-quantized", "info", "")
    assert "nothing is quantized" in found.message


@pytest.mark.parametrize("kind", ["ConvInteger", "QLinearAdd", "DynamicQuantizeLinear"])
def test_operator_format_is_warned_of(tmp_path: Path, kind: str) -> None:
    path = float_net(tmp_path / "net.onnx", kind, inputs=2 if kind == "ConvInteger" else 1)
    (found,) = lint_file(path)[1]
    assert (found.rule, found.level, found.node) == ("operator-format", "warning", "only")


def test_operator_format_behind_a_quantizer_is_warned_of_too(tmp_path: Path) -> None:
    path = float_net(tmp_path / "net.onnx", "QLinearAdd")
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["unread", "s", "z"], ["codes"], "q"))
    onnx.save(model, path)
    assert "operator-format" in [finding.rule for finding in lint_file(path)[1]]


def test_file_with_several_inputs_is_checked(tmp_path: Path) -> None:
    found = lint_file(two_inputs(tmp_path / "net.onnx"))[1]
    assert [(finding.rule, finding.node) for finding in found] == [
        ("scale-positive", "b.q"),
        ("scale-positive", "b.dq"),
    ]


@pytest.mark.parametrize("content", [b"", b"no ONNX", None])
def test_what_is_no_onnx_file_is_bad_input(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"does not exist|not an ONNX file") as caught:
        lint(path, None, "json")
    assert caught.value.exit_code == 2
