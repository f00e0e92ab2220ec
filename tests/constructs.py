"""Small nets, each with one construct that people's models hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CONSTRUCTS", "Around", "Options", "Shuffled"]

Body = Callable[["Around", Tensor], Tensor]


class Around(nn.Module):
    """A convolution, the construct, and a classifier: (N, 3, 16, 16) to (N, 5).

    Args:
        body: the construct, between (N, 8, 16, 16) and any tensor of rank 2 to 5.
        modules: what the construct calls, as `self.m["name"]`.
    """

    def __init__(self, body: Body, **modules: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.m = nn.ModuleDict(modules)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = self.body(self, F.relu(self.norm(self.stem(x))))
        if y.dim() == 4:
            y = y.mean((2, 3))
        logits: Tensor = self.head(y.flatten(1))
        return logits


def _around(body: Body, **modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Around(body, **modules)


def _conv(inputs: int = 8, outputs: int = 8, kernel: int = 3, **options: object) -> nn.Conv2d:
    options.setdefault("padding", kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, **options)  # type: ignore[arg-type]


def _shuffle(x: Tensor, groups: int = 2) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class _Squeeze(nn.Module):
    """Squeeze and excitation with the gate function given."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand, self.gate = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        scaled: Tensor = x * self.gate(y)
        return scaled


class _ChannelsLast(nn.Module):
    """ConvNeXt's block: depthwise, then norm and linear layers on the last axis, layer scale, skip."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.down(F.gelu(self.up(self.norm(y)))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class _WrittenNorm(nn.Module):
    """ConvNeXt's own layer norm over the channels of images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.linspace(0.5, 1.5, 8)), nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class _Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        tensor: Tensor = self.second(F.relu(self.first(x)))
        return tensor


class Shuffled(nn.Module):
    """The batch size as a number, used in views, an expand and new zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a = nn.Conv2d(3, 8, 3, 2)
        self.t = nn.Parameter(torch.randn(1, 8, 2))
        self.f = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        y = F.relu(self.a(x))
        _, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h * w)
        y = torch.cat([y, self.t.expand(b, -1, -1)], 2).flatten(2)
        logits: Tensor = self.f(torch.cat([y.mean(2), y.new_zeros(int(b), 8)], 1))
        return logits


class _Normalizing(nn.Module):
    """Normalizes inside forward."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.conv((x - self.mean) / self.std)).mean((2, 3)))
        return logits


class _TransformInput(nn.Module):
    """Inception's and GoogLeNet's `transform_input`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
        b = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
        c = torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
        logits: Tensor = self.fc(F.relu(self.conv(torch.cat((a, b, c), 1))).mean((2, 3)))
        return logits


class Options(nn.Module):
    """Flags, defaults, a loss branch, asserts and prints."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.fc = nn.Conv2d(3, 8, 2), nn.Linear(8, 5)

    def forward(
        self, x: Tensor, y: Tensor | None = None, flag: bool = True, *, temperature: float = 1.0, **kw: object
    ) -> object:
        assert x.dim() == 4
        print("forward")
        if x.shape[1] == 1:
            x = x.repeat(1, 3, 1, 1)
        features = F.relu(self.conv(x)).mean((2, 3))
        logits = self.fc(features) / temperature
        if y is not None:
            return F.cross_entropy(logits, y)
        return (logits, features) if self.training else {"feat": features, "logits": logits}


def _functional(s: Around, x: Tensor) -> Tensor:
    conv, linear = s.m["conv"], s.m["linear"]
    assert isinstance(conv, nn.Conv2d) and isinstance(linear, nn.Linear)
    y = F.conv2d(x, conv.weight, conv.bias, padding=1)
    return F.linear(y.relu_().mean((2, 3)), linear.weight, linear.bias)


def _relu_forms(s: Around, x: Tensor) -> Tensor:
    y = F.relu(s.m["a"](x), inplace=True)
    y = s.m["b"](y).relu_()
    return torch.relu(s.m["c"](y)).clamp_(max=3.0)


def _norm_then_relu(s: Around, x: Tensor) -> Tensor:
    norm: Tensor = s.m["norm"](x)  # no layer of its own before it
    tensor: Tensor = s.m["conv"](F.relu(norm))
    return tensor


def _transposed(inputs: int, outputs: int, groups: int, **options: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, groups=groups, **options)  # type: ignore[arg-type]
        return Around(
            lambda s, x: F.relu(s.m["bn"](s.m["t"](F.relu(s.m["c"](x))))),
            c=nn.Conv2d(8, inputs, 3, padding=1),
            t=layer,
            bn=nn.BatchNorm2d(outputs),
        )

    return make


def _mean_of(height: int, width: int) -> Callable[[], nn.Module]:
    return _around(lambda s, x: s.m["a"](x[:, :, :height, :width]), a=_conv())


def _windows(height: int, width: int) -> Callable[[], nn.Module]:
    return _around(lambda s, x: s.m["b"](F.avg_pool2d(s.m["a"](x), (height, width), 1)), a=_conv(), b=_conv())


# name -> factory. Every one must give the same codes in PyTorch, in the integer reference and in onnxruntime.
CONSTRUCTS: Final[dict[str, Callable[[], nn.Module]]] = {
    "relu called twice": _around(
        lambda s, x: s.m["r"](s.m["a"](s.m["r"](s.m["a"](x)))), a=_conv(), r=nn.ReLU(inplace=True)
    ),
    "weights tied": _around(lambda s, x: F.relu(s.m["t"](x)), t=_Tied()),
    "functional conv and linear": _around(_functional, conv=_conv(), linear=nn.Linear(8, 8)),
    "relu forms": _around(_relu_forms, a=_conv(), b=_conv(), c=_conv()),
    "cat with itself": _around(lambda s, x: s.m["a"](torch.cat([x, x], 1)), a=_conv(16)),
    "cat nested": _around(
        lambda s, x: s.m["b"](torch.cat([torch.cat([x, s.m["a"](x)], 1), F.max_pool2d(x, 3, 1, 1)], 1)),
        a=_conv(),
        b=_conv(24),
    ),
    "cat over height": _around(lambda s, x: s.m["a"](torch.cat([x, x * 0.5], 2)), a=_conv()),
    "stack and sum": _around(lambda s, x: s.m["b"](torch.stack([x, s.m["a"](x)], 1).sum(1)), a=_conv(), b=_conv()),
    "residual with scalar": _around(lambda s, x: F.relu(x + 0.1 * s.m["a"](x)), a=_conv()),
    "residual scaled twice": _around(lambda s, x: F.relu(0.5 * x + s.m["a"](x) / 3), a=_conv()),
    "subtraction": _around(lambda s, x: s.m["a"](F.avg_pool2d(x, 3, 1, 1) - x), a=_conv()),
    "reverse subtraction": _around(lambda s, x: s.m["b"](1.0 - s.m["a"](x)), a=_conv(), b=_conv()),
    "channel shuffle": _around(lambda s, x: s.m["b"](_shuffle(F.relu(s.m["a"](x)))), a=_conv(groups=2), b=_conv()),
    "channel shuffle module": _around(
        lambda s, x: s.m["b"](s.m["s"](F.relu(s.m["a"](x)))), a=_conv(groups=2), s=nn.ChannelShuffle(4), b=_conv()
    ),
    "split and chunk": _around(
        lambda s, x: s.m["b"](torch.cat([x.chunk(2, 1)[1], s.m["a"](torch.split(x, [2, 6], 1)[1])], 1)),
        a=_conv(6),
        b=_conv(12),
    ),
    "slice with step": _around(lambda s, x: s.m["a"](x[:, ::2, 1:, ::2]), a=_conv(4)),
    "space to depth": _around(lambda s, x: s.m["a"](F.pixel_unshuffle(x, 2)), a=_conv(32)),
    "depth to space": _around(lambda s, x: s.m["a"](F.pixel_shuffle(x, 2)), a=_conv(2)),
    "grouped, dilated, strided": _around(
        lambda s, x: s.m["b"](F.relu(s.m["a"](x))),
        a=nn.Conv2d(8, 12, 3, (2, 1), (1, 2), (1, 2), 4),
        b=nn.Conv2d(12, 12, (1, 5), groups=12),
    ),
    "padding same": _around(
        lambda s, x: s.m["b"](F.relu(s.m["a"](x))), a=nn.Conv2d(8, 8, 4, padding="same"), b=nn.Conv2d(8, 8, 2)
    ),
    "padding reflect": _around(lambda s, x: s.m["a"](x), a=nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
    "padding replicate": _around(lambda s, x: s.m["a"](x), a=nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate")),
    "negative pad": _around(lambda s, x: s.m["a"](F.pad(x, (-1, 1, 0, -2))), a=nn.Conv2d(8, 8, 3, 2)),
    "softmax of two": _around(
        lambda s, x: (lambda p: x * p[:, 0] + s.m["b"](x) * p[:, 1])(
            s.m["a"](x.mean((2, 3), keepdim=True)).view(x.shape[0], 2, 8, 1, 1).softmax(1)
        ),
        a=_conv(8, 16, 1),
        b=_conv(),
    ),
    "asymmetric pad": _around(lambda s, x: s.m["a"](F.pad(x, (0, 1, 2, 1))), a=nn.Conv2d(8, 8, 3, 2)),
    "zero pad module": _around(
        lambda s, x: s.m["a"](s.m["p"](x)), p=nn.ZeroPad2d((0, 1, 0, 1)), a=nn.Conv2d(8, 8, 3, 2)
    ),
    "pad read twice": _around(
        lambda s, x: F.max_pool2d(y := F.pad(x, (1, 1, 1, 1)), 2) + s.m["a"](y), a=nn.Conv2d(8, 8, 2, 2)
    ),
    "conv1d": _around(lambda s, x: s.m["a"](x.flatten(2)).relu().mean(2), a=nn.Conv1d(8, 6, 3, padding=1)),
    "conv1d over channels": _around(
        lambda s, x: x * torch.sigmoid(s.m["a"](x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(3)),
        a=nn.Conv1d(1, 1, 3, padding=1),
    ),
    "conv3d": _around(
        lambda s, x: s.m["a"](x.view(x.shape[0], 2, 4, 16, 16)).relu().flatten(1, 2).mean((2, 3)),
        a=nn.Conv3d(2, 3, 3, padding=1),
    ),
    "transposed, groups 1": _transposed(8, 12, 1),
    "transposed, groups 2": _transposed(8, 12, 2),
    "transposed, depthwise": _transposed(6, 6, 6),
    "transposed, output padding": _transposed(8, 4, 1, padding=1, output_padding=(1, 0)),
    "transposed, dilated": _transposed(4, 4, 1, dilation=2, output_padding=1),
    "transposed without norm": _around(
        lambda s, x: F.relu(s.m["t"](x, output_size=[33, 32])), t=nn.ConvTranspose2d(8, 4, 2, 2)
    ),
    "norm without affine": _around(
        lambda s, x: F.relu(s.m["n"](s.m["a"](x))), a=_conv(), n=nn.BatchNorm2d(8, affine=False)
    ),
    "norm before relu before conv": _around(_norm_then_relu, norm=nn.BatchNorm2d(8), conv=_conv()),
    "norm after linear": _around(
        lambda s, x: F.relu(s.m["n"](s.m["l"](x.mean((2, 3))))), l=nn.Linear(8, 6), n=nn.BatchNorm1d(6)
    ),
    "lone norm on features": _around(lambda s, x: s.m["n"](x.mean((2, 3))), n=nn.BatchNorm1d(8)),
    "sync norm": _around(lambda s, x: F.relu(s.m["n"](s.m["a"](x))), a=_conv(), n=nn.SyncBatchNorm(8, eps=1e-3)),
    "group norm": _around(lambda s, x: F.relu(s.m["n"](s.m["a"](x))), a=_conv(), n=nn.GroupNorm(4, 8)),
    "instance norm": _around(
        lambda s, x: F.relu(s.m["n"](s.m["a"](x))), a=_conv(), n=nn.InstanceNorm2d(8, affine=True)
    ),
    "layer norm over images": _around(lambda s, x: s.m["a"](s.m["n"](x)), a=_conv(), n=nn.LayerNorm([8, 16, 16])),
    "layer norm written out": _around(lambda s, x: s.m["n"](s.m["a"](x)), a=_conv(), n=_WrittenNorm()),
    "rms norm over channels": _around(
        lambda s, x: s.m["a"](s.m["n"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), a=_conv(), n=nn.RMSNorm(8)
    ),
    "layer norm on features": _around(lambda s, x: s.m["n"](x.mean((2, 3))), n=nn.LayerNorm(8)),
    "channels last block": _around(lambda s, x: s.m["b"](x), b=_ChannelsLast()),
    "linear on images": _around(
        lambda s, x: s.m["l"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu(), l=nn.Linear(8, 6)
    ),
    "linear on tokens": _around(lambda s, x: s.m["l"](x.flatten(2)).relu().mean(2), l=nn.Linear(256, 6)),
    "squeeze with sigmoid": _around(lambda s, x: s.m["s"](x), s=_Squeeze(nn.Sigmoid())),
    "squeeze with hardsigmoid": _around(lambda s, x: s.m["s"](x), s=_Squeeze(nn.Hardsigmoid())),
    "silu by hand": _around(lambda s, x: s.m["b"]((y := s.m["a"](x)) * y.sigmoid()), a=_conv(), b=_conv()),
    **{
        f"{name}": _around(lambda s, x: s.m["b"](s.m["f"](s.m["a"](x))), a=_conv(), b=_conv(), f=function)
        for name, function in {
            "silu": nn.SiLU(),
            "hardswish": nn.Hardswish(),
            "sigmoid": nn.Sigmoid(),
            "tanh": nn.Tanh(),
            "gelu": nn.GELU(),
            "gelu tanh": nn.GELU(approximate="tanh"),
            "mish": nn.Mish(),
            "elu": nn.ELU(0.7),
            "selu": nn.SELU(),
            "celu": nn.CELU(0.5),
            "softplus": nn.Softplus(),
            "leaky relu": nn.LeakyReLU(0.01),
            "prelu": nn.PReLU(8, 0.3),
            "prelu with one slope": nn.PReLU(),
            "hardtanh": nn.Hardtanh(-0.5, 0.7),
            "relu6": nn.ReLU6(),
        }.items()
    },
    "gated product": _around(lambda s, x: s.m["a"](x) * s.m["b"](x).tanh(), a=_conv(), b=_conv()),
    "product of two halves": _around(
        lambda s, x: (lambda p: s.m["b"](p[0] * p[1]))(s.m["a"](x).chunk(2, 1)), a=_conv(8, 16), b=_conv()
    ),
    "avg pool, pad not counted": _around(
        lambda s, x: s.m["a"](F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)), a=_conv()
    ),
    "avg pool, ceil": _around(lambda s, x: s.m["a"](F.avg_pool2d(x, 3, 2, ceil_mode=True)), a=_conv()),
    "adaptive pool to 3x5": _around(lambda s, x: F.adaptive_avg_pool2d(s.m["a"](x), (3, 5)), a=_conv()),
    "adaptive pool to 4x4": _around(lambda s, x: s.m["a"](F.adaptive_avg_pool2d(x, 4)), a=_conv()),
    "adaptive max pool": _around(lambda s, x: F.adaptive_max_pool2d(s.m["a"](x), 1), a=_conv()),
    "adaptive pool to 10x12": _around(lambda s, x: F.adaptive_avg_pool2d(s.m["a"](x), (10, 12)), a=_conv()),
    **{f"mean of {height}x{width}": _mean_of(height, width) for height, width in ((14, 14), (6, 6), (10, 12))},
    **{f"avg pool of {height}x{width}": _windows(height, width) for height, width in ((6, 6), (2, 14), (8, 14))},
    "gate of a mean of 14x14": _around(
        lambda s, x: (lambda y: y * torch.sigmoid(s.m["b"](y.mean((2, 3), keepdim=True))))(s.m["a"](x)),
        a=nn.Conv2d(8, 8, 3),
        b=_conv(kernel=1),
    ),
    "mean over width": _around(lambda s, x: s.m["a"](x.mean(3, keepdim=True)) * x, a=_conv(kernel=1)),
    "mean over channels": _around(lambda s, x: x * x.mean(1, keepdim=True).sigmoid()),
    "max pool of negative codes": _around(
        lambda s, x: s.m["b"](F.max_pool2d(s.m["a"](x) - 2.0, 3, 2, 1)), a=_conv(), b=_conv()
    ),
    "max pool with unused indices": _around(
        lambda s, x: s.m["a"](F.max_pool2d(x, 3, 2, 1, return_indices=True)[0]), a=_conv()
    ),
    "resize nearest": _around(lambda s, x: s.m["a"](F.interpolate(x, scale_factor=2)), a=_conv()),
    "resize nearest to size": _around(lambda s, x: s.m["a"](F.interpolate(x, size=(11, 20))), a=_conv()),
    "resize bilinear": _around(
        lambda s, x: s.m["a"](F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)), a=_conv()
    ),
    "resize bilinear with corners": _around(
        lambda s, x: s.m["a"](F.interpolate(x, size=(24, 21), mode="bilinear", align_corners=True)), a=_conv()
    ),
    "dropout": _around(lambda s, x: s.m["a"](s.m["d"](F.dropout2d(x, 0.1, s.training))), a=_conv(), d=nn.Dropout(0.2)),
    "expand": _around(lambda s, x: x * s.m["a"](x.mean((2, 3), keepdim=True)).expand_as(x), a=_conv(kernel=1)),
    "permuted back": _around(lambda s, x: s.m["a"](x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)), a=_conv()),
    "weight norm": _around(lambda s, x: F.relu(s.m["a"](x)), a=torch.nn.utils.parametrizations.weight_norm(_conv())),
    "spectral norm": _around(
        lambda s, x: F.relu(s.m["a"](x)), a=torch.nn.utils.parametrizations.spectral_norm(_conv())
    ),
    "batch as a number": Shuffled,
    "normalization inside": _Normalizing,
    "transform input": _TransformInput,
    "flags and a dict": Options,
}
