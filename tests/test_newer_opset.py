"""Operator set 21: every net of ours means the same there, and what would not is refused by name."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.errors import InputError
from engines.newer_opset import at_int4_opset, is_same_there, opset
from faq_deploy.emit import emit_graph
from tests.constructs import CONSTRUCTS
from tests.int4_nets import unoptimized
from tests.nets import with_statistics
from tests.quantized import images, make_recipe, quantized_net


def emitted(name: str) -> onnx.ModelProto:
    torch.manual_seed(7)
    model = CONSTRUCTS[name]()
    with torch.no_grad():
        model.eval()(images(2))  # lazy layers take their shape
    net = quantized_net(with_statistics(model).eval(), make_recipe()).net
    graph = emit_graph(net, "tensorrt")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("name", sorted(CONSTRUCTS))
def test_every_construct_computes_the_same_there(name: str) -> None:
    model = emitted(name)
    newer = at_int4_opset(model)
    assert (opset(newer), newer.ir_version) == (21, 10)
    onnx.checker.check_model(newer, full_check=True)
    batch = images(3, seed=4).numpy()
    assert np.array_equal(unoptimized(newer, batch), unoptimized(model, batch))


def one_node(node: onnx.NodeProto, version: int, *constants: onnx.TensorProto, outputs: int = 1) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output[:outputs]],
        list(constants),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


def evaluated(model: onnx.ModelProto, x: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, {"x": x})]


@pytest.mark.parametrize("kind", ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"])
@pytest.mark.parametrize("axes", [[1], [1, 2], None])
def test_axes_of_reductions_become_an_input(kind: str, axes: list[int] | None) -> None:
    node = helper.make_node(f"Reduce{kind}", ["x"], ["y"], keepdims=0)
    if axes is not None:
        node.attribute.append(helper.make_attribute("axes", axes))
    model = one_node(node, 13)
    newer = at_int4_opset(model)
    assert len(newer.graph.node[0].input) == (1 if axes is None else 2)
    x = np.random.default_rng(0).uniform(1, 2, size=(3, 4, 6)).astype(np.float32)
    before, after = (evaluated(m, x)[0] for m in (model, newer))
    assert np.array_equal(before, after)


def test_a_split_into_equal_parts_says_how_many() -> None:
    model = one_node(helper.make_node("Split", ["x"], ["a", "b"], axis=1), 13, outputs=2)
    newer = at_int4_opset(model)
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    found = evaluated(newer, x)
    assert [np.array_equal(part, x[:, half]) for part, half in zip(found, (slice(2), slice(2, 4)), strict=True)] == [
        True,
        True,
    ]
    sizes = numpy_helper.from_array(np.array([1, 3], np.int64), "sizes")
    given = one_node(helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1), 13, sizes, outputs=2)
    assert at_int4_opset(given).graph.node[0] == given.graph.node[0]


@pytest.mark.parametrize(
    ("node", "version", "says"),
    [
        (helper.make_node("RoiAlign", ["x", "r", "b"], ["y"], "align"), 13, "RoiAlign align means something else"),
        (
            helper.make_node("AveragePool", ["x"], ["y"], "pool", kernel_shape=[2], ceil_mode=1, pads=[1, 1]),
            13,
            "AveragePool p",
        ),
        (helper.make_node("NoSuchOperator", ["x"], ["y"], "odd"), 13, "NoSuchOperator odd means something else"),
        (helper.make_node("Relu", ["x"], ["y"]), 11, "operator set 11, too old to hold INT4"),
    ],
)
def test_what_would_mean_something_else_is_refused(node: onnx.NodeProto, version: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        at_int4_opset(one_node(node, version))


def test_a_newer_file_stays_as_new_as_it_is() -> None:
    model = one_node(helper.make_node("Relu", ["x"], ["y"]), 22)
    assert opset(at_int4_opset(model)) == 22


def test_settings_that_operator_set_21_brought_keep_a_file_there() -> None:
    model = one_node(helper.make_node("DequantizeLinear", ["x", "s"], ["y"], axis=1), 21)
    assert is_same_there(model, 13)
    model.graph.node[0].attribute.append(helper.make_attribute("block_size", 2))
    assert not is_same_there(model, 13)
    assert not is_same_there(model, 12)
