"""Weighted layers of every shape: folding, exponents, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from faq_deploy.fixed_point import FixedPoint, step_size
from faq_deploy.layers import FloatLayer, WeightedLayer
from faq_deploy.live_norm import LiveNorm
from faq_deploy.products import Convolution, MatrixProduct, Product, TransposedConvolution
from tests.hand_graphs import GraphBuilder, noise, norm_statistics

EIGHT = FixedPoint(8, signed=True, narrow=True)


def conv(dims: int, groups: int = 1, padding: list[int] | None = None) -> Convolution:
    return Convolution([1] * dims, padding or [1] * dims, [1] * dims, groups)


def transposed(dims: int, groups: int) -> TransposedConvolution:
    return TransposedConvolution([2] * dims, [1] * dims, [1] * dims, [1] * dims, groups)


PRODUCTS: list[tuple[Product, tuple[int, ...], tuple[int, ...], int]] = [
    (MatrixProduct(), (5, 8), (3, 8), 5),
    (conv(1), (6, 8, 3), (3, 8, 7), 6),
    (conv(2, groups=2), (6, 4, 3, 3), (3, 8, 5, 6), 6),
    (conv(3), (6, 8, 3, 3, 3), (3, 8, 4, 5, 6), 6),
    (transposed(1, 2), (8, 3, 3), (3, 8, 5), 6),
    (transposed(2, 1), (8, 12, 3, 3), (3, 8, 5, 5), 12),
    (transposed(2, 2), (8, 6, 3, 3), (3, 8, 5, 5), 12),
    (transposed(2, 8), (8, 1, 3, 3), (3, 8, 5, 5), 8),
    (transposed(3, 4), (8, 2, 3, 3, 3), (3, 8, 3, 4, 3), 8),
]


@pytest.mark.parametrize(("product", "weight", "shape", "channels"), PRODUCTS)
def test_folding_equals_the_batch_norm_behind(
    product: Product, weight: tuple[int, ...], shape: tuple[int, ...], channels: int
) -> None:
    """C01: in a transposed convolution the output channels lie on axis 1, spread over groups."""
    gamma, beta, mean, var = (t.double() for t in norm_statistics(channels))
    norm = LiveNorm(gamma, beta, mean, var, eps=1e-5, momentum=0.1)
    layer = FloatLayer(noise(*weight).double(), None, product, norm).eval()
    x = noise(*shape, seed=5).double()
    wanted = F.batch_norm(product(x, layer.weight, None), mean, var, gamma, beta, eps=1e-5)
    with torch.no_grad():
        assert float((layer(x) - wanted).abs().amax()) < 1e-12


@pytest.mark.parametrize(("product", "weight", "shape", "channels"), PRODUCTS)
def test_live_norm_trains_on_the_statistics_of_the_batch(
    product: Product, weight: tuple[int, ...], shape: tuple[int, ...], channels: int
) -> None:
    gamma, beta, mean, var = norm_statistics(channels)
    layer = FloatLayer(noise(*weight), None, product, LiveNorm(gamma, beta, mean, var, eps=1e-5, momentum=0.1))
    x = noise(*shape, seed=5)
    wanted = F.batch_norm(
        product(x, noise(*weight), None), None, None, norm_statistics(channels)[0], beta, training=True
    )
    found = layer.train()(x)
    assert torch.allclose(found, wanted, atol=1e-4)
    found.square().sum().backward()
    assert layer.weight.grad is not None and bool(torch.isfinite(layer.weight.grad).all())


@pytest.mark.parametrize(("product", "weight", "shape", "channels"), PRODUCTS)
def test_by_channel_holds_the_weights_that_make_each_output(
    product: Product, weight: tuple[int, ...], shape: tuple[int, ...], channels: int
) -> None:
    w = noise(*weight)
    rows = product.by_channel(w)
    assert len(rows) == channels
    factors = torch.arange(channels).float()
    assert torch.equal(product.by_channel(product.scaled(w, factors)), rows * factors.reshape(-1, *[1] * (w.dim() - 1)))


def test_uneven_padding_is_begin_and_end() -> None:
    x, weight = noise(2, 3, 5, 7), noise(4, 3, 3, 2)
    found = conv(2, padding=[0, 1, 2, 3])(x, weight, None)
    assert torch.equal(found, F.conv2d(F.pad(x, (1, 3, 0, 2)), weight))
    line = conv(1, padding=[3, 0])(x[:, :, 0], weight[:, :, 0], None)
    assert torch.equal(line, F.conv1d(F.pad(x[:, :, 0], (3, 0)), weight[:, :, 0]))


@pytest.mark.parametrize(("product", "weight", "shape", "channels"), PRODUCTS)
def test_gradients_pass_straight_through_the_quantizer(
    product: Product, weight: tuple[int, ...], shape: tuple[int, ...], channels: int
) -> None:
    layer = WeightedLayer(noise(*weight), noise(channels), product, grid=EIGHT, per_channel=False)
    layer.mode = "quantize"
    layer.weight_exponent.fill_(-5)
    layer.input_exponent.fill_(-4)
    x = noise(*shape, seed=6)
    layer(x).sum().backward()
    plain = nn.Parameter(noise(*weight))
    product(x, plain, None).sum().backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None and plain.grad is not None and layer.bias is not None
    assert torch.allclose(layer.weight.grad, plain.grad, atol=1e-4)
    codes = layer.weight_codes()
    assert codes.shape == weight
    assert torch.equal(layer.constants()[0].detach(), codes * step_size(torch.tensor(-5)))
    assert layer.bias_codes().shape == (channels,)


def test_transposed_convolution_has_one_exponent_in_a_net_with_one_a_channel() -> None:
    g, data = GraphBuilder("tensorrt"), noise(2, 4, 5, 5)
    x = g.quantize(g.conv(g.input(4, 5, 5), noise(6, 4, 1, 1)), relu=True)
    settings: dict[str, list[int]] = {"stride": [2, 2], "padding": [0, 0], "output_padding": [0, 0], "dilation": [1, 1]}
    weight = noise(6, 3, 2, 2)
    weight[0] *= 100
    state = {"weight": weight, "bias": noise(6) * 1e4}
    y = g.node("conv_transpose", x, name="up", state=state, groups=2, also=settings)
    up, before = (g.net([y], [data]).weighted()[name] for name in ("up", "conv_2"))
    assert tuple(up.weight_exponent.shape) == (1,)
    assert tuple(before.weight_exponent.shape) == (6,)
    largest = float(weight.abs().amax())
    assert up.grid.max_code * 2.0 ** float(up.weight_exponent) >= largest / 2
    assert int(up.bias_codes().abs().amax()) <= 2**22  # the bias floor holds for the tensor's exponent
