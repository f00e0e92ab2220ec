"""Batch norm, addition and quantizer in one pass: the bits of one after the other, and less that is kept."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faq_deploy import fused, made_again
from faq_deploy.fixed_point import FixedPoint
from faq_deploy.fusions import fusions
from faq_deploy.graph import Graph, Node
from faq_deploy.layers import ActivationQuantizer
from faq_deploy.live_norm import LiveNorm
from faq_deploy.net import QuantizedNet
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm
from tests.compiled_passes import bits, require_compiled, use_plain_path
from tests.hand_graphs import noise, norm_statistics
from tests.quantized import make_recipe, quantized_net

Norm = LiveNorm | QuantizedBatchNorm

LAST, FIRST = torch.channels_last, torch.contiguous_format
FORMS = [
    *itertools.product([(3, 6, 5, 7), (5, 24, 40, 70), (2, 16, 100, 101), (40, 8, 12, 12)], [LAST, FIRST]),
    ((64, 10), FIRST),
    ((4, 6, 9), FIRST),
]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that the tensors here have several."""
    monkeypatch.setattr(fused, "PIECE", 2**18)


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with the C passes, and with torch's operations alone."""
    if request.param == "plain":
        use_plain_path(monkeypatch)
    else:
        require_compiled()


def live_norm(channels: int) -> LiveNorm:
    return LiveNorm(*norm_statistics(channels), eps=1e-5, momentum=0.1)


def papers_norm(channels: int) -> QuantizedBatchNorm:
    norm = QuantizedBatchNorm(*norm_statistics(channels), eps=1e-5, momentum=0.1, constants="fit")
    norm.mode = "quantize"
    norm.accumulator_exponent.fill_(-12)
    norm.fit_exponent()
    return norm


def quantizer(signed: bool, cap: float | None = None) -> ActivationQuantizer:
    layer = ActivationQuantizer(FixedPoint(4, signed), "none" if signed else "relu", cap)
    layer.mode = "quantize"
    layer.set_exponent(-2)
    return layer


@dataclass
class Step:
    """Output and every gradient of one step, and the statistics after it."""

    tensors: list[Tensor]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Step)
        return all(
            a.shape == b.shape and bits(a).equal(bits(b)) for a, b in zip(self.tensors, other.tensors, strict=True)
        )


def step(norm: Norm, forward: Callable[..., Tensor], x: Tensor, other: Tensor | None) -> Step:
    norm = copy.deepcopy(norm).train()
    x, other = (None if t is None else t.clone().requires_grad_() for t in (x, other))  # type: ignore[assignment]
    y = forward(norm, x, other)
    y.backward(noise(*y.shape, seed=9).to(memory_format=_format_of(y)))  # type: ignore[no-untyped-call]
    found = [y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    return Step([t for t in (*found, None if other is None else other.grad) if t is not None])


def _format_of(y: Tensor) -> torch.memory_format:
    last = y.dim() == 4 and not y.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@pytest.mark.parametrize("added", [True, False], ids=["with addition", "alone"])
@pytest.mark.parametrize("make", [live_norm, papers_norm])
@pytest.mark.parametrize(("shape", "layout"), FORMS, ids=str)
def test_one_pass_gives_the_bits_of_one_after_the_other(
    shape: tuple[int, ...], layout: torch.memory_format, make: Callable[[int], Norm], added: bool
) -> None:
    norm = make(shape[1])
    x = noise(*shape, seed=5).contiguous(memory_format=layout)
    other = noise(*shape, seed=6).contiguous(memory_format=layout) if added else None
    for chosen in (quantizer(True), quantizer(False), quantizer(False, cap=2.0)):
        together = step(norm, lambda n, x, o, q=chosen: n(x, q.rounding, o), x, other)
        apart = step(norm, lambda n, x, o, q=chosen: q(n(x) if o is None else n(x) + o), x, other)
        assert together == apart


@pytest.mark.parametrize("make", [live_norm, papers_norm])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e-42, 0.0, -0.0])
def test_odd_values_give_the_same_bits(make: Callable[[int], Norm], bad: float) -> None:
    x, other = noise(4, 6, 50, 60, seed=5), noise(4, 6, 50, 60, seed=6)
    x[1, 2, 3, 4] = bad
    other[2, 3] = bad
    chosen = quantizer(True)
    together = step(make(6), lambda n, x, o: n(x, chosen.rounding, o), x, other)
    apart = step(make(6), lambda n, x, o: chosen(n(x) + o), x, other)
    assert together == apart


def test_halves_round_to_even_in_one_pass() -> None:
    """A norm that changes nothing: γ = 1, statistics of the batch 0 and 1."""
    norm = LiveNorm(torch.ones(1), torch.zeros(1), torch.zeros(1), torch.ones(1), eps=0.0, momentum=0.1).train()
    halves = torch.tensor([-1.0, 1.0, -1.0, 1.0]).reshape(4, 1, 1, 1)  # mean 0, variance 1
    layer = quantizer(True)
    layer.set_exponent(1)  # ±1 is half a step of 2
    assert norm(halves, layer.rounding).abs().sum() == 0
    assert norm(halves, layer.rounding, torch.full_like(halves, 2.0)).flatten().tolist() == [0.0, 4.0, 0.0, 4.0]


@pytest.mark.parametrize(("shape", "count"), [((2, 64, 80, 80), 4), ((16, 32, 32, 32), 2), ((2, 4, 8, 8), 1)])
def test_pieces_cover_every_number_once(shape: tuple[int, ...], count: int) -> None:
    x = torch.zeros(shape).contiguous(memory_format=torch.channels_last)
    found = list(fused._pieces(x, None, x))
    assert len(found) == count
    for left, right in found:
        assert left.data_ptr() == right.data_ptr()
        assert left.is_contiguous(memory_format=torch.channels_last)
        left += 1
    assert x.unique().tolist() == [1.0]  # type: ignore[no-untyped-call]


class Residual(nn.Module):
    """A block with a strided shortcut, one without, and a sum that broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, s, 1, bias=False) for a, b, s in ((3, 8, 1), (8, 8, 2), (8, 8, 1)))
        self.norm = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))
        self.shortcut = nn.Conv2d(8, 8, 1, 2, bias=False)
        self.gate = nn.Conv2d(8, 8, 1, bias=False)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.norm[0](self.conv[0](x)))
        x = F.relu(self.norm[1](self.conv[1](x)) + self.norm[2](self.shortcut(x)))
        x = F.relu6(x + self.norm[3](self.conv[2](x)))
        x = F.relu(x + self.norm[4](self.gate(x.mean((2, 3), keepdim=True))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@pytest.fixture(params=["fold", "paper", "fit"])
def net(request: pytest.FixtureRequest) -> QuantizedNet:
    torch.manual_seed(0)
    target = "tensorrt" if request.param == "fold" else "paper"
    data = noise(8, 3, 40, 40, seed=3)
    return quantized_net(Residual(), make_recipe(target, 8, request.param), data).net.train()


def trained(net: QuantizedNet, x: Tensor) -> Step:
    net = copy.deepcopy(net)
    logits = net(x)
    assert isinstance(logits, Tensor)
    F.cross_entropy(logits, torch.arange(len(x)) % 4).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in net.parameters()]
    return Step(
        [logits, *(g for g in gradients if g is not None), *(b for b in net.buffers() if b.dtype == torch.float32)]
    )


def plain(net: QuantizedNet) -> QuantizedNet:
    """The same net, one operation after the other."""
    found = copy.deepcopy(net)
    found._fusions = {}
    return found


def test_a_step_of_a_net_is_the_same(net: QuantizedNet) -> None:
    x = noise(8, 3, 40, 40, seed=7)
    assert len(net._fusions) >= 4
    assert any(fusion.add for fusion in net._fusions.values())
    assert trained(net, x) == trained(plain(net), x)


def test_a_step_keeps_less_for_its_gradient(net: QuantizedNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing between a norm and its quantizer is kept."""
    monkeypatch.setattr(made_again, "_somebody_has_hooks", lambda: False)  # the counting ones change nothing
    x = noise(8, 3, 40, 40, seed=7)
    assert kept_bytes(net, x) < 0.85 * kept_bytes(plain(net), x)


def kept_bytes(net: QuantizedNet, x: Tensor) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = net(x)
        assert isinstance(output, Tensor)
    return sum(kept.values())


def test_hooks_are_called_all_the_same(net: QuantizedNet) -> None:
    """One who listens to a layer hears what it gives, as without fusions."""
    x, heard = noise(8, 3, 40, 40, seed=7), []
    wanted = trained(plain(net), x)
    for layer in net.layers.values():
        layer.register_forward_hook(lambda module, inputs, output: heard.append(module))
    assert trained(net, x) == wanted
    assert len(heard) == len(net.layers)


def test_a_forward_that_was_replaced_is_called(net: QuantizedNet) -> None:
    called: list[str] = []

    def told(name: str, before: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            called.append(name)
            return before(x)

        return forward

    for name, layer in net.quantizers().items():
        layer.forward = told(name, layer.forward)  # type: ignore[assignment, method-assign]
    net(noise(8, 3, 40, 40, seed=7))
    assert called == list(net.quantizers())


def test_codes_are_those_of_the_plain_step(net: QuantizedNet) -> None:
    x = noise(8, 3, 40, 40, seed=7)
    codes, logits = copy.deepcopy(net).codes(x)
    assert isinstance(logits, Tensor)
    assert logits.equal(trained(net, x).tensors[0])
    assert codes.keys() == net.quantizers().keys()


def node(name: str, kind: str, *inputs: str, **settings: float) -> Node:
    return Node(name, kind, inputs, settings)  # type: ignore[arg-type]


def test_what_others_read_is_not_fused() -> None:
    """A norm whose output is an output, is read twice, or is added to itself keeps it."""
    begin = (node("x", "input"), node("c", "conv", "x", norm_eps=1e-5))
    assert fusions(Graph((*begin, node("q", "quantize", "c")), ("q",))).keys() == {"q"}
    assert fusions(Graph((*begin, node("q", "quantize", "c")), ("q", "c"))) == {}
    twice = (*begin, node("q", "quantize", "c"), node("r", "quantize", "c"))
    assert fusions(Graph(twice, ("q", "r"))) == {}
    doubled = (*begin, node("a", "add", "c", "c"), node("q", "quantize", "a"))
    assert fusions(Graph(doubled, ("q",))) == {}
    no_norm = (node("x", "input"), node("c", "conv", "x"), node("q", "quantize", "c"))
    assert fusions(Graph(no_norm, ("q",))) == {}


def test_either_side_of_an_addition_is_fused() -> None:
    for left, right in itertools.permutations(("c", "x")):
        nodes = (
            node("x", "input"),
            node("c", "conv", "x", norm_eps=1e-5),
            node("a", "add", left, right),
            node("q", "quantize", "a"),
        )
        (fusion,) = fusions(Graph(nodes, ("q",))).values()
        assert (fusion.norm, fusion.add, fusion.other) == ("c", "a", "x")
