"""What differs between two files that should be one: constants by layer, preprocessing and classes by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.file_changes import changed_constants, changed_facts
from engines.qdq_graph import QdqGraph, read_graph
from tests.onnx_nets import residual_net, with_constant


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return residual_net("tensorrt", 0)


def constant_of(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def first_conv(model: onnx.ModelProto) -> tuple[str, str, str]:
    """A layer, its weight codes and their scale."""
    graph = read_graph(model)
    layer = next(node for node in graph.nodes if node.op_type == "Conv")
    reader = graph.producer[layer.input[1]]
    return str(layer.name), reader.input[0], reader.input[1]


def found(model: onnx.ModelProto, changed: onnx.ModelProto) -> list[str]:
    return [str(change) for change in changed_constants(read_graph(model), read_graph(changed))]


def test_equal_files_have_no_changes(model: onnx.ModelProto) -> None:
    assert found(model, residual_net("tensorrt", 0)) == []


def test_a_code_is_named_with_its_channel(model: onnx.ModelProto) -> None:
    layer, weight, _ = first_conv(model)
    codes = constant_of(model, weight).copy()
    codes[1].flat[0] -= 3
    assert found(model, with_constant(model, weight, codes)) == [
        f"{layer}: 1 of {codes.size:,} codes of {weight} differs by 3, in channel 1"
    ]
    changes = changed_constants(read_graph(model), read_graph(with_constant(model, weight, codes)), {layer: "body.0"})
    assert [(c.layer, c.module, c.role, c.count, c.largest, c.channel) for c in changes] == [
        (layer, "body.0", "codes", 1, 3.0, 1)
    ]
    assert str(changes[0]).startswith(f"{layer} (module body.0): ")


def test_a_scale_is_named_with_its_factor(model: onnx.ModelProto) -> None:
    layer, _, scale = first_conv(model)
    doubled = constant_of(model, scale) * np.float32(2)
    (said,) = found(model, with_constant(model, scale, doubled))
    assert said.startswith(f"{layer}: ") and said.endswith("by a factor of 2")


def test_the_grid_of_an_activation_belongs_to_the_layer_that_makes_it(model: onnx.ModelProto) -> None:
    scale = constant_of(model, "stem.out.scale") * np.float32(0.5)
    (said,) = found(model, with_constant(model, "stem.out.scale", scale))
    assert said == "stem: the scale stem.out.scale differs by a factor of 0.5"


def test_another_shape_is_a_change(model: onnx.ModelProto) -> None:
    layer, weight, _ = first_conv(model)
    codes = constant_of(model, weight)
    changes = changed_constants(graph_of(model), graph_of(with_constant(model, weight, codes[:1])))
    assert [(change.layer, change.tensor) for change in changes] == [(layer, weight)]


def graph_of(model: onnx.ModelProto) -> QdqGraph:
    return read_graph(model)


RIGHT = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "color": "RGB"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        (
            {"mean": [0.2, 0.2, 0.1], "std": [0.5, 0.4, 0.3]},
            ["mean and std are swapped: mean 0.2,0.2,0.1, std 0.5,0.4,0.3"],
        ),
        ({"mean": [0.3, 0.4, 0.5]}, ["mean is 0.3,0.4,0.5 in the order of BGR, not 0.5,0.4,0.3"]),
        ({"color": "L"}, ["color is L, not RGB"]),
    ],
)
def test_preprocessing_is_compared_by_name(change: dict[str, object], said: list[str]) -> None:
    assert list(changed_facts({"preprocessing": RIGHT}, {"preprocessing": RIGHT | change})) == said


def test_classes_are_compared_in_their_order() -> None:
    names = ["ant", "bee", "cat"]
    assert list(changed_facts({"classes": names}, {"classes": ["bee", "ant", "cat"]})) == [
        "the classes are in another order: 2 of 3 moved, first bee to ant's place"
    ]
    assert list(changed_facts({"classes": names}, {"classes": ["ant", "bee", "fox"]})) == [
        "1 of the 3 classes are unknown to the run"
    ]
    assert list(changed_facts({"classes": names}, {})) == []
