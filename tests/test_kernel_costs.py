"""What kernels multiply and move: counted by hand on small nets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from engines.errors import InputError
from engines.kernel_costs import KernelCost, kernel_costs
from tests.engine_nets import classifier
from tests.onnx_nets import residual_net


def costs(path: Path) -> list[KernelCost]:
    return kernel_costs(onnx.load(path))


def test_every_number_of_a_classifier(tmp_path: Path) -> None:
    """16x16 images; what the convolution gives is averaged in float before it is quantized."""
    pixels, activations = 3 * 16 * 16, 8 * 16 * 16
    assert costs(classifier(tmp_path / "net.onnx")) == [
        KernelCost("x.quantize", "", "QuantizeLinear", False, 0, 0, 0, codes=pixels, floats=0, ends=pixels),
        KernelCost("conv", "", "Conv", True, 16 * 16 * 216, 216, 216, codes=pixels, floats=activations, ends=0),
        KernelCost("pool", "", "GlobalAveragePool", False, 0, 0, 0, codes=8, floats=activations, ends=0),
        KernelCost("head", "", "Conv", True, 80, 80, 80, codes=8, floats=0, ends=10),
    ]


def test_a_float_layer_is_not_counted_as_int8(tmp_path: Path) -> None:
    gemm = costs(classifier(tmp_path / "net.onnx", gemm=True))[-1]
    assert gemm == KernelCost("classifier", "", "Gemm", False, 80, 80, 4 * 80, codes=8, floats=0, ends=10)


def test_a_file_of_one_batch_size_costs_the_same_an_image(tmp_path: Path) -> None:
    fixed = classifier(tmp_path / "fixed.onnx", input_shape=(4, 3, 16, 16))
    assert costs(fixed) == costs(classifier(tmp_path / "open.onnx"))


def test_an_add_is_part_of_the_convolution_before_it_and_reads_the_skip() -> None:
    found = {cost.node: cost for cost in kernel_costs(residual_net("tensorrt", 0))}
    assert "one.add" not in found
    elements = 8 * 9 * 9  # a 33-pixel image behind two strides
    assert found["one.b"].codes == 3 * elements  # its input, the skip, its output
    assert found["one.a"].codes == 2 * elements
    assert (found["right"].macs, found["right"].int8) == (12 * 5 * 5 * 9, True)  # 12 groups of one channel


def test_codes_that_a_concat_moves_cost_their_reader_alone() -> None:
    """With a quantizer behind the concat, as for engines that need one there."""
    model = residual_net("tensorrt", 0)
    joined = next(node for node in model.graph.node if node.name == "joined" or "joined" in node.output)
    index = list(model.graph.node).index(joined)
    quantizer = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and "left" in node.input[0])
    grid = quantizer.input[1:]
    before = kernel_costs(model)
    joined.output[0] = "parts"
    node = onnx.helper.make_node
    model.graph.node.insert(index + 1, node("QuantizeLinear", ["parts", *grid], ["moved.codes"], "moved"))
    model.graph.node.insert(index + 2, node("DequantizeLinear", ["moved.codes", *grid], ["joined"], "moved.values"))
    assert kernel_costs(model) == before


def test_bytes_by_hand() -> None:
    cost = KernelCost("n", "", "Conv", True, 1, weights=10, weight_bytes=16, codes=100, floats=20, ends=3)
    assert cost.bytes("int8", 1) == 16 + 100 + 4 * 20 + 4 * 3
    assert cost.bytes("int8", 8) == 16 + 8 * (100 + 4 * 20 + 4 * 3)
    assert cost.bytes("fp16", 8) == 2 * 10 + 8 * (2 * 120 + 4 * 3)
    assert cost.bytes("fp32", 1) == 4 * 10 + 4 * 120 + 4 * 3
    quantizer = replace(cost, kind="QuantizeLinear", ends=0)
    assert (quantizer.bytes("fp16", 1), quantizer.bytes("int8", 1)) == (0, 16 + 100 + 80)


def test_an_open_image_size_is_refused(tmp_path: Path) -> None:
    path = classifier(tmp_path / "net.onnx", input_shape=("N", 3, "H", 16))
    with pytest.raises(InputError, match=r"input 'input' has an open size, \(\?, 3, \?, 16\)"):
        costs(path)
