"""What an engine runs: predicted from the graph, or read from the engine's own account."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from engines.engine_plan import EnginePlan, FloatIsland, Share, inspected, predict, sentences
from engines.errors import InputError
from engines.int8_rules import Convolution, no_int8_kernel
from faq_deploy.onnx_export import export_onnx
from faq_deploy.recipe import override
from tests.layer_forms import layer
from tests.nets import Small, with_statistics
from tests.onnx_nets import residual_net, with_input
from tests.quantized import images, make_recipe, quantized_net

ROW_MAJOR, WIDE = "Row major linear FP32", "Thirty-two wide channel vectorized row major Int8 format"


def exported(model: nn.Module, folder: Path, **changes: object) -> onnx.ModelProto:
    recipe = override(make_recipe("tensorrt"), {f"layers.{key}": value for key, value in changes.items()})
    path = folder / "model.onnx"
    export_onnx(
        quantized_net(with_statistics(model), recipe), path, images(4).numpy(), versions={}, checkpoint_sha256=""
    )
    return onnx.load(path)


def test_residual_net_is_predicted_to_run_all_in_int8() -> None:
    plan = predict(residual_net("tensorrt", 0), 86)
    assert plan == EnginePlan(
        source="predicted",
        convolutions=Share(int8=10, all=10),
        adds=Share(int8=2, all=2),
        concats=Share(int8=1, all=1),
        pools=2,
    )
    assert sentences(plan) == [
        "Predicted from the graph, not measured: 10 of 10 convolutions, 2 of 2 adds, 1 of 1 concats in INT8; "
        "0 reformats.",
        "From codes to codes, in between in float: 2 average pools.",
    ]


def test_unquantized_skip_input_makes_the_add_an_island_with_its_cure() -> None:
    net = residual_net("tensorrt", 0)
    down = next(node for node in net.graph.node if node.name == "two.down")
    plan = predict(with_input(net, "two.add", 1, down.output[0]))
    assert plan.adds == Share(int8=1, all=2)
    (island,) = plan.islands
    assert island.nodes == ("two.add",)
    assert island.edit == "Put Q and DQ on the skip input."
    assert plan.reformats == 1
    assert sentences(plan)[-1].startswith("In float: two.add. Its skip input ")


def test_unequal_concat_scales_are_named() -> None:
    net = residual_net("tensorrt", 0)
    for tensor in net.graph.initializer:
        if tensor.name.startswith("right.out") and "scale" in tensor.name:
            value = numpy_helper.to_array(tensor) * np.float32(2)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    plan = predict(net)
    assert plan.concats == Share(int8=0, all=1)
    assert plan.islands[0].edit == "Give all its inputs the largest of these scales."


def test_skipped_layer_is_one_island_with_its_module(tmp_path: Path) -> None:
    model = exported(Small(), tmp_path, skip=["stem"])
    plan = predict(model)
    assert plan.convolutions.all - plan.convolutions.int8 == 1
    (island,) = plan.islands
    assert len(island.nodes) == 1
    assert island.modules == ("stem",)
    assert island.edit.startswith(("Quantize its weight", "Quantize it"))


def test_silu_is_a_function_between_codes_and_no_island(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.LazyLinear(5))
    net.eval()(images(1))
    plan = predict(exported(net, tmp_path))
    assert (plan.functions, plan.islands, plan.convolutions) == (1, (), Share(int8=2, all=2))


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ((12, 12, 4), "the channels of a group must be a multiple of 4, both in and out"),
        ((10, 10, 5), "the channels of a group must be a multiple of 4, both in and out"),
        ((30, 30, 3), "the channels of a group must be a multiple of 4, both in and out"),
        ((6, 6, 6), None),
        ((64, 64, 2), None),
        ((3, 8, 1), None),
    ],
)
def test_grouped_convolution_has_an_int8_kernel_by_the_table(sizes: tuple[int, int, int], why: str | None) -> None:
    inputs, outputs, groups = sizes
    assert no_int8_kernel(Convolution(inputs, outputs, groups)) == why
    plan = predict(layer("Conv", (inputs, 6, 6), (outputs, inputs // groups, 3, 3), group=groups))
    assert plan.convolutions == Share(int8=int(why is None), all=1)
    assert [why in island.reason for island in plan.islands] == [True] * (why is not None) if why else not plan.islands


def test_float_gemm_of_a_foreign_file_is_an_island() -> None:
    plan = predict(layer("Gemm", (8,), (5, 8), transB=1, quantized=False))
    assert plan.linears == Share(int8=0, all=1)
    assert plan.islands[0].reason == "Only its input is quantized, so that it runs in float."
    assert plan.islands[0].edit == "Quantize its weight too, or neither."
    assert plan.reformats == 2


def test_int4_weight_is_counted_and_no_island() -> None:
    model = layer("Gemm", (8,), (4, 8), transB=1)
    for tensor in model.graph.initializer:
        if tensor.name in {"w.codes_", "w.zero"}:
            codes = numpy_helper.to_array(tensor) // 16
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.INT4, codes.shape, codes.reshape(-1).tolist()))
    plan = predict(model)
    assert (plan.linears, plan.int4_linears, plan.islands) == (Share(int8=0, all=1), 1, ())
    assert "1 of the linear layers with INT4 weights, multiplied in float" in sentences(plan)[0]


def test_two_float_layers_in_a_row_are_one_island() -> None:
    chain = residual_net("tensorrt", 0)
    for name in ("one.a", "one.b"):
        node = next(node for node in chain.graph.node if node.name == name)
        weight = numpy_helper.from_array(np.zeros(_weight_shape(chain, node), np.float32), f"{name}.float")
        chain.graph.initializer.append(weight)
        node.input[1] = weight.name
    made_by = {name: node for node in chain.graph.node for name in node.output}
    behind = next(node for node in chain.graph.node if node.name == "one.b")
    quantize = made_by[made_by[behind.input[0]].input[0]]
    behind.input[0] = quantize.input[0]  # past its Q and DQ
    islands = predict(chain).islands
    assert [island.nodes for island in islands if "one.a" in island.nodes] == [("one.a", "one.b", "one.add")]


def test_a_long_list_of_islands_is_cut() -> None:
    island = FloatIsland(nodes=("a", "b", "c", "d"), reason="Because.", edit="Change it.")
    said = sentences(EnginePlan(source="predicted", islands=(island,) * 7, unseen=2))
    assert said[1] == "In float: a, b, c and 1 more. Because. Change it."
    assert said[-1] == "2 more parts are in float; --json lists them."
    assert "nothing in INT8" in said[0]


def account(model: onnx.ModelProto, floats: Sequence[str] = (), hidden: Sequence[str] = ()) -> str:
    """A record in the engine inspector's format: one layer a convolution, with the add that fuses with it."""
    layers: list[dict[str, object]] = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Add", "Concat") or node.name in hidden:
            continue
        kind = WIDE if node.name not in floats else ROW_MAJOR
        names = [node.name, f"{node.name}.relu"]
        layers.append(
            {
                "Name": " + ".join(names),
                "LayerType": "CaskConvolution" if node.op_type == "Conv" else "PointWiseV2",
                "Inputs": [{"Name": node.input[0], "Format/Datatype": kind}],
                "Outputs": [{"Name": node.output[0], "Format/Datatype": kind}],
                **({"Weights": {"Type": "Int8", "Count": 9}} if node.op_type == "Conv" else {}),
                "Metadata": "\x1f".join(f"[ONNX Layer: {name}]" for name in names),
            }
        )
    taken = [{"Name": "input", "Format/Datatype": ROW_MAJOR}]
    layers.append({"Name": "in", "LayerType": "Reformat", "Inputs": taken, "Outputs": [], "Origin": "QDQ"})
    layers.append({"Name": "copy", "LayerType": "Reformat", "Inputs": [], "Outputs": [], "Origin": "REFORMAT"})
    return json.dumps({"Layers": layers, "Bindings": ["input", "logits"]})


def test_the_engines_own_account_counts_what_it_reads() -> None:
    net = residual_net("tensorrt", 0)
    plan = inspected(account(net), net)
    assert plan == EnginePlan(
        source="inspected",
        convolutions=Share(int8=10, all=10),
        adds=Share(int8=2, all=2),
        concats=Share(int8=1, all=1),
        pools=2,
        reformats=1,
    )
    assert sentences(plan)[0].startswith("The engine's own account: 10 of 10 convolutions")


def test_a_layer_that_the_engine_runs_in_float_is_named() -> None:
    net = residual_net("tensorrt", 0)
    plan = inspected(account(net, floats=["two.b"], hidden=["joined"]), net)
    assert (plan.convolutions, plan.concats, plan.unseen) == (Share(int8=9, all=10), Share(), 1)
    (island,) = plan.islands
    assert island.nodes == ("two.b",)
    assert ROW_MAJOR in island.reason
    assert island.edit == "None is known: its Q and DQ are as INT8 needs them."


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"Layers": ["conv + relu"], "Bindings": []}', '{"Layers": 3}'])
def test_an_account_without_details_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="engine inspector"):
        inspected(text, residual_net("tensorrt", 0))


def _weight_shape(model: onnx.ModelProto, node: onnx.NodeProto) -> tuple[int, ...]:
    dequantize = next(n for n in model.graph.node if node.input[1] in n.output)
    (codes,) = (t for t in model.graph.initializer if t.name == dequantize.input[0])
    return tuple(codes.dims)
