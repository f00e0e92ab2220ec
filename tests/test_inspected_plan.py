"""What an engine's own account is read to say, in the three forms that TensorRT's versions give it.

The records below are of a net of ours; their fields are those of real accounts: TensorRT 8 in the examples of NVIDIA's
TREx (tools/experimental/trt-engine-explorer in NVIDIA/TensorRT, ResNet "qat" and "qat-residual-qgap"), TensorRT 10 in
issues 4020 and 3737 of NVIDIA/TensorRT. TensorRT 11 keeps layout and type in two fields: their names are those of the
network's input in its migration guide ("IEngineInspector JSON Output"), whose example shows no layer; no account of
TensorRT 11 was seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import onnx
import pytest

from engines.engine_plan import Share, inspected
from tests.onnx_nets import residual_net

Version = Literal[8, 10, 11]
Tensor = dict[str, object]
Record = dict[str, object]

WIDE = "Thirty-two wide channel vectorized row major Int8 format"
WIDE_HALF = "Thirty-two wide channel vectorized row major FP16 format"
LINEAR = "Row major linear FP32"
LAYOUT = {  # what TensorRT 11 says of them in two fields
    WIDE: ("Thirty-two wide channel vectorized row major format (kCHW32)", "Int8"),
    WIDE_HALF: ("Thirty-two wide channel vectorized row major format (kCHW32)", "Half"),
    LINEAR: ("Row major linear FP32 format (kLINEAR)", "Float"),
}


@pytest.fixture
def net() -> onnx.ModelProto:
    return residual_net("tensorrt", 0)


def tensor(name: str, said: str, version: Version) -> Tensor:
    found: Tensor = {"Name": name, "Location": "Device", "Dimensions": [1, 8, 16, 16]}
    if version < 11:
        return found | {"Format/Datatype": said}
    return found | {"Format": LAYOUT[said][0], "DataType": LAYOUT[said][1]}


def convolution(nodes: Sequence[str], inputs: Sequence[str], version: Version, weights: str = "Int8") -> Record:
    """A convolution with what it has taken up, as TensorRT describes it."""
    record: Record = {
        "Name": " + ".join(nodes),
        "LayerType": "CaskConvolution",
        "Inputs": [tensor(f"{nodes[0]}.{place}", said, version) for place, said in enumerate(inputs)],
        "Outputs": [tensor(f"{nodes[-1]}.out", inputs[-1], version)],
        "ParameterType": "Convolution",
        "Weights": {"Type": weights, "Count": 36864},
        "Bias": {"Type": "Float", "Count": 64},
        "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved",
    }
    return record if version == 8 else record | {"Metadata": "\x1e".join(f"[ONNX Layer: {name}]" for name in nodes)}


def reformat(
    name: str, reads: str, version: Version, *, origin: str = "REFORMAT", metadata: str = "", said: str = LINEAR
) -> Record:
    return {
        "Name": name,
        "LayerType": "Reformat",
        "Inputs": [tensor(reads, said, version)],
        "Outputs": [tensor(f"{reads}.copied", WIDE, version)],
        "ParameterType": "Reformat",
        "Origin": origin,
        **({} if version == 8 else {"Metadata": metadata}),
    }


def account(layers: Sequence[Record], version: Version) -> str:
    ends = {"Bindings": ["input", "logits"]} if version < 11 else {"I/O Tensors": [{"Name": "input"}]}
    return json.dumps({"Layers": list(layers), **ends})


VERSIONS = pytest.mark.parametrize("version", [8, 10, 11])


@VERSIONS
def test_convolution_and_add_in_one_kernel_are_both_in_int8(net: onnx.ModelProto, version: Version) -> None:
    plan = inspected(account([convolution(["one.b", "one.add", "one.relu"], [WIDE, WIDE], version)], version), net)
    assert (plan.convolutions, plan.adds, plan.islands) == (Share(int8=1, all=1), Share(int8=1, all=1), ())
    assert plan.unseen == 11  # nine convolutions, an add and a concat that this account leaves out


@VERSIONS
def test_float_skip_input_leaves_the_convolution_in_int8_and_not_the_add(
    net: onnx.ModelProto, version: Version
) -> None:
    """TREx's "qat" example: codes and an FP16 skip input go into one kernel of INT8 weights."""
    plan = inspected(account([convolution(["one.b", "one.add", "one.relu"], [WIDE, WIDE_HALF], version)], version), net)
    assert (plan.convolutions, plan.adds) == (Share(int8=1, all=1), Share(int8=0, all=1))
    (island,) = plan.islands
    assert island.nodes == ("one.add",)
    assert "CaskConvolution" in island.reason
    assert ("FP16" in island.reason) == (version < 11)
    assert ("Half" in island.reason) == (version == 11)


@VERSIONS
def test_convolution_with_float_weights_is_not_in_int8(net: onnx.ModelProto, version: Version) -> None:
    plan = inspected(account([convolution(["one.a"], [LINEAR], version, weights="Float")], version), net)
    assert plan.convolutions == Share(int8=0, all=1)
    assert [island.nodes for island in plan.islands] == [("one.a",)]


@VERSIONS
def test_quantization_of_the_input_is_no_reformat_but_one_inside_is(net: onnx.ModelProto, version: Version) -> None:
    layers = [
        reformat("x.codes", "input", version, origin="QDQ"),
        reformat("one.relu.codes", "one.relu", version, origin="QDQ", said=WIDE_HALF),
        reformat("Reformatting CopyNode for Output Tensor 0 to one.pool", "one.pool", version),
    ]
    assert inspected(account(layers, version), net).reformats == 2


@VERSIONS
def test_copies_made_for_a_layer_are_not_that_layer(net: onnx.ModelProto, version: Version) -> None:
    title = "Reformatting CopyNode for Output Tensor 0 to one.b + one.add"
    layers = [convolution(["one.b", "one.add"], [WIDE, WIDE], version), reformat(title, "one.add.out", version)]
    plan = inspected(account(layers, version), net)
    assert (plan.convolutions, plan.adds, plan.reformats) == (Share(int8=1, all=1), Share(int8=1, all=1), 1)


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize("last", [WIDE, WIDE_HALF])
def test_concat_made_of_copies_is_in_int8_if_all_of_them_are(net: onnx.ModelProto, version: Version, last: str) -> None:
    copies = [
        reformat(f"{side} copy", side, version, metadata="[ONNX Layer: joined]", said=said)
        for side, said in (("left", WIDE), ("right", last))
    ]
    plan = inspected(account(copies, version), net)
    assert plan.concats == Share(int8=int(last == WIDE), all=1)
    assert len(plan.islands) == (last != WIDE)


def test_kernels_that_stand_side_by_side_are_told_apart(net: onnx.ModelProto) -> None:
    record = convolution(["left"], [WIDE], 8) | {"Name": "left + left.relu || right + right.relu"}
    assert inspected(account([record], 8), net).convolutions == Share(int8=2, all=2)


@pytest.mark.parametrize(
    ("tactic", "int8"), [("sm80_xmma_gemm_i8f32_i8i32_f32_tn_n", 1), ("sm80_xmma_gemm_f16f16_f16f16_f16_nn", 0)]
)
def test_where_the_weights_are_not_told_the_kernel_is(net: onnx.ModelProto, tactic: str, int8: int) -> None:
    record = convolution(["one.a"], [WIDE, LINEAR], 10) | {"TacticName": tactic, "LayerType": "gemm"}
    del record["Weights"]
    assert inspected(account([record], 10), net).convolutions == Share(int8=int8, all=1)


def test_bytes_without_a_sign_are_no_int8(net: onnx.ModelProto) -> None:
    record = convolution(["one.a"], [WIDE], 11)
    record["Inputs"] = [{"Name": "one.a.0", "Format": "Row major linear format", "DataType": "UInt8"}]
    assert inspected(account([record], 11), net).convolutions == Share(int8=0, all=1)
