"""Peers' scripts: their records and options, without the peers."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import quantized, recipe_of, settle
from benchmarks.peers.learned_exponents import gradient_of_exponent, learn
from benchmarks.peers.peer_net import peer_resnet
from benchmarks.peers.peer_run import make_parser, written_command
from benchmarks.peers.record import RESULTS, Record, read_record, with_seed, write_record
from engines.errors import InputError
from faq_deploy.fixed_point import FixedPoint, quantize
from faq_deploy.net import QuantizedNet
from faq_deploy.nets import digits_resnet, resnet14_cifar, resnet18_cifar

_SCRIPTS = ("brevitas_qat", "learned_exponents", "mct_ptq", "onnxruntime_ptq", "ours", "torch_lsq")


def _record(seed: str, top1: float, seconds: float) -> Record:
    return Record(
        name="peer-4bit",
        method="QAT",
        library="peer",
        version="1.0",
        weight_bits=4,
        activation_bits=4,
        scales="po2",
        granularity="channel",
        start="float",
        images="train",
        epochs=6,
        lr=0.02,
        schedule="exponential",
        float_top1=84.31,
        calibrated_top1={seed: 70.0},
        top1={seed: top1},
        best_top1={seed: top1},
        seconds=seconds,
    )


def test_a_second_seed_joins_the_first_in_one_file(tmp_path: Path) -> None:
    write_record(_record("1", 83.0, 300.0), tmp_path)
    path = write_record(_record("0", 82.0, 100.0), tmp_path)
    found = read_record(path)
    assert path.name == "peer-4bit.json"
    assert found.top1 == {"0": 82.0, "1": 83.0}
    assert found.calibrated_top1 == {"0": 70.0, "1": 70.0}
    assert list(found.top1) == ["0", "1"]
    assert found.seconds == 200.0


def test_a_seed_that_is_run_again_replaces_itself() -> None:
    assert with_seed(_record("0", 82.0, 100.0), _record("0", 83.0, 50.0)) == _record("0", 83.0, 50.0)


def test_seeds_of_another_learning_rate_or_float_net_are_dropped() -> None:
    new = _record("0", 82.0, 100.0)
    assert with_seed(replace(_record("1", 83.0, 1.0), lr=0.01), new) == new
    assert with_seed(replace(_record("1", 83.0, 1.0), float_top1=80.0), new) == new


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "peer.json"
    path.write_text('{"name": "peer"}')
    with pytest.raises(InputError, match=r"peer\.json holds no record of a peer's run"):
        read_record(path)


def test_records_can_be_read_and_are_named_after_their_method(tmp_path: Path) -> None:
    for path in [write_record(_record("0", 82.0, 100.0), tmp_path), *RESULTS.glob("*.json")]:
        record = read_record(path)
        assert record.name == path.stem
        assert record.top1
        assert all(0 <= top1 <= 100 for top1 in record.top1.values())
        assert list(json.loads(path.read_text())) == list(Record.__dataclass_fields__)


@pytest.mark.parametrize("script", _SCRIPTS)
def test_scripts_explain_themselves_without_the_peers(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.peers.{script}")
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    assert "--weights FILE" in capsys.readouterr().out


def test_the_written_command_has_every_choice_and_no_path() -> None:
    arguments = make_parser("x", trains=True).parse_args(["--weights", "/a/f.pth", "--data", "/b", "--bits", "8"])
    assert written_command(arguments, "peer.py") == (
        "python benchmarks/peers/peer.py --weights float.pth --data DIR "
        "--bits 8 --epochs 8 --lr 0.02 --gamma 0.5 --scale-lr 1 --seed 0"
    )


class _FloatLayers:
    """A peer that quantizes nothing and notes the bits it was asked for."""

    def __init__(self) -> None:
        self.weights: list[int] = []
        self.activations: list[int] = []

    def conv(self, layer: nn.Conv2d, bits: int) -> nn.Module:
        self.weights.append(bits)
        return layer

    def linear(self, layer: nn.Linear, bits: int) -> nn.Module:
        self.weights.append(bits)
        return layer

    def relu(self, bits: int) -> nn.Module:
        self.activations.append(bits)
        return nn.ReLU()

    def identity(self, bits: int, signed: bool) -> nn.Module:
        assert bits == 8, signed
        return nn.Identity()


@pytest.mark.parametrize(("net", "convolutions"), [(resnet18_cifar(10, 4), 19), (resnet14_cifar(10), 14)])
def test_a_peer_that_quantizes_nothing_gives_the_float_net(net: nn.Module, convolutions: int) -> None:
    net.eval()
    layers = _FloatLayers()
    images: Tensor = torch.randn(2, 3, 32, 32)
    assert torch.equal(peer_resnet(net, layers, 4).eval()(images), net(images))
    assert sorted(layers.weights) == [4] * convolutions + [8, 8]
    assert layers.activations[-1] == 8
    assert set(layers.activations[:-1]) == {4}


def test_an_exponent_s_gradient_is_the_rounding_error_inside_and_the_last_code_outside() -> None:
    values = torch.tensor([0.3, 0.75, -5.0, 9.0])
    grid = FixedPoint(4, signed=True)
    quantized_values = quantize(values, torch.tensor(-1, dtype=torch.int32), grid)
    assert quantized_values.tolist() == [0.5, 1.0, -4.0, 3.5]  # 1.5 is rounded to even: 2 steps
    slope = gradient_of_exponent(values, quantized_values, -1, grid) / 0.6931471805599453
    assert slope.tolist() == pytest.approx([0.2, 0.25, -4.0, 3.5], rel=1e-6)


def _digits_net() -> tuple[QuantizedNet, Tensor, Tensor]:
    torch.manual_seed(0)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    model = digits_resnet()
    settle(model, images)
    net = quantized(model, images, recipe_of(4)).net
    assert isinstance(net, QuantizedNet)
    return net.train(), images, labels


def test_exponents_that_stay_train_as_calibrated_weights_do() -> None:
    net, images, labels = _digits_net()
    plain, _, _ = _digits_net()
    exponents = [layer.weight_exponent.clone() for layer in net.weighted().values()]
    learned = learn(net, "both", 0.0)
    learned.before_step()
    losses = [F.cross_entropy(each(images), labels) for each in (net, plain)]
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    assert losses[0].item() == losses[1].item()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learned.weights)
    assert all(parameter.grad is not None for _, parameter in learned.quantizers)
    learned.before_step()
    kept = [layer.weight_exponent for layer in net.weighted().values()]
    assert all(map(torch.equal, exponents, kept))


def test_exponents_move_with_their_parameters() -> None:
    net, images, labels = _digits_net()
    before = [layer.weight_exponent.clone() for layer in net.weighted().values()]
    learned = learn(net, "both", 1.0)
    learned.before_step()
    F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
    learned.before_step()  # Adam's first step is its rate: one whole exponent, up or down
    after = [layer.weight_exponent for layer in net.weighted().values()]
    moves = torch.cat([(new - old).abs() for old, new in zip(before, after, strict=True)])
    assert moves.max() == 1
    assert moves.float().mean() > 0.5
