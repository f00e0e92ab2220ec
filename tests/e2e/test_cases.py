"""Models that broke other tools, through the command line: finished with the right answer, or one sentence, exit 2."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.e2e.conftest import Call
from tests.e2e.photos import line_of, quantize_photos
from tests.e2e.refusals import contents, refusal

pytestmark = [pytest.mark.xdist_group("digits"), pytest.mark.filterwarnings("always::UserWarning")]

_MODELS = """\
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, kernel=3):
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(3, 8, kernel), nn.BatchNorm2d(8, eps=1e-3), nn.Linear(8, 3)
        self.words = nn.Embedding(256, 3)

    def forward(self, x):
        return self.linear(F.relu(self.bn(self.conv(x))).mean((2, 3)))


def net():
    return Net()


def parallel():
    return nn.SyncBatchNorm.convert_sync_batchnorm(Net())


def half():
    return Net().half()


def hooked():
    made = Net()
    nn.utils.weight_norm(made.conv)
    made(torch.zeros(2, 3, 16, 16))
    made.conv.weight_g.data *= 2
    made.register_forward_hook(lambda module, inputs, output: output * 2)
    return made


def faint():
    made = Net()
    for channel, largest in enumerate([1, 1e-6, 1e-20, 1e-38, 1e-44, 0, 1, 1]):
        made.conv.weight.data[channel] = made.conv.weight.data[channel].sign() * largest
    made.bn.running_var[7] = 1e30
    made.conv.bias.data.zero_()
    return made


class Words(Net):
    def forward(self, x):
        y = (x * 255).long().flatten(1)
        return self.words(y.abs() % 256).mean(1)  # the words


class Spectrum(Net):
    def forward(self, x):
        return super().forward(torch.fft.fft2(x).real)  # the spectrum


class Rolled(Net):
    def forward(self, x):
        y = F.relu(self.conv(x))
        y = torch.roll(y, 1, 2)  # the roll
        return self.linear(y.mean((2, 3)))


class Batch(Net):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(8, track_running_stats=False)


class Lookup(Net):
    def forward(self, x):
        y, indices = F.max_pool2d(self.conv(x), 2, return_indices=True)
        return self.linear(F.max_unpool2d(y, indices, 2).mean((2, 3)))  # the unpooling


class NumPy(Net):
    def forward(self, x):
        return super().forward(torch.from_numpy(x.numpy()))  # the array


def layerless():
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def strided():
    return nn.Sequential(*[nn.Conv2d(3, 3, 3, 2) for _ in range(4)], nn.Flatten(), nn.Linear(3, 3))


def raising():
    return nn.Conv2d(3, 8, 3, groups=2)  # the groups


def nothing():
    pass
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "models.py"
    file.write_text(_MODELS)
    return file


@pytest.mark.parametrize(
    ("factory", "what", "place", "remedy"),
    [
        ("Words", "embedding, which reads integers, is not supported", "# the words", "computes with float numbers"),
        ("Spectrum", "fft_fft2, which gives complex numbers, is not", "# the spectrum", "computes with float numbers"),
        ("Rolled", "roll is not supported (node roll", "# the roll", "replace it by supported layers"),
        ("Batch", "(bn, models.py:13) uses the statistics of the current batch", "", "track_running_stats"),
        ("Lookup", "max_unpool2d, which reads integers, is not", "# the unpooling", "computes with float numbers"),
        ("NumPy", "leaves torch for NumPy", "# the array", "compute with torch alone"),
        ("layerless", "no convolution or linear layer", "", "a convolutional net"),
        ("strided", "fails on images of shape 3x16x16: in 3: ", "", "--resize and --crop"),
        (
            "raising",
            "raising() raised ValueError: in_channels must be divisible",
            "# the groups",
            "correct the model's file",
        ),
        ("nothing", "returned NoneType, not a torch.nn.Module", "", "return the model"),
    ],
)
def test_a_model_that_cannot_be_is_named_with_its_place_and_leaves_nothing(
    call: Call, models: Path, photos: Path, tmp_path: Path, factory: str, what: str, place: str, remedy: str
) -> None:
    error, note = refusal(quantize_photos(call, f"{models}:{factory}", photos, tmp_path / "run")).splitlines()
    assert what in error
    assert not place or line_of(models, place) in error
    assert remedy in note
    assert contents(tmp_path) == {}


def test_sync_batch_norm_goes_through_all_verbs_like_its_plain_twin(
    call: Call, models: Path, photos: Path, tmp_path: Path
) -> None:
    found = []
    for factory in ("net", "parallel"):
        run = tmp_path / factory
        trained = ("--epochs", 1, "--batch-size", 12, "--device", "cpu")
        assert quantize_photos(call, f"{models}:{factory}", photos, run, *trained).exit_code == 0
        for verb in (("export", run), ("build", run, "--runtime", "onnxruntime"), ("eval", run)):
            result = call(*verb)
            assert result.exit_code == 0, result.output
        model = onnx.load(run / "model.onnx")
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
        found.append([(t.name, t.raw_data) for t in model.graph.initializer])
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("factory", ["half", "hooked", "faint"])
def test_half_precision_hooks_and_faint_channels_are_no_obstacle(
    call: Call, models: Path, photos: Path, tmp_path: Path, factory: str
) -> None:
    run = tmp_path / "run"
    assert quantize_photos(call, f"{models}:{factory}", photos, run).exit_code == 0
    for verb in (("export", run), ("build", run, "--runtime", "onnxruntime"), ("eval", run)):
        result = call(*verb)
        assert result.exit_code == 0, result.output
    report = json.loads((run / "report.json").read_text())
    dead = {layer["name"]: layer["dead_channels"] for layer in report["layers"] if layer["dead_channels"] is not None}
    assert dead["conv"] == (5 if factory == "faint" else 0)


def test_weights_beside_an_onnx_file_are_followed_or_their_file_is_named(
    call: Call, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "apart" / "model.onnx"
    path.parent.mkdir()
    model = onnx.load(exported / "model.onnx")
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    built = call("build", path, "--runtime", "onnxruntime", "-o", tmp_path / "engines")
    assert built.exit_code == 0, built.output
    (path.parent / "model.onnx_data").unlink()
    message = refusal(call("build", path, "--runtime", "onnxruntime", "-o", tmp_path / "more"))
    assert "apart/model.onnx_data is missing." in message
    assert not (tmp_path / "more").exists()
