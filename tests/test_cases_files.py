"""Exported files that other tools lose or misread: tiny scales, versions, weights apart, biases off their grid."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from engines import onnx_facts
from engines.build import build_onnx_file
from engines.build_options import BuildOptions
from engines.errors import InputError
from engines.lint import Finding, lint
from engines.ort import OrtRunner
from engines.qdq_graph import load_model
from faq_deploy.certificate import certificate
from tests.case_checks import agreeing, all_levels, codes_at_all_levels
from tests.nets import Small, with_statistics
from tests.quantized import images

LARGEST = [1, 1e-6, 1e-20, 1e-38, 1e-44, 0]  # of each channel; the fifth is subnormal


class Faint(nn.Module):
    """Channels that reach LARGEST; a batch norm with a variance of 1e30, or activations of 1e-30, if asked for."""

    def __init__(self, bias: bool, variance: float | None, scale: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.scale = scale
        self.conv, self.last = nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.Conv2d(6, 6, 1)
        self.norm, self.fc = nn.BatchNorm2d(6) if variance else nn.Identity(), nn.Linear(6, 5)
        largest = torch.tensor(LARGEST, dtype=torch.float64)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(6, 3, 3, 3).sign() * largest.reshape(6, 1, 1, 1))
            if self.conv.bias is not None:
                self.conv.bias.copy_(largest / 2)
        if isinstance(self.norm, nn.BatchNorm2d) and variance:
            assert self.norm.running_var is not None
            self.norm.running_var.fill_(variance)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(self.last(F.relu(self.norm(self.conv(x * self.scale)))).mean((2, 3)))
        return logits


def scales(model: onnx.ModelProto) -> list[float]:
    """All scales of a file, flat."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return [float(value) for node in readers for value in constants[node.input[1]].reshape(-1)]


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_channels_with_tiny_weights_keep_positive_normal_scales(bias: bool, tmp_path: Path) -> None:
    made = agreeing(Faint(bias, None, 1.0).eval(), tmp_path)
    layer = made.stored.net.weighted()["conv"]
    assert layer.weight_exponent.tolist()[:2] == [-6, -26]  # ceil(log2(1 / 127)), ceil(log2(1e-6 / 127))
    assert [int(codes.abs().max()) for codes in layer.weight_codes()] == [64, 67, 0, 0, 0, 0]
    assert layer.bias_codes().tolist()[2:] == [0, 0, 0, 0]
    (bound,) = [b for b in certificate(made.stored.net) if b.name == "conv"]
    assert bound.dead_channels == 4
    assert bound.proven


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize(
    ("bias", "variance", "scale"), [(False, None, 1.0), (True, 1e30, 1.0), (False, None, 1e-30), (True, None, 1e-30)]
)
def test_no_scale_or_bias_underflows(
    bias: bool, variance: float | None, scale: float, target: str, tmp_path: Path
) -> None:
    model = Faint(bias, variance, scale).eval()
    made = agreeing(model, tmp_path, target)
    found = np.array(scales(made.onnx))
    assert (np.frexp(found)[0] == 0.5).all()  # powers of two
    assert found.min() >= float(np.finfo(np.float32).tiny)
    for layer in made.stored.net.weighted().values():
        assert int(layer.accumulator_exponent.min()) >= -126
        assert int(layer.bias_codes().abs().max()) <= 2**22
    with torch.inference_mode():
        wanted, logits = model(images()), made.stored.net(images())
    assert isinstance(logits, Tensor)
    assert float((wanted - logits).abs().max()) < 0.03
    assert all(np.isfinite(values).all() for values in all_levels(made.path, images().numpy()))


def test_the_ir_version_is_the_lowest_that_the_opset_needs(tmp_path: Path) -> None:
    made = agreeing(with_statistics(Small()), tmp_path)
    assert (made.onnx.ir_version, [entry.version for entry in made.onnx.opset_import]) == (8, [13])
    assert onnx.IR_VERSION > 8  # the package would have stamped a newer one
    newer = onnx.ModelProto()
    newer.CopyFrom(made.onnx)
    newer.ir_version = onnx.IR_VERSION
    assert [finding.remedy for finding in lint(newer) if finding.level == "error"] == ["set model.ir_version = 8."]
    assert newer.graph.SerializeToString(deterministic=True) == made.onnx.graph.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported file that holds its weights itself."""
    return agreeing(with_statistics(Small()), tmp_path_factory.mktemp("whole")).path


@pytest.fixture
def apart(whole: Path, tmp_path: Path) -> Path:
    """The same with its weights in model.onnx_data."""
    return parted(whole, tmp_path / "apart", "model.onnx_data")


def parted(whole: Path, folder: Path, location: str | None) -> Path:
    """A copy whose weights lie in `location`, or in a file for each tensor."""
    folder.mkdir()
    path, model = folder / "model.onnx", onnx.load(whole)
    together = location is not None
    onnx.save(
        model, path, save_as_external_data=True, size_threshold=0, all_tensors_to_one_file=together, location=location
    )
    return path


@pytest.mark.parametrize("location", ["model.onnx_data", "model.onnx.data", "0f3b2c9e-7d1a", None])
def test_weights_apart_are_followed_from_anywhere_and_go_into_the_engine(
    location: str | None, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parted(whole, tmp_path / "apart", location)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert lint(load_model(path)) == lint(load_model(whole))
    facts = onnx_facts.read(path)
    assert len(facts.data) == (1 if location else len(onnx.load(whole).graph.initializer))
    (result,) = build_onnx_file(path, tmp_path / "engines", ["onnxruntime"], (), BuildOptions(), version="1")
    assert (result.status, result.reason) == ("built", "")
    assert result.manifest is not None
    assert result.manifest.onnx_sha256 == facts.sha256
    shutil.rmtree(path.parent)
    wanted = OrtRunner(whole)(images().numpy())
    assert np.array_equal(OrtRunner(tmp_path / "engines" / "onnxruntime" / "model.onnx")(images().numpy()), wanted)


def test_an_engine_is_built_again_when_only_the_weights_changed(apart: Path, tmp_path: Path) -> None:
    def status() -> str:
        (result,) = build_onnx_file(apart, tmp_path / "engines", ["onnxruntime"], (), BuildOptions(), version="1")
        return result.status

    assert [status(), status()] == ["built", "kept"]
    data = apart.parent / "model.onnx_data"
    model = onnx.load(apart, load_external_data=False)
    (tensor,) = [t for t in model.graph.initializer if t.name == "stem.weight_codes"]
    (offset,) = [int(entry.value) for entry in tensor.external_data if entry.key == "offset"]
    content = bytearray(data.read_bytes())
    content[offset] ^= 1
    data.write_bytes(content)
    assert status() == "built"


def relocated(path: Path, location: str) -> None:
    """Let every tensor of a file lie in `location`."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())


def _missing(path: Path, data: Path) -> None:
    data.unlink()


def _truncated(path: Path, data: Path) -> None:
    data.write_bytes(data.read_bytes()[:-100])


def _linked(path: Path, data: Path) -> None:
    outside = data.parent.parent / "outside"
    data.rename(outside)
    os.symlink(outside, data)


def _passwords(path: Path, data: Path) -> None:
    relocated(path, "../../etc/passwd")


def _absolute(path: Path, data: Path) -> None:
    relocated(path, "/etc/passwd")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_missing, "/apart/model.onnx_data is missing."),
        (_truncated, "/apart/model.onnx_data is cut short ("),
        (_linked, "/apart/model.onnx_data is a link, or lies outside the folder."),
        (_passwords, "/apart/../../etc/passwd is a link, or lies outside the folder."),
        (_absolute, "/etc/passwd is a link, or lies outside the folder."),
    ],
)
def test_weights_that_are_missing_cut_or_outside_are_refused_by_their_file(
    damage: object, said: str, apart: Path, tmp_path: Path
) -> None:
    assert callable(damage)
    damage(apart, apart.parent / "model.onnx_data")
    for read in (load_model, onnx_facts.read):
        with pytest.raises(InputError) as caught:
            read(apart)
        assert said in caught.value.what
        assert caught.value.exit_code == 2
    with pytest.raises(InputError):
        build_onnx_file(apart, tmp_path / "engines", ["onnxruntime"], (), BuildOptions(), version="1")
    assert not (tmp_path / "engines").exists()


class Wide(nn.Module):
    """Ends in a linear layer on an image, which stays a Gemm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8 * 7 * 7, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(F.relu(self.conv(x)).flatten(1))
        return logits


def off_grid(model: onnx.ModelProto) -> list[Finding]:
    """What the linter says about biases."""
    return [finding for finding in lint(model) if finding.rule == "bias-grid"]


@pytest.mark.parametrize(
    ("make", "target", "operator", "name"),
    [
        (Small, "tensorrt", "Conv", "stem"),
        (Small, "tensorrt", "Conv", "blocks_1_conv2"),
        (Wide, "onnxruntime", "Gemm", "fc"),
    ],
    ids=["convolution", "convolution before an add", "linear"],
)
def test_a_bias_off_the_accumulator_grid_is_named_with_layer_and_channel(
    make: type[nn.Module], target: str, operator: str, name: str, tmp_path: Path
) -> None:
    data = images(32)
    made = agreeing(with_statistics(make()), tmp_path, target, data)
    tensors = OrtRunner(made.path).code_names
    oracle, *others = codes_at_all_levels(made.path, data.numpy(), tensors)
    assert all(np.array_equal(codes[tensor], oracle[tensor]) for codes in others for tensor in tensors)
    assert off_grid(made.onnx) == []
    layer = made.stored.net.weighted()[name]
    codes = layer.bias_codes().double()
    steps = torch.ldexp(torch.ones_like(codes), layer.accumulator_exponent)
    values = (codes * steps).float()
    assert torch.equal(values.double(), codes * steps)
    values[3] += steps[3] / 2
    (node,) = [node for node in made.onnx.graph.node if node.name == name]
    assert node.op_type == operator
    node.input[2] = "moved"
    made.onnx.graph.initializer.append(numpy_helper.from_array(values.numpy(), "moved"))
    (finding,) = off_grid(made.onnx)
    assert (finding.level, finding.node) == ("error", name)
    assert finding.message.startswith(f"{operator} {name}: the bias of channel 3 is {int(codes[3]) + 0.5:.6g} steps")
