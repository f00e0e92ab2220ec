"""The layers of a quantized net. Each works in one of three modes: float, observe, quantize."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faq_deploy.fixed_point import FixedPoint, codes_of, quantize_activation, quantize_weight, step_size
from faq_deploy.live_norm import LiveNorm

__all__ = [
    "ActivationQuantizer",
    "Add",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "Mode",
    "Observer",
    "QuantizedConv",
    "QuantizedLinear",
    "Reshape",
    "WeightedLayer",
]

Mode = Literal["float", "observe", "quantize"]


class Observer(Protocol):
    """A range estimator of package `calibration`."""

    def update(self, tensor: Tensor) -> None:
        """Take in one batch."""
        ...

    def result(self) -> float:
        """The range found."""
        ...


class ActivationQuantizer(nn.Module):
    """ReLU (if `clip` says so) and fixed-point quantizer of one tensor.

    Args:
        grid: the codes.
        clip: `relu` for the output of a ReLU, `none` for any other tensor.
        cap: upper bound of a clipped ReLU (6 for ReLU6), in the tensor's units.

    Buffers:
        exponent: int32 scalar, fixed at calibration (paper 3.2).
    """

    exponent: Tensor

    def __init__(self, grid: FixedPoint, clip: Literal["relu", "none"], cap: float | None) -> None:
        super().__init__()
        self.grid, self.clip, self.cap = grid, clip, cap
        self.mode: Mode = "float"
        self.observer: Observer | None = None
        self._exponent = 0  # the buffer's value as a number
        self.top_code = grid.max_code  # lower where a cap ends below the top of the grid
        self.register_buffer("exponent", torch.zeros((), dtype=torch.int32))

    def set_exponent(self, exponent: int) -> None:
        """Fix the step size to 2^exponent."""
        self.exponent.fill_(exponent)
        self._read_exponent()

    def _read_exponent(self) -> None:
        self._exponent = int(self.exponent)
        self.top_code = self.grid.max_code
        if self.cap is not None:
            self.top_code = min(self.top_code, round(self.cap * 2.0**-self._exponent))

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._read_exponent()

    def forward(self, x: Tensor) -> Tensor:
        """Any float32 tensor to values on the grid (or through the plain ReLU in float mode)."""
        if self.mode == "quantize":
            return quantize_activation(x, self._exponent, self.grid, None if self.cap is None else self.top_code)
        y = x
        if self.clip == "relu":
            y = F.relu(x) if self.cap is None else F.hardtanh(x, 0.0, self.cap)
        if self.mode == "observe" and self.observer is not None:
            self.observer.update(y.detach())
        return y

    def codes(self, values: Tensor) -> Tensor:
        """Integer codes (int64) of values that are on the grid."""
        return (values * step_size(-self.exponent)).to(torch.int64)


class WeightedLayer(nn.Module):
    """A convolution or linear layer with fixed-point weights and a bias on the accumulator's grid.

    Buffers:
        weight_exponent: int32, (channels,) or (1,); follows the weights in training, else frozen (A10).
        input_exponent: int32 scalar, of the tensor it reads.
    """

    weight_exponent: Tensor
    input_exponent: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None, grid: FixedPoint, per_channel: bool, norm: LiveNorm | None = None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.grid, self.per_channel = grid, per_channel
        self.mode: Mode = "float"
        self.register_buffer("weight_exponent", torch.zeros(len(weight) if per_channel else 1, dtype=torch.int32))
        self.register_buffer("input_exponent", torch.zeros((), dtype=torch.int32))

    def _exponent_for(self, tensor: Tensor) -> Tensor:
        return self.weight_exponent.reshape(-1, *[1] * (tensor.dim() - 1))

    @property
    def accumulator_exponent(self) -> Tensor:
        """int32, (channels,) or (1,): a product of codes, and so the bias, has step 2^this."""
        return self.weight_exponent + self.input_exponent

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Float weight and bias, a live batch norm multiplied into them: what gets quantized."""
        if self.norm is None:
            return self.weight, self.bias
        a, c = self.norm.constants()
        return self.weight * a.reshape(-1, *[1] * (self.weight.dim() - 1)), c

    def constants(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as the net uses them: on their grids, straight-through gradients."""
        weight, bias = self.folded()
        if self.mode != "quantize":
            return weight, bias
        weight = quantize_weight(weight, self._exponent_for(weight), self.grid)
        if bias is None:
            return weight, None
        return weight, quantize_weight(bias, self.accumulator_exponent, FixedPoint(32, True))

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise AssertionError("a convolution or linear layer defines this")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) float32 to (N, channels, ...)."""
        weight, bias = self.constants()
        if self.norm is not None and self.training:
            normalized: Tensor = self.norm(self._product(x, weight, None))
            return normalized
        return self._product(x, weight, bias)

    def weight_codes(self) -> Tensor:
        """int8 weight codes, shape of the weight."""
        weight = self.folded()[0].detach()
        return codes_of(weight, self._exponent_for(weight), self.grid).to(torch.int8)

    def bias_codes(self) -> Tensor:
        """int32 bias codes in units of 2^accumulator_exponent, shape (channels,)."""
        bias = self.folded()[1]
        assert bias is not None
        return codes_of(bias.detach(), self.accumulator_exponent, FixedPoint(32, True)).to(torch.int32)


class QuantizedConv(WeightedLayer):
    """2-d convolution; see `WeightedLayer`."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        grid: FixedPoint,
        per_channel: bool,
        norm: LiveNorm | None = None,
        *,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        super().__init__(weight, bias, grid, per_channel, norm)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class QuantizedLinear(WeightedLayer):
    """Fully connected layer; see `WeightedLayer`."""

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class Add(nn.Module):
    """Sum of two tensors of one shape."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Elementwise sum."""
        return left + right


class Concat(nn.Module):
    """Concatenation over channels."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Tensors (N, C_i, ...) to (N, ΣC_i, ...)."""
        return torch.cat(tensors, 1)


class Flatten(nn.Module):
    """(N, C, ...) to (N, C·...)."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten all but the batch."""
        return x.flatten(1)


class Reshape(nn.Module):
    """(N, ...) to (N, *shape)."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Reshape all but the batch."""
        return x.reshape(len(x), *self.shape)


class GlobalAveragePool(nn.Module):
    """Mean over height and width, kept as (N, C, 1, 1): one exact sum, one division (design 4)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
