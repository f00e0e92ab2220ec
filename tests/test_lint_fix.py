"""`lint --fix` repairs what changes no value, proves it, and says what it left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import lint_fix
from engines.errors import InputError
from engines.lint import lint
from engines.lint_fix import fix_file, fixed_model
from engines.lint_repairs import REPAIRS
from engines.lint_rules import RULES
from engines.qdq_graph import read_graph
from engines.same_outputs import differing_outputs, outputs_of, random_inputs
from engines.show_fix import fix
from tests.bad_models import BAD_MODELS
from tests.onnx_nets import around, residual_net, saved, with_constant

# the bad models of these ask for more than a repair; those that can be repaired have tests of their own
OTHERS = ("explicit-zero-point", "double-quantization", "unsigned-codes", "clip-on-codes")
REPAIRED = [rule for rule in REPAIRS if rule not in OTHERS]


def same_bits(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    """Whether both give the same outputs on inputs that the repair was not proved with."""
    inputs = random_inputs(before, seed=1)
    return not differing_outputs(outputs_of(before, inputs), outputs_of(after, inputs))


@pytest.mark.parametrize("rule", REPAIRED)
def test_bad_model_is_repaired_without_a_trace_of_the_rule(rule: str) -> None:
    bad = BAD_MODELS[rule]
    before = bad.model()
    after, repaired, refused = fixed_model(before, bad.target)
    assert (list(repaired), refused) == ([rule], {})
    assert [finding for finding in lint(after, bad.target) if finding.rule == rule] == []
    before.ir_version = after.ir_version
    assert same_bits(before, after)
    onnx.checker.check_model(after, full_check=True)


def test_missing_zero_points_get_the_type_of_the_codes() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "half"], ["weight"], "w"),
        helper.make_node("Conv", ["x.values", "weight"], ["sum"], "layer"),
        helper.make_node("Relu", ["sum"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "half"], ["r.codes"], "q"),
        helper.make_node("DequantizeLinear", ["r.codes", "half"], ["y"], "dq"),
    ]
    model = around(nodes, {"codes": np.ones((2, 2, 1, 1), np.int8), "half": np.float32(0.5)}, (2, 4, 4))
    after, repaired, _ = fixed_model(model, None)
    assert repaired == {"explicit-zero-point": ("w", "q", "dq")}
    graph = read_graph(after)
    types = {node.name: graph.constants[node.input[2]].dtype for node in graph.nodes if node.name in ("w", "q", "dq")}
    assert types == {"w": np.int8, "q": np.uint8, "dq": np.uint8}
    assert same_bits(model, after)


def test_clip_of_a_constants_codes_is_stored_and_another_stays() -> None:
    nodes = [
        helper.make_node("Clip", ["codes", "low", "high"], ["clipped"], "clip"),
        helper.make_node("DequantizeLinear", ["clipped", "half", "zero"], ["weight"], "w"),
        helper.make_node("Conv", ["x.values", "weight"], ["y"], "layer"),
    ]
    codes = np.array([-128, -127, 5, 127], np.int8).reshape(2, 2, 1, 1)
    constants: dict[str, npt.ArrayLike] = {"codes": codes, "half": np.float32(0.5)}
    constants |= {"low": np.int8(-127), "high": np.int8(100)}
    model = around(nodes, constants, (2, 4, 4))
    after, repaired, refused = fixed_model(model, "tensorrt")
    assert (repaired, refused) == ({"clip-on-codes": ("clip",)}, {})
    assert [node.op_type for node in after.graph.node if node.op_type == "Clip"] == []
    graph = read_graph(after)
    layer = next(node for node in graph.nodes if node.name == "w")
    assert graph.constants[layer.input[0]].reshape(-1).tolist() == [-127, -127, 5, 100]
    assert "codes" not in graph.constants
    assert same_bits(model, after)
    activation = BAD_MODELS["clip-on-codes"].model()
    assert fixed_model(activation, "tensorrt")[1] == {}


def double_pair(second: float) -> onnx.ModelProto:
    """A tensor that is quantized with the step 0.5 and then with another one."""
    grids = {"one": np.float32(0.5), "two": np.float32(second)}
    nodes = [helper.make_node("Relu", ["x.values"], ["r"])]
    for name, source in (("one", "r"), ("two", "one.values")):
        nodes += [
            helper.make_node("QuantizeLinear", [source, name, "zero"], [f"{name}.codes"], f"{name}.q"),
            helper.make_node("DequantizeLinear", [f"{name}.codes", name, "zero"], [f"{name}.values"], f"{name}.dq"),
        ]
    nodes.append(helper.make_node("Abs", ["two.values"], ["y"]))
    return around(nodes, grids, (2, 4, 4))


def test_second_pair_goes_only_where_it_is_on_the_same_grid() -> None:
    same, other = double_pair(0.5), double_pair(0.25)
    after, repaired, _ = fixed_model(same, None)
    assert repaired == {"double-quantization": ("two.q",)}
    assert [node.name for node in after.graph.node if node.name] == [
        *("x.codes", "x.values", "one.q", "two.dq", "y.codes", "logits")
    ]
    assert same_bits(same, after)
    assert fixed_model(other, None)[1] == {}
    assert fixed_model(other, None)[0] == other


def test_a_second_quantizer_that_is_an_output_stays() -> None:
    model = double_pair(0.5)
    model.graph.output.append(helper.make_tensor_value_info("two.codes", TensorProto.INT8, None))
    assert fixed_model(model, None)[1] == {}


def test_uint8_around_128_becomes_int8_for_tensorrt_only() -> None:
    model = residual_net("onnxruntime", 0)
    assert fixed_model(model, "onnxruntime")[1] == {}
    after, repaired, _ = fixed_model(model, "tensorrt")
    graph = read_graph(after)
    changed = {graph.constants[node.input[2]].dtype for node in graph.nodes if node.name in repaired["unsigned-codes"]}
    assert changed == {np.dtype(np.int8)}
    assert {node for node in repaired["unsigned-codes"] if node.startswith("two.skip")} == {
        "two.skip.codes",
        "two.skip.values",
    }
    assert same_bits(model, after)
    left = {finding.node for finding in lint(after, "tensorrt") if finding.rule == "unsigned-codes"}
    assert "stem.out.wide" in left  # its zero point is 0: another range
    assert not left & set(repaired["unsigned-codes"])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("as_floats", [False, True])
def test_transposed_weight_is_stored_as_the_layer_reads_it(per_channel: bool, as_floats: bool) -> None:
    rng = np.random.default_rng(0)
    scales = (2.0 ** -rng.integers(2, 6, 3)).astype(np.float32) if per_channel else np.float32(0.25)
    zeros = np.zeros(np.shape(scales), np.int8)
    codes = rng.integers(-127, 128, (3, 32)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["weight"], "w", axis=0),
        helper.make_node("Transpose", ["weight"], ["turned"], "turn"),
        helper.make_node("Flatten", ["x.values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "turned"], ["y"], "fc"),
    ]
    constants = {"codes": codes, "s": scales, "z": zeros}
    if as_floats:  # floats that the file quantizes itself
        nodes.insert(0, helper.make_node("QuantizeLinear", ["floats", "s", "z"], ["codes"], "wq", axis=0))
        wide = scales.reshape(-1, 1) if per_channel else scales
        constants = {"floats": (codes * wide).astype(np.float32), "s": scales, "z": zeros}
    model = around(nodes, constants, (2, 4, 4))
    after, repaired, _ = fixed_model(model, None)
    assert repaired == {"transposed-weight": ("fc",)}
    assert [node.op_type for node in after.graph.node].count("Transpose") == 0
    assert {tensor.name for tensor in after.graph.initializer}.isdisjoint({"codes", "floats"})
    assert same_bits(model, after)


def test_a_weight_that_others_read_untransposed_stays_for_them() -> None:
    model = BAD_MODELS["transposed-weight"].model()
    model.graph.output.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [3, 32]))
    after, repaired, _ = fixed_model(model, None)
    assert repaired == {"transposed-weight": ("fc",)}
    assert same_bits(model, after)


def test_a_repair_that_changes_a_bit_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: onnx.ModelProto) -> list[str]:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "codes")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.int8(1), "codes"))
        return ["w"]

    monkeypatch.setattr(lint_fix, "REPAIRS", {"scalar-scale": wrong})
    model = BAD_MODELS["bias-grid"].model()
    after, repaired, refused = fixed_model(model, None)
    assert after == model
    assert (repaired, refused) == ({}, {"scalar-scale": "the output logits would change"})


def test_our_own_file_is_left_as_it_is(tmp_path: Path) -> None:
    for target in ("tensorrt", "onnxruntime"):
        path, output = saved(residual_net(target, 0), tmp_path), tmp_path / "fixed.onnx"
        fixed = fix_file(path, output, target)
        assert (fixed.repaired, fixed.refused, fixed.left) == ({}, {}, ())
        assert onnx.load(output) == onnx.load(path)


def test_several_flaws_are_repaired_at_once_and_the_rest_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_constant(residual_net("tensorrt", 0), "stem.out.scale", np.full(1, 2**-5, np.float32))
    model.ir_version = 9
    model = with_constant(model, "input.scale", np.float32(-1))
    path, output = saved(model, tmp_path), tmp_path / "new" / "fixed.onnx"
    assert fix(path, output, None, "json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["repaired"] == {"ir-version": ["the file"], "scalar-scale": ["stem.out.codes", "stem.out.values"]}
    assert {finding["rule"] for finding in said["findings"]} >= {"scale-positive"}
    assert onnx.load(output).ir_version == 8
    assert fix(path, output, None) == 1
    out = capsys.readouterr().out
    assert "repaired scalar-scale: stem.out.codes, stem.out.values\n" in out
    assert f"Wrote {output}: every output is bitwise the same in onnxruntime, on random input.\n" in out
    assert "scale-positive" in out


def test_nothing_is_written_over_the_file_or_without_a_proof(tmp_path: Path) -> None:
    path = saved(BAD_MODELS["scalar-scale"].model(), tmp_path)
    content = path.read_bytes()
    with pytest.raises(InputError, match="is the file itself"):
        fix_file(path, path)
    assert path.read_bytes() == content
    model = onnx.load(path)
    model.graph.node[-1].op_type = "Nonsense"
    onnx.save(model, path)
    with pytest.raises(InputError, match="does not run the model"):
        fix_file(path, tmp_path / "fixed.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_data_outside_the_folder_is_not_read_for_a_repair(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(BAD_MODELS["external-data"].model().SerializeToString())
    with pytest.raises(InputError, match="can't be repaired: the weight codes lies in"):
        fix_file(path, tmp_path / "fixed.onnx")


def test_every_repair_belongs_to_a_rule() -> None:
    assert set(REPAIRS) <= set(RULES)
