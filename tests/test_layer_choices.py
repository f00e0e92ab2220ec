"""Exceptions by name: parts in float, bits of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.errors import InputError
from engines.ort import OrtRunner
from engines.reference import ReferenceRunner
from faq_deploy.onnx_export import export_onnx
from faq_deploy.recipe import Recipe, override
from faq_deploy.stored_net import StoredNet
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net


def net_with(layers: dict[str, object], target: str = "tensorrt", precision: int = 8) -> StoredNet:
    recipe: Recipe = override(make_recipe(target, precision), {f"layers.{key}": value for key, value in layers.items()})
    return quantized_net(with_statistics(Small()), recipe)


def test_pattern_gives_a_layer_its_own_bits() -> None:
    stored = net_with({"bits": {"blocks.1.*": 8}}, precision=4)
    bits = {name: layer.grid.bits for name, layer in stored.net.weighted().items()}
    assert bits == {
        "stem": 8,
        "blocks_0_conv1": 4,
        "blocks_0_conv2": 4,
        "blocks_1_down_0": 8,
        "blocks_1_conv1": 8,
        "blocks_1_conv2": 8,
        "fc": 8,
    }
    activations = {name: q.grid.bits for name, q in stored.net.quantizers().items() if q.clip == "relu"}
    assert activations == {
        "relu": 4,
        "blocks_0_relu": 4,
        "blocks_0_relu_1": 4,
        "blocks_1_relu": 7,  # unsigned: half of signed INT8
        "blocks_1_relu_1": 7,
    }


def test_first_matching_pattern_counts() -> None:
    stored = net_with({"bits": {"blocks.0.conv1": 3, "blocks.*": 5}})
    layers = stored.net.weighted()
    assert [layers[n].grid.bits for n in ("blocks_0_conv1", "blocks_0_conv2", "blocks_1_conv2")] == [3, 5, 5]
    assert int(layers["blocks_0_conv1"].weight_codes().abs().max()) == 3


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("precision", [8, 4])
def test_linear_layers_get_four_bits_and_convolutions_keep_theirs(precision: int, target: str) -> None:
    plain = net_with({}, target, precision).net.weighted()
    stored = net_with({"int4_linear": True}, target, precision)
    bits = {name: layer.grid.bits for name, layer in stored.net.weighted().items()}
    assert bits == {name: layer.grid.bits for name, layer in plain.items()} | {"fc": 4}
    assert plain["fc"].grid.bits == 8  # the last layer, which keeps 8 bits else
    assert int(stored.net.weighted()["fc"].weight_codes().abs().max()) <= 7
    assert stored.recipe.layers.int4_linear


def test_a_pattern_of_its_own_counts_more_than_int4_linear() -> None:
    stored = net_with({"int4_linear": True, "bits": {"fc": 6}})
    assert stored.net.weighted()["fc"].grid.bits == 6


def test_int4_linear_needs_a_linear_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="--int4-linear: the model has no linear layer") as caught:
        quantized_net(model.eval(), override(make_recipe(), {"layers.int4_linear": True}))
    assert "--bits PATTERN=4" in caught.value.remedy


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("choice", [{"skip": ["blocks.0.conv2"]}, {"leaf": ["blocks.0"]}])
def test_float_parts_keep_their_weights_and_run_everywhere(
    choice: dict[str, object], target: str, tmp_path: Path
) -> None:
    stored = net_with(choice, target)
    layer = stored.net.layers["blocks_0_conv2"]
    weight, _ = layer.constants()  # type: ignore[operator]
    folded, _ = layer.folded()  # type: ignore[operator]
    assert torch.equal(weight, folded)
    data = images(4).numpy()
    path = tmp_path / "model.onnx"
    result = export_onnx(stored, path, data, versions={}, checkpoint_sha256="")
    assert any("parts of the net stay in float" in warning for warning in result.warnings)
    with torch.inference_mode():
        wanted = stored.net(torch.from_numpy(data)).numpy()
    for runner in (ReferenceRunner(path), OrtRunner(path)):
        assert np.abs(runner(data) - wanted).max() < 0.05 * np.abs(wanted).max()
        runner.close()


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_optimized_onnxruntime_leaves_float_layers_in_float(target: str, tmp_path: Path) -> None:
    stored = net_with({"skip": ["blocks.*"]}, target)
    data = images(4).numpy()
    path = tmp_path / "model.onnx"
    export_onnx(stored, path, data, versions={}, checkpoint_sha256="")
    optimized, oracle = OrtRunner(path).codes(data), OrtRunner(path, oracle=True).codes(data)
    names = [name for name in oracle if name != "logits"]
    differing = sum(int((optimized[name] != oracle[name]).sum()) for name in names)
    # onnxruntime's own quantization of these weights changed 8 % of the codes
    assert differing <= sum(oracle[name].size for name in names) // 2000


def test_norm_kept_in_float_is_no_broken_proof(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(8, 5))
    stored = quantized_net(model.eval(), override(make_recipe(), {"layers.leaf": ["1"]}))
    result = export_onnx(stored, tmp_path / "model.onnx", images(8).numpy(), versions={}, checkpoint_sha256="")
    assert any("parts of the net stay in float" in warning for warning in result.warnings)


def test_leaf_holds_no_quantizer() -> None:
    inside = [name for name in net_with({"leaf": ["blocks.0"]}).net.quantizers() if name.startswith("blocks_0")]
    assert inside == ["blocks_0_relu_1"]  # the ReLU at its end, which integer layers read


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"leaf": ["blocks.7"]}, "--leaf blocks.7: nothing in the model has that name"),
        ({"skip": ["head.*"]}, "--skip head.*: nothing in the model has that name"),
        ({"bits": {"nowhere": 4}}, "--bits nowhere: nothing in the model has that name"),
    ],
)
def test_name_that_matches_nothing_is_refused(choice: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        net_with(choice)
    assert caught.value.what.startswith(words)
    assert caught.value.remedy
