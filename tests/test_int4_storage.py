"""4-bit weights in a file: packed and unpacked they are the same integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from engines.int4 import pack_int4, unpack_int4
from engines.int4_tensor import fits_int4, store_as_int4, store_as_int8
from engines.qdq_graph import load_model, opset, read_graph
from tests.int4_nets import batch_of, exported, four_bit, plain_net, types, unoptimized
from tests.quantized import images


@given(arrays.arrays(np.int8, arrays.array_shapes(min_dims=0, max_dims=4, max_side=5), elements=st.integers(-8, 7)))
def test_packed_codes_come_back_whatever_their_shape_and_count(codes: npt.NDArray[np.int8]) -> None:
    tensor = numpy_helper.from_array(codes, "codes")
    assert fits_int4(tensor)
    store_as_int4(tensor)
    assert len(tensor.raw_data) == (codes.size + 1) // 2
    onnx.checker.check_tensor(tensor)
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)  # onnx reads the same
    store_as_int8(tensor)
    assert tensor == numpy_helper.from_array(codes, "codes")


@pytest.mark.parametrize(("code", "fits"), [(-9, False), (-8, True), (7, True), (8, False)])
def test_codes_beyond_four_bits_do_not_fit(code: int, fits: bool) -> None:
    assert fits_int4(numpy_helper.from_array(np.array([0, code], np.int8))) is fits


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("bits", [8, 4])
def test_packing_is_undone_to_the_byte_and_changes_no_logit(target: str, bits: int, tmp_path: Path) -> None:
    model = load_model(exported(tmp_path, target, bits))
    packed = pack_int4(model)
    onnx.checker.check_model(packed, full_check=True)
    assert (opset(packed), packed.ir_version) == (21, 10)
    names = ["fc"] if bits == 8 else ["blocks_0_conv1", "blocks_0_conv2", "blocks_1_conv1", "blocks_1_conv2"]
    assert {types(packed)[f"{name}.weight_codes"] for name in names} == {TensorProto.INT4}
    assert {types(packed)[f"{name}.weight_zero_point"] for name in names} == {TensorProto.INT4}
    assert types(packed)["stem.weight_codes"] == TensorProto.INT8
    batch = images(5, seed=3).numpy()
    assert np.array_equal(unoptimized(packed, batch), unoptimized(model, batch))
    back = unpack_int4(packed)
    assert (opset(back), back.ir_version) == (13, 8)
    assert back.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_net_without_four_bit_weights_is_the_same_object(tmp_path: Path) -> None:
    model = load_model(exported(tmp_path, int4_linear=False))
    assert pack_int4(model) is model
    assert unpack_int4(model) is model


def test_codes_that_something_else_reads_stay() -> None:
    model = plain_net("Gemm", four_bit((4, 6)), point=np.int8(0))
    model.graph.node.append(helper.make_node("Cast", ["codes"], ["seen"], "seen", to=TensorProto.FLOAT))
    assert pack_int4(model) is model


def test_other_tools_uint4_with_a_zero_point_becomes_int8() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (4, 6), dtype=np.int8)
    plain = plain_net("MatMul", codes, point=np.int8(7))
    packed = onnx.ModelProto()
    packed.CopyFrom(plain)
    for tensor in packed.graph.initializer:
        if tensor.name in ("codes", "point"):
            values = numpy_helper.to_array(tensor).reshape(-1).astype(int).tolist()
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.UINT4, tensor.dims, values))
    packed.graph.value_info.append(helper.make_tensor_value_info("codes", TensorProto.UINT4, [4, 6]))
    back = unpack_int4(packed)
    assert {types(back)["codes"], types(back)["point"]} == {TensorProto.INT8}
    assert back.graph.value_info[0].type.tensor_type.elem_type == TensorProto.INT8
    graph = read_graph(back)
    assert np.array_equal(graph.constants["codes"], codes)
    assert graph.constants["point"] == 7
    batch = batch_of(plain)
    assert np.array_equal(unoptimized(back, batch), unoptimized(packed, batch))
    assert opset(back) == 21


def test_int4_that_is_moved_before_it_is_dequantized_is_unpacked() -> None:
    model = plain_net("MatMul", four_bit((6, 4)), inputs=4)
    model.graph.node.insert(2, helper.make_node("Transpose", ["codes"], ["turned"], "turn", perm=[1, 0]))
    model.graph.node[3].input[0] = "turned"
    store_as_int4(next(tensor for tensor in model.graph.initializer if tensor.name == "codes"))
    back = unpack_int4(model)
    assert types(back)["codes"] == TensorProto.INT8
    assert np.array_equal(unoptimized(back, batch_of(model)), unoptimized(model, batch_of(model)))


def test_a_quantizer_to_int4_keeps_its_type_where_it_shares_a_zero_point() -> None:
    model = plain_net("Gemm", four_bit((4, 6)), point=np.int8(0))
    for tensor in model.graph.initializer:
        if tensor.name in ("codes", "point"):
            store_as_int4(tensor)
    model.graph.node[0].input[2] = model.graph.node[1].input[2] = "point"
    back = unpack_int4(model)
    assert types(back)["codes"] == TensorProto.INT8
    assert types(back)["point"] == TensorProto.INT4
    assert types(back)["point.int8"] == TensorProto.INT8
    batch = 4 * batch_of(model)  # beyond what 4 bits hold: the quantizer has to clip as before
    assert np.array_equal(unoptimized(back, batch), unoptimized(model, batch))
