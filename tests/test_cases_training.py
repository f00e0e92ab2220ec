"""Trainings that other tools get wrong: batch norms' settings, single images, 16 bits, plans that change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from engines.errors import InputError
from engines.image_batches import BadImages
from engines.images import ArrayImages
from engines.preprocess import Preprocessing
from engines.run_folder import RunFolder
from faq_deploy.checkpoint import load_state
from faq_deploy.finetune import Interrupted
from faq_deploy.net import QuantizedNet
from faq_deploy.quantize import Batches
from faq_deploy.ranks import one_process
from faq_deploy.stored_net import load_net
from tests.quantized import images, make_recipe, quantized_net
from tests.training_jobs import STEPS, Job, Scores, assert_whole, signal_at

CPU = torch.device("cpu")

_SETTINGS = """\
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.Conv2d(16, 16, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-3, momentum=0.03)
        self.bn2 = nn.BatchNorm2d(16, eps=0.5, momentum=0.2)
        self.bn2.running_var.fill_(0.01)
        self.drop, self.never = nn.Dropout(0.1), nn.Dropout(0)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.never(self.drop(F.relu(self.bn1(self.conv1(x)))))
        x = F.dropout(F.relu(self.bn2(self.conv2(x))), 0.2, self.training)
        return self.fc(x.mean((2, 3)))


class Certain(Net):
    def __init__(self):
        super().__init__()
        self.drop.p = 0.0

    def forward(self, x):
        x = self.never(self.drop(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Pooled(nn.Module):
    def __init__(self, num_classes=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.norm(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 1))
        return self.fc(torch.flatten(x, 1))
"""


def call(*arguments: object) -> Result:
    """`faq-deploy` in this process."""
    import cli

    return CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)


def module_of(folder: Path, name: str, *arguments: int) -> nn.Module:
    """A network of `nets.py`, which is written."""
    space: dict[str, type[nn.Module]] = {}
    exec(compile(_SETTINGS, str(folder / "nets.py"), "exec"), space)
    (folder / "nets.py").write_text(_SETTINGS)
    return space[name](*arguments)


# C04: batch norm's eps and momentum, and dropout's p


def test_settings_of_batch_norms_and_dropouts_outlive_training_and_evaluation(tmp_path: Path) -> None:
    module = module_of(tmp_path, "Net")
    run = tmp_path / "run"
    model = ("quantize", f"{tmp_path / 'nets.py'}:Net", "--data", "digits", "--recipe", "digits-8bit")
    result = call(*model, "--epochs", 1, "--batch-size", 256, "--keep", "last", "--device", "cpu", "-o", run)
    assert result.exit_code == 0, result.output
    for stage in ("float.pt", "quantized.pt"):
        net = load_net(run / stage).net
        norms = [layer.norm for layer in net.weighted().values() if layer.norm is not None]
        assert [(norm.eps, norm.momentum) for norm in norms] == [(1e-3, 0.03), (0.5, 0.2)]
        assert [layer.p for layer in net.layers.values() if isinstance(layer, nn.Dropout)] == [0.1, 0.2]
        for eps, norm in zip((1e-3, 0.5), norms, strict=True):
            a, _ = norm.constants()
            wanted = norm.weight.double() / (norm.running_var.double() + eps).sqrt()
            assert torch.allclose(a.double(), wanted, rtol=1e-6, atol=0)
    start = module.state_dict()["bn2.running_var"]  # 0.01: under the 0.5 it hardly counts, and 1e-5 would give 7 a
    a, _ = [x.norm for x in load_net(run / "float.pt").net.weighted().values() if x.norm is not None][1].constants()
    assert float(start[0]) == pytest.approx(0.01) and a.detach().tolist() == pytest.approx([0.51**-0.5] * 16)


def test_a_dropout_of_zero_makes_training_certain(tmp_path: Path) -> None:
    module = module_of(tmp_path, "Certain")
    data = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    net = quantized_net(module, make_recipe(), data).net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net.load_state_dict(state)
        outputs.append(net(data))
    assert torch.equal(outputs[0], outputs[1])


# C11: a last batch of one image


def some_images(count: int) -> ArrayImages:
    rng = np.random.default_rng(1)
    labels = np.arange(count) % 2
    return ArrayImages(rng.integers(0, 256, (count, 8, 8, 3), np.uint8), labels, ("a", "b"), Preprocessing())


def pooled_job(folder: Path, count: int, size: int, *doublings: int) -> Job:
    """Two epochs of a net whose batch norm sees one value per image and channel."""
    torch.manual_seed(3)
    module = module_of(folder.parent, "Pooled", 2)
    net = quantized_net(module, make_recipe(), images(8, 8)).net
    job = Job(folder, net=net, before_step=net.before_step)
    job.changes = {"training.batch_size": size, "training.batch_doublings": list(doublings)}
    job.train = Batches(some_images(count), job.recipe, "none", 0, "error", BadImages(), one_process(CPU))
    return job


@pytest.mark.parametrize(
    ("count", "size", "sizes", "doublings"),
    [(65, 64, [65], ()), (65, 64, [65], (1,)), (33, 16, [16, 17], ()), (33, 16, [16, 17], (1,)), (3, 64, [3], ())],
)
def test_a_single_last_image_is_merged_into_the_batch_before(
    tmp_path: Path, count: int, size: int, sizes: list[int], doublings: tuple[int, ...]
) -> None:
    whole = pooled_job(tmp_path / "whole", count, size, *doublings)
    assert whole().steps == 2 * len(sizes)
    assert [whole.train.images_in(step) for step in range(len(sizes))] == sizes
    assert [len(y) for _, y in whole.train.batches(0, 0)] == sizes
    assert all(math.isfinite(line["loss"]) for line in whole.lines("step"))
    stopped = pooled_job(tmp_path / "stopped", count, size, *doublings)
    stopped.val = Scores(before=lambda: signal_at(0).before(0) if stopped.val.calls == 0 else None)  # type: ignore[attr-defined]
    with pytest.raises(Interrupted):
        stopped()
    job = pooled_job(tmp_path / "stopped", count, size, *doublings)
    job(resume=True)
    assert_whole(job, whole)


@pytest.mark.parametrize("verb", ["quantize", "train"])
def test_one_image_in_all_is_refused_before_anything_starts(tmp_path: Path, verb: str) -> None:
    module_of(tmp_path, "Pooled")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "data" / split / "a" / "0.png")
    run = tmp_path / "run"
    result = call(verb, f"{tmp_path / 'nets.py'}:Pooled", "--data", tmp_path / "data", "--epochs", 1, "-o", run)
    assert result.exit_code == 2
    assert "can't be trained on 1 image at a time" in " ".join(result.stderr.split())
    assert "calibrating" not in result.stderr and not run.exists()


# C19: mixed precision


class Scaled(nn.Module):
    """Its input comes divided by `by`; what its second layer gives is multiplied by `gain`."""

    def __init__(self, by: float, gain: float) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.next, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        with torch.no_grad():
            self.conv.weight.mul_(by)
            self.next.weight.mul_(gain)
            self.fc.weight.div_(gain)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.next(F.relu(self.conv(x)))).mean((2, 3)))
        return logits


class Noise:
    """30 batches of 8 noise images, divided by `by`."""

    steps_per_epoch = STEPS

    def __init__(self, by: float) -> None:
        self.by = by

    def images_in(self, step: int) -> int:
        return 8

    def batches(self, epoch: int, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start_step, STEPS):
            yield images(8, 10, 100 * epoch + step) / self.by, torch.arange(8) % 3


def scaled_job(folder: Path, precision: str, by: float, gain: float) -> tuple[Job, QuantizedNet]:
    data = images(8, 10) / by
    net = quantized_net(Scaled(by, gain), make_recipe(), data).net
    job = Job(folder, epochs=1, net=net, train=Noise(by), before_step=net.before_step)
    job.changes = {"training.precision": precision, "training.lr": 1e-5}
    return job, net


def codes_in(net: QuantizedNet, tensor: Tensor, name: str) -> Tensor:
    quantizer = net.quantizers()[name]
    return quantizer.codes(quantizer(tensor))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_codes_of_a_tensor_are_those_of_fp32_under_autocast(precision: torch.dtype) -> None:
    net = quantized_net(Scaled(40_000.0, 1.0), make_recipe(), images(8, 10) / 40_000).net
    quantizer = net.quantizers()["input_quantizer"]
    assert quantizer.exponent_number == -20
    data = images(8, 10, seed=3) / 40_000
    for given in (data, data.to(precision)):
        wanted = codes_in(net, given.float(), "input_quantizer")
        x = given.clone().requires_grad_()
        with torch.autocast("cpu", precision):
            values = quantizer(x)
            codes = codes_in(net, given, "input_quantizer")
        assert values.dtype == torch.float32 and values.requires_grad
        assert torch.equal(codes, wanted) and int(wanted.abs().max()) > 100
        values.sum().backward()
        assert x.grad is not None and set(x.grad.flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_first_layer_of_tiny_steps_trains_in_16_bits(tmp_path: Path, precision: str) -> None:
    trained = []
    for kind in ("fp32", precision):
        job, net = scaled_job(tmp_path / kind, kind, 40_000.0, 1.0)
        before = {name: value.detach().clone() for name, value in net.named_parameters()}
        assert net.quantizers()["input_quantizer"].exponent_number == -20
        job()
        trained.append(net)
        assert all(math.isfinite(line["loss"]) for line in job.lines("step"))
        moved = [name for name, value in net.named_parameters() if not torch.equal(value, before[name])]
        assert "layers.next.weight" in moved and "layers.fc.weight" in moved
        exact = quantized_net(Scaled(40_000.0, 1.0), make_recipe(), images(8, 10) / 40_000).net
        exact.load_state_dict(net.state_dict())
        exact.train().refresh()
        for name, layer in exact.weighted().items():  # from float32 maxima, whatever the products were computed in
            assert torch.equal(layer.weight_exponent, net.weighted()[name].weight_exponent)
    full, half = (
        torch.cat([value.flatten() for name, value in net.state_dict().items() if name.endswith("weight")])
        for net in trained
    )
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, rtol=0.02, atol=1e-3)


def test_activations_of_70000_train_in_bf16_and_name_their_layer_in_fp16(tmp_path: Path) -> None:
    job, net = scaled_job(tmp_path / "bf16", "bf16", 1.0, 200_000.0)
    reached = []
    net.layers["next"].register_forward_hook(
        lambda module, inputs, output: reached.append(float(output.detach().abs().max()))
    )
    job()
    assert max(reached) > 70_000
    assert all(math.isfinite(line["loss"]) for line in job.lines("step"))
    job, _ = scaled_job(tmp_path / "fp16", "fp16", 1.0, 200_000.0)
    with pytest.raises(InputError) as caught:
        job()
    assert caught.value.what == "The output of layer next overflows fp16, which ends at 65,504, by step 19."
    assert "pass --precision bf16 or fp32" in caught.value.remedy and "(step 0)" in caught.value.remedy


def test_gradients_that_overflow_in_fp16_leave_their_step_out_and_halve_the_scale(tmp_path: Path) -> None:
    job, net = scaled_job(tmp_path, "fp16", 1.0, 1.0)
    weight = net.layers["conv"].weight
    assert isinstance(weight, Tensor)
    seen: list[Tensor] = []

    def gradient(value: Tensor) -> Tensor:
        seen.append(weight.detach().clone())
        return value * math.inf if len(seen) == 3 else value

    weight.register_hook(gradient)  # type: ignore[no-untyped-call]
    job()
    changed = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert changed[2] is False and changed[0] and changed[1] and changed[3]
    assert load_state(RunFolder(tmp_path)).scaler["scale"] == 2.0**15


# C20: another number of epochs


def paper_job(folder: Path, epochs: int) -> Job:
    return Job(folder, epochs=epochs, changes={"training.lr": 0.0015, "training.gamma": 0.936})


def test_rate_of_every_step_is_the_closed_form_whatever_was_stopped_and_continued(tmp_path: Path) -> None:
    job = paper_job(tmp_path, 6)
    job.val = Scores(before=lambda: signal_at(0).before(0) if len(job.lines("epoch")) == 2 else None)
    with pytest.raises(Interrupted, match=f"after step {3 * STEPS} of"):  # in the validation of epoch 3
        job()
    job = paper_job(tmp_path, 6)
    job.train = signal_at(3 * STEPS + 6)
    with pytest.raises(Interrupted, match=f"after step {3 * STEPS + 7} of {6 * STEPS}"):
        job(resume=True)
    with pytest.raises(InputError, match=r"is in or after epoch 4, but training\.epochs is 3"):
        paper_job(tmp_path, 3)(resume=True)
    assert paper_job(tmp_path, 5)(resume=True).epochs_done == 5  # fewer than planned, more than begun
    assert paper_job(tmp_path, 8)(resume=True).epochs_done == 8
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.iterdir()}
    assert paper_job(tmp_path, 8)(resume=True).nothing_to_do
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.iterdir()} == before
    lines = job.lines("step")
    assert [line["step"] for line in lines] == list(range(8 * STEPS))
    for line in lines:
        assert line["lr"] == pytest.approx(0.0015 * 0.936 ** (line["step"] // STEPS), rel=1e-12)


def test_command_line_resumes_with_more_epochs_and_says_what_is_done_or_too_few(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start = ("quantize", "builtin:digits-resnet", "--weights", "random", "--data", "digits", "--recipe", "digits-8bit")
    assert call(*start, "--batch-size", 512, "--epochs", 1, "--device", "cpu", "-o", run).exit_code == 0
    resume = ("quantize", "--resume", "-o", run, "--device", "cpu", "--epochs")
    assert call(*resume, 2).exit_code == 0
    assert "epochs = 2" in (run / "recipe.toml").read_text()
    facts = json.loads((run / "manifest.json").read_text())["steps"]["quantize"]["facts"]
    assert facts["epochs"] == 2
    times = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    again = call(*resume, 2)
    assert again.exit_code == 0 and "nothing to do" in again.stderr
    fewer = call(*resume, 1)
    assert fewer.exit_code == 2 and "at least 2 epochs" in " ".join(fewer.stderr.split())
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == times
