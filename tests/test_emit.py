"""Every kind of node: PyTorch, the exported file and the integer reference have the same integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from faq_deploy.graph import Setting
from faq_deploy.place import Target
from tests.hand_graphs import TARGETS, GraphBuilder, assert_same_codes, noise, onnx_model, run_onnx
from tests.hand_layers import IMAGES, dense, group, head, ones, relu_conv, transposed, unary


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, target: Target, tmp_path: Path) -> None:
    g, data = GraphBuilder(target), noise(3, 4, 6, 6, seed=1)
    x = IMAGES[name](g, g.input(4, 6, 6))
    probe = g.net([x], [data])
    shape = list(probe.shapes()[x])
    y = head(g, x, int(np.prod(shape)), shape)
    assert_same_codes(g.net([y], [data]), target, [data], folder=tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_vectors_keep_their_shape_through_every_kind(target: Target, tmp_path: Path) -> None:
    """TensorRT's form keeps flattened tensors as images: all kinds must read them right."""
    g, data = GraphBuilder(target), noise(3, 4, 2, 3, seed=1)
    x = g.node("flatten", g.input(4, 2, 3), shape=[4, 2, 3])
    slopes = {"weight": noise(24, seed=2) * 0.2}
    y = g.quantize(unary(g, g.quantize(g.node("prelu", x, state=slopes, trainable=True)), "silu"))
    y = g.quantize(g.node("mul", y, x))
    z = g.quantize(dense(g, y, 24))
    norm = {"weight": noise(6, seed=8) + 1, "bias": noise(6, seed=9)}
    z = g.quantize(g.node("norm", z, state=norm, groups=1, spatial=False, eps=1e-5))
    z = g.quantize(g.node("prelu", z, state={"weight": noise(6, seed=2) * 0.2}, trainable=True))
    w = g.quantize(unary(g, g.quantize(dense(g, y, 24)), "sigmoid"))
    z = g.quantize(g.node("mul", z, w))
    other = g.quantize(g.node("norm", y, state=ones(24), groups=2, spatial=True, eps=1e-5))
    for member in (z, other, y):
        group(g, member)
    z = g.node("cat", z, g.node("slice", other, axis=1, start=2, end=20, step=3), y)
    image = g.node("reshape", g.node("pad", z, pads=[2, 4], mode="constant"), shape=[6, 7, 1])
    image = relu_conv(g, image, 6, 4, 3, 1)
    assert_same_codes(g.net([head(g, image, 20, [4, 5, 1])], [data]), target, [data], folder=tmp_path)


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("target", TARGETS)
def test_sequences_and_volumes(target: Target, dims: int, tmp_path: Path) -> None:
    sizes = [10] if dims == 1 else [4, 6, 5]
    g, data = GraphBuilder(target), noise(3, 4, *sizes, seed=1)
    x = relu_conv(g, g.input(4, *sizes), 4, 4, *[3] * dims, padding=[1] * dims)
    uneven = [0] * dims + [1] * dims
    x = relu_conv(g, x, 2, 4, *[2] * dims, padding=uneven, groups=2)
    plain: dict[str, Setting] = {"kernel": [2] * dims, "stride": [1] * dims, "ceil_mode": False}
    x = g.node("max_pool", x, padding=[0] * dims, dilation=[1] * dims, also=plain)
    x = g.quantize(g.node("avg_pool", x, padding=[0] * dims, count_include_pad=True, also=plain))
    x = g.quantize(g.node("norm", x, state=ones(4), groups=2, spatial=True, eps=1e-5))
    x = g.quantize(g.node("norm", x, state=ones(4), groups=1, spatial=False, eps=1e-5))
    x = transposed(2, dims)(g, g.quantize(unary(g, x, "gelu")))
    resized: dict[str, Setting] = {"input_size": [2 * (s - 2) for s in sizes], "size": [3 * (s - 2) for s in sizes]}
    x = g.quantize(g.node("resize", x, mode="nearest", also=resized))
    if dims == 1:
        resized = {"input_size": [24], "size": [36], "align_corners": False}
        x = g.quantize(g.node("resize", x, mode="linear", also=resized))
    x = g.quantize(g.node("global_avg_pool", x, positions=0))
    flat = g.node("flatten", x, shape=[6, *[1] * dims])
    assert_same_codes(g.net([dense(g, flat, 6)], [data]), target, [data], folder=tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_several_outputs_keep_their_order_and_names(target: Target) -> None:
    g, data = GraphBuilder(target), noise(3, 4, 6, 6, seed=1)
    x = relu_conv(g, g.input(4, 6, 6), 4, 6, 3, 3)
    y = head(g, x, 96, [6, 4, 4])
    z = g.conv(x, noise(3, 6, 1, 1), name="mask")
    net = g.net([z, y, x, z], [data])
    model = assert_same_codes(net, target, [data])
    assert [o.name for o in model.graph.output] == ["mask", "fc", x, "mask.output_3"]
    assert [tuple(t.shape) for t in net(data)] == [(3, 3, 4, 4), (3, 5), (3, 6, 4, 4), (3, 3, 4, 4)]


@pytest.mark.parametrize("target", TARGETS)
def test_several_inputs_are_read_in_the_order_of_their_nodes(target: Target) -> None:
    g, data = GraphBuilder(target), [noise(3, 4, 6, 6, seed=1), noise(3, 2, 6, 6, seed=2) * 8]
    x, y = g.input(4, 6, 6), g.input(2, 6, 6, name="input_1")
    parts = [relu_conv(g, x, 4, 4, 1, 1), relu_conv(g, y, 2, 4, 1, 1)]
    for part in parts:
        group(g, part)
    x = g.node("cat", *parts)
    net = g.net([head(g, x, 288, [8, 6, 6])], data)
    model = assert_same_codes(net, target, data)
    assert [i.name for i in model.graph.input] == ["input", "input_1"]
    assert [d.dim_value for d in model.graph.input[1].type.tensor_type.shape.dim[1:]] == [2, 6, 6]


@pytest.mark.parametrize("target", TARGETS)
def test_float_layers_are_written_with_float_weights(target: Target) -> None:
    g, data = GraphBuilder(target), noise(3, 4, 6, 6, seed=1)
    x = relu_conv(g, g.input(4, 6, 6), 4, 4, 1, 1)
    x = g.conv(x, noise(4, 4, 3, 3), name="skipped", float=True)
    norm = {"weight": noise(4, seed=8) + 1, "bias": noise(4, seed=9)}
    x = g.node("norm", x, state=norm, name="free", groups=2, spatial=True, eps=1e-3, float=True)
    x = g.node("prelu", unary(g, x, "gelu", float=True), state={"weight": noise(4)}, trainable=True, float=True)
    corners: dict[str, Setting] = {"mode": "linear", "input_size": [4, 4], "size": [7, 5], "align_corners": True}
    x = g.node("resize", x, float=True, also=corners)
    flat = g.node("flatten", x, shape=[4, 7, 5])
    y = g.node("linear", flat, name="dense", state={"weight": noise(3, 140), "bias": noise(3)}, float=True)
    net = g.net([y], [data])
    assert set(net.weighted()) == {"conv_2"}
    model = onnx_model(net, target)
    names = {i.name for i in model.graph.initializer}
    assert {"skipped.weight", "skipped.bias", "dense.weight"} <= names
    assert not any(name.startswith(("skipped.weight_", "dense.weight_")) for name in names)
    with torch.inference_mode():
        wanted = net(data).numpy()
    for optimized in (False, True):
        found = run_onnx(model, [data], optimized=optimized)["logits"]
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("mode", ["paper", "fit"])
@pytest.mark.parametrize("target", TARGETS)
def test_batch_norm_behind_a_transposed_convolution_stays_a_multiply_add(target: Target, mode: str) -> None:
    g, data = GraphBuilder(target), noise(3, 4, 6, 6, seed=1)
    settings: dict[str, Setting] = {"stride": [2, 2], "padding": [1, 1], "output_padding": [0, 0], "dilation": [1, 1]}
    x = g.input(4, 6, 6)
    x = g.node("conv_transpose", x, state={"weight": noise(4, 3, 3, 3) * 0.2}, groups=2, also=settings)
    statistics = {"weight": noise(6), "bias": noise(6), "running_mean": noise(6), "running_var": noise(6).abs() + 0.5}
    x = g.node("batch_norm", x, state=statistics, eps=1e-5, momentum=0.1)
    y = head(g, g.quantize(x, relu=True), 726, [6, 11, 11])
    net = g.net([y], [data], per_channel=False, batch_norm=mode)  # type: ignore[arg-type]
    model = assert_same_codes(net, target, [data])
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Mul") == 1
    scale = next(i for i in model.graph.initializer if i.name == "conv_transpose_2.weight_scale")
    assert list(scale.dims) == []


@pytest.mark.parametrize(("groups", "spatial"), [(1, False), (1, True), (3, True), (12, True)])
@pytest.mark.parametrize("size", [3, 6, 40])
@pytest.mark.parametrize("target", TARGETS)
def test_norms_give_the_same_bits_before_anything_is_rounded(
    target: Target, size: int, groups: int, spatial: bool, tmp_path: Path
) -> None:
    g, data = GraphBuilder(target), noise(3, 12, size, size, seed=1)
    state = {"weight": noise(12, seed=2) + 1, "bias": noise(12, seed=3)}
    y = g.node("norm", g.input(12, size, size), state=state, groups=groups, spatial=spatial, eps=1e-5)
    assert_same_codes(g.net([y], [data]), target, [data], folder=tmp_path)
