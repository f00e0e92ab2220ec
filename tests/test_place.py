"""Where quantizers sit, target by target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from faq_deploy.graph import Graph, Node
from faq_deploy.rewrite import rewrite
from tests.nets import Inverted, PreActivation, Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net


def placed(model: nn.Module, **choices: object) -> Graph:
    return rewrite(with_statistics(model), images(), make_recipe(**choices)).graph  # type: ignore[arg-type]


def quantizers(graph: Graph) -> dict[str, Node]:
    return {n.name: n for n in graph if n.kind == "quantize"}


def test_tensorrt_quantizes_relus_skips_and_pooled_features() -> None:
    assert list(quantizers(placed(Small()))) == [
        "input_quantizer",
        "relu",
        "blocks_0_relu",
        "blocks_0_relu_1",
        "blocks_1_down_0_quantizer",
        "blocks_1_relu",
        "blocks_1_relu_1",
        "adaptive_avg_pool2d_quantizer",
    ]


def test_onnxruntime_quantizes_both_inputs_of_adds() -> None:
    names = list(quantizers(placed(Small(), target="onnxruntime")))
    assert {"blocks_0_conv2_quantizer", "blocks_1_conv2_quantizer", "blocks_1_down_0_quantizer"} <= set(names)


def test_paper_quantizes_relu_outputs_only() -> None:
    names = list(quantizers(placed(Small(), target="paper")))
    assert not any("conv2" in name or "down" in name for name in names)


@pytest.mark.parametrize(
    ("target", "cpu", "bits"),
    [("tensorrt", "any", 7), ("onnxruntime", "any", 7), ("onnxruntime", "vnni", 8), ("paper", "any", 8)],
)
def test_relu_outputs_use_the_targets_grid(target: str, cpu: str, bits: int) -> None:
    node = quantizers(placed(Small(), target=target, cpu=cpu))["relu"]
    assert (node.settings["bits"], node.settings["signed"]) == (bits, False)


def test_four_bit_net_keeps_its_exceptions() -> None:
    graph = placed(Small(), bits=4)
    bits = {n.name: n.settings["bits"] for n in graph if n.kind == "quantize"}
    assert bits["relu"] == bits["blocks_0_relu"] == bits["blocks_1_relu"] == 4
    assert bits["blocks_1_relu_1"] == 7  # the last ReLU before the classifier
    assert bits["adaptive_avg_pool2d_quantizer"] == 7
    assert bits["input_quantizer"] == bits["blocks_1_down_0_quantizer"] == 8
    weights = {n.name: n.settings["weight_bits"] for n in graph if n.kind in {"conv", "linear"}}
    assert weights["stem"] == weights["fc"] == 8
    assert weights["blocks_0_conv1"] == weights["blocks_1_down_0"] == 4


def test_last_relu_of_three_fully_connected_layers_is_the_exception() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(784, 8),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(8, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
    )
    graph = rewrite(model, images(), make_recipe("paper", 4)).graph
    relus = [n.settings["bits"] for n in graph if n.kind == "quantize" and n.settings["clip"] == "relu"]
    assert relus == [4, 4, 8]
    weights = [n.settings["weight_bits"] for n in graph if n.kind in {"conv", "linear"}]
    assert weights == [8, 4, 4, 8]


def test_portable_pair_sums_fit_int16() -> None:
    for model in (Small(), PreActivation(), Inverted()):
        stored = quantized_net(with_statistics(model), make_recipe("onnxruntime"))
        for name, layer in stored.net.weighted().items():
            sources = [stored.net.quantizers()[s] for s in stored.net.source_quantizers(name)]
            zero = max(0 if not s.grid.signed else -s.grid.min_code for s in sources)
            stored_codes = max(s.top_code for s in sources) + zero
            assert 2 * stored_codes * layer.grid.max_code <= 32_767, name


def test_inputs_of_a_concat_share_one_exponent() -> None:
    stored = quantized_net(with_statistics(PreActivation()), make_recipe())
    groups: dict[str, set[int]] = {}
    for node in stored.net.graph:
        if node.kind == "quantize" and node.settings["group"]:
            groups.setdefault(str(node.settings["group"]), set()).add(int(stored.net.quantizers()[node.name].exponent))
    assert len(groups) == 1
    assert all(len(found) == 1 for found in groups.values())


def test_lone_batch_norm_becomes_a_depthwise_convolution_of_8_bits() -> None:
    graph = placed(PreActivation(), bits=4)
    node = graph.by_name()["bn1"]
    assert (node.kind, node.settings["groups"], node.settings["weight_bits"]) == ("conv", 6, 8)


def test_relu_that_is_the_output_stays_float() -> None:
    graph = rewrite(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images(), make_recipe()).graph
    assert graph.by_name()[graph.outputs[0]].kind == "relu"


def test_dropout_is_live_in_training_only() -> None:
    net = quantized_net(with_statistics(Inverted()), make_recipe()).net
    data: Tensor = images(4)
    assert torch.equal(net(data), net(data))
    net.train()
    assert not torch.equal(net(data), net(data))
