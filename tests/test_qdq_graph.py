"""Reading a graph: weights in another file, constants, zero points, names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.errors import InputError
from engines.lint import lint
from engines.qdq_graph import attributes, label, load_model, opset, read_graph, zero_points
from tests.onnx_nets import around, residual_net, saved, with_constant, with_input


@pytest.fixture
def trt() -> onnx.ModelProto:  # each test its own: onnx.save takes the weights out of what it saves apart
    return residual_net("tensorrt", 0)


def test_external_data_has_the_findings_of_its_embedded_twin(trt: onnx.ModelProto, tmp_path: Path) -> None:
    bad = with_constant(trt, "stem.weight_scale", np.zeros(8, np.float32))
    embedded = lint(load_model(saved(bad, tmp_path)))
    apart = tmp_path / "apart" / "model.onnx"
    apart.parent.mkdir()
    onnx.save(bad, apart, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert lint(load_model(apart)) == embedded
    assert [finding.rule for finding in embedded] == ["scale-positive"]


@pytest.mark.parametrize("location", ["absent.bin", "../outside.bin", "short.bin"])
def test_external_data_that_is_missing_short_or_outside_is_refused(
    trt: onnx.ModelProto, location: str, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "model.onnx"
    path.parent.mkdir()
    onnx.save(trt, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    content = (path.parent / "weights.bin").read_bytes()
    (tmp_path / "outside.bin").write_bytes(content)
    (path.parent / "short.bin").write_bytes(content[: len(content) // 2])
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"model\.onnx keeps weights in another file that could not be read"):
        load_model(path)


def test_codes_are_found_in_graph_order_with_their_zero_points() -> None:
    graph = read_graph(residual_net("onnxruntime", 0))
    assert graph.code_names[:3] == ("input.codes", "stem.out.codes", "one.a.out.codes")
    points = zero_points(graph)
    assert list(points) == list(graph.code_names)
    assert (points["input.codes"], points["stem.out.codes"], points["two.skip.codes"]) == (64, 0, 128)
    assert (graph.input_name, graph.input_shape, graph.logits_name) == ("input", (None, 3, 33, 33), "logits")


def test_codes_that_nothing_dequantizes_are_refused_by_name(trt: onnx.ModelProto) -> None:
    graph = read_graph(with_input(trt, "two.skip.values", 0, "two.out.codes"))
    with pytest.raises(InputError, match=r"two\.skip\.codes is read by no DequantizeLinear"):
        zero_points(graph)


def test_constant_nodes_are_constants_of_the_graph() -> None:
    tensor = numpy_helper.from_array(np.array([1, 2], np.int8))
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["shape"], value_ints=[3, 4]),
        helper.make_node("Constant", [], ["codes"], value=tensor),
        helper.make_node("Relu", ["x.values"], ["y"]),
    ]
    graph = read_graph(around(nodes, {}, (1, 2, 2)))
    assert graph.constants["half"].tolist() == 0.5
    assert graph.constants["shape"].tolist() == [3, 4]
    assert graph.constants["codes"].tolist() == [1, 2]
    assert "Constant" not in {node.op_type for node in graph.nodes}


def test_attributes_are_plain_values_and_unnamed_nodes_have_labels() -> None:
    node = helper.make_node("Conv", ["x"], ["y"], pads=[1, 2], group=3, auto_pad="VALID", alpha=0.5)
    assert attributes(node) == {"pads": (1, 2), "group": 3, "auto_pad": "VALID", "alpha": 0.5}
    assert label(node) == "Conv y"
    assert opset(residual_net("tensorrt", 0)) == 13


@pytest.mark.parametrize("count", [0, 2])
def test_a_net_has_one_input(trt: onnx.ModelProto, count: int, tmp_path: Path) -> None:
    given = onnx.ValueInfoProto()
    given.CopyFrom(trt.graph.input[0])
    del trt.graph.input[:]
    for i in range(count):
        given.name = f"input{i}"
        trt.graph.input.append(given)
    with pytest.raises(InputError, match=f"has {count} inputs"):
        load_model(saved(trt, tmp_path))


def test_outputs_of_codes_are_told_from_outputs_of_numbers(trt: onnx.ModelProto) -> None:
    trt.graph.output.append(helper.make_tensor_value_info("stem.out.codes", onnx.TensorProto.INT8, None))
    trt.graph.output.append(helper.make_tensor_value_info("two.skip.values", onnx.TensorProto.FLOAT, None))
    graph = read_graph(trt)
    assert graph.output_names == ("logits", "stem.out.codes", "two.skip.values")
    assert graph.float_outputs == ("logits", "two.skip.values")
    del trt.graph.output[0]
    assert read_graph(trt).logits_name == "two.skip.values"
