"""PReLU and LeakyReLU on codes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from faq_deploy.slope import SlopedRelu
from tests.hand_graphs import noise


def quantized(slope: torch.Tensor, trainable: bool = True) -> SlopedRelu:
    layer = SlopedRelu(slope, trainable)
    layer.mode = "quantize"
    return layer


@given(st.floats(-4, 4, width=32), st.integers(-12, 3))
def test_products_of_slope_and_code_are_exact(slope: float, exponent: int) -> None:
    layer = quantized(torch.tensor([slope]))
    x = (torch.arange(-128, 128) * 2.0**exponent).unsqueeze(1)
    used = layer.slopes().detach()
    wanted = torch.where(x > 0, x.double(), x.double() * used.double())
    assert torch.equal(layer(x).detach().double(), wanted)
    assert abs(float(used) - slope) <= max(abs(slope) * 2.0**-15, 2.0**-75)


def test_slope_trains_and_a_leaky_relu_has_none_to_train() -> None:
    layer = quantized(noise(3))
    layer(noise(2, 3, 4, 4, seed=1)).sum().backward()
    assert layer.weight.grad is not None and bool((layer.weight.grad != 0).all())
    leaky = quantized(torch.tensor([0.01]), trainable=False)
    assert list(leaky.parameters()) == []
    assert list(leaky.state_dict()) == list(layer.state_dict()) == ["weight"]


def test_float_mode_keeps_the_slope() -> None:
    layer = SlopedRelu(torch.tensor([0.1]), True)
    assert torch.equal(layer.slopes(), layer.weight)
    layer.mode = "quantize"
    assert not torch.equal(layer.slopes(), layer.weight)
