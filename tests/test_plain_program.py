"""In-place ops of plain nets are made functional without torch's second trace, into the very same graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torchvision import models as zoo

from faq_deploy import plain_program, tracing
from faq_deploy.capture import Captured, capture
from faq_deploy.plain_program import is_plain

Body = Callable[["Net", Tensor], Tensor]
_QUIET = {"googlenet": {"init_weights": False}}
SLOW = ("resnet50", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "regnet_y_400mf", "squeezenet1_0")


class Net(nn.Module):
    """A convolution, a norm, the body, and a classifier."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(self.body(self, x), 2), 1))
        return logits


def net(body: Body) -> nn.Module:
    made = Net(body).eval()
    made(torch.zeros(1, 3, 8, 8))
    return made


def both_ways(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, size: int = 8
) -> tuple[Captured, Captured, ExportedProgram]:
    """Captured as it is and by torch's second trace, and what torch exported."""
    programs: list[ExportedProgram] = []

    def noted(program: ExportedProgram, answer: bool) -> bool:
        programs.append(program)
        return answer

    example = torch.zeros(2, 3, size, size)
    own = capture(model.eval(), example)
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "is_plain", lambda program: noted(program, False))
        return own, capture(model, example), programs[0]


def assert_equal(own: Captured, slow: Captured) -> None:
    assert own.graph == slow.graph
    assert (own.outputs, own.chosen, own.tail) == (slow.outputs, slow.chosen, slow.tail)
    assert list(own.state) == list(slow.state)
    assert all(torch.equal(own.state[key], slow.state[key]) for key in own.state)


PLAIN: dict[str, Body] = {
    "in-place relu and add": lambda m, x: (y := F.relu_(m.norm(m.conv(x)))).add_(m.norm(y)),
    "a later reader of what a relu changed": lambda m, x: (y := m.norm(m.conv(x))) + F.relu_(y) + y,
    "an earlier reader": lambda m, x: (y := m.norm(m.conv(x))) * 2 + F.hardtanh_(y, 0, 6) + y,
    "two changes of one tensor": lambda m, x: F.hardswish(F.silu(y := m.conv(x), inplace=True), inplace=True) + y,
    "add with alpha": lambda m, x: (y := m.conv(x)).add_(m.norm(y), alpha=2),
    "dropout": lambda m, x: F.relu_(F.dropout(m.conv(x), 0.3)),
}
# of known ops, and still not plain
SHARED: dict[str, Body] = {
    "the input is changed": lambda m, x: m.conv(F.relu_(x)),
    "a view is changed": lambda m, x: F.relu_(torch.flatten(m.conv(x), 2)),
    "what has a view is changed": lambda m, x: torch.cat(
        [torch.flatten(y := m.conv(x), 2), torch.flatten(F.relu_(y), 2)], 2
    ),
    "what a change gave has a view, and is changed": lambda m, x: torch.cat(
        [torch.flatten(F.relu_(y := m.conv(x)), 2), torch.flatten(y.add_(1), 2)], 2
    ),
}
UNKNOWN: dict[str, Body] = {
    "a part is changed": lambda m, x: F.relu_((y := m.conv(x))[:, :2]).sum() * 0 + y,
    "another in-place op": lambda m, x: m.conv(x).mul_(2),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_net_gives_the_graph_of_torchs_second_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, slow, program = both_ways(net(PLAIN[name]), monkeypatch)
    assert is_plain(program)
    assert_equal(own, slow)


@pytest.mark.parametrize("name", [*SHARED, *UNKNOWN])
def test_what_may_share_memory_is_left_to_torch(name: str) -> None:
    with torch.no_grad():
        program = torch.export.export(net((SHARED | UNKNOWN)[name]), (torch.zeros(2, 3, 8, 8),), strict=False)
    known = {*plain_program._FUNCTIONAL, *plain_program._NEW, plain_program._VIEW}
    found = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert (found <= known) == (name in SHARED)
    assert not is_plain(program)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_published_architectures_are_plain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, slow, program = both_ways(zoo.get_model(name, weights=None, **_QUIET.get(name, {})), monkeypatch, 64)
    assert is_plain(program)
    assert_equal(own, slow)
