"""Graphs whose exported form broke other tools or runtimes: identical codes at every step, or one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from engines.errors import InputError
from engines.lint import lint
from engines.ort import OrtRunner
from engines.qdq_graph import read_graph, zero_points
from engines.reference import ReferenceRunner
from faq_deploy.capture import capture
from tests.case_checks import agreeing, all_levels, codes_at_all_levels, float_difference
from tests.constructs import Shuffled
from tests.quantized import images


class Averaged(nn.Module):
    """A pool in ceil mode between two 1x1 convolutions that change nothing."""

    def __init__(self, counted: bool = True, stride: int = 2, behind: bool = True, largest: bool = False) -> None:
        super().__init__()
        self.counted, self.stride, self.behind, self.largest = counted, stride, behind, largest
        self.a, self.b = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.a.weight)
        nn.init.ones_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Every position as if they were logits."""
        x = self.a(x)
        if self.largest:
            x = F.max_pool2d(x, 3, self.stride, 1, ceil_mode=True)
        else:
            x = F.avg_pool2d(x, 3, self.stride, 1, ceil_mode=True, count_include_pad=self.counted)
        return (self.b(x) if self.behind else x).flatten(1)


def ramp() -> Tensor:
    """1 to 16 as an image of 4x4, and an image that makes the range 32, so that quarters are exact."""
    x = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    return torch.cat([x, x + 4])


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_ceil_mode_pools_divide_by_the_window_within_the_padding(target: str, tmp_path: Path) -> None:
    wanted = np.array([14 / 9, 10 / 3, 2, 19 / 3, 11, 6, 4.5, 7.5, 4], np.float32)
    model = Averaged(behind=False).eval()
    with torch.no_grad():
        assert np.array_equal(model(ramp())[0].numpy(), wanted)
    assert float_difference(model, ramp()) == 0.0
    made = agreeing(model, tmp_path, target, ramp())
    found = [runner(ramp().numpy())[0] for runner in (ReferenceRunner(made.path), OrtRunner(made.path))]
    found += [logits[0] for logits in all_levels(made.path, ramp().numpy())]
    for logits in found:
        assert np.array_equal(logits, wanted)
    (tmp_path / "behind").mkdir()
    behind = agreeing(Averaged().eval(), tmp_path / "behind", target, ramp())
    (name,) = [n.name for n in behind.stored.net.graph if n.kind == "quantize" and n.inputs[0].startswith("avg_pool")]
    step = 2.0 ** behind.stored.net.quantizers()[name].exponent_number
    assert step <= 0.25
    for logits in all_levels(behind.path, ramp().numpy()):
        assert np.array_equal(logits[0], np.rint(wanted / step) * step)


@pytest.mark.parametrize("pool", ["counted", "not counted", "max"])
@pytest.mark.parametrize("size", [4, 5, 6])  # at 5 the last window would begin in the padding
def test_ceil_mode_gives_the_shape_that_torch_gives(size: int, pool: str, tmp_path: Path) -> None:
    data = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(size))
    model = Averaged(counted=pool == "counted", stride=3, largest=pool == "max").eval()
    assert model(data).shape == (2, {4: 2, 5: 2, 6: 3}[size] ** 2)
    made = agreeing(model, tmp_path, data=data)
    for logits in all_levels(made.path, data.numpy()):
        assert logits.shape == tuple(model(data).shape)


def test_a_pool_whose_last_window_is_padding_along_one_axis_is_refused_by_name() -> None:
    with pytest.raises(
        InputError, match=r"avg_pool2d whose last window, by ceil_mode, .*\(node avg_pool2d, test_cases"
    ):
        capture(Averaged(stride=3), torch.randn(2, 1, 5, 6))


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_an_example_of_any_batch_size_leaves_the_batch_open(target: str, tmp_path: Path) -> None:
    data = images(32)
    made = agreeing(Shuffled().eval(), tmp_path, target, data)
    graph = made.onnx.graph
    first = [value.type.tensor_type.shape.dim[0] for value in (*graph.input, *graph.output)]
    assert [bool(dim.dim_param) for dim in first] == [True, True]
    whole = OrtRunner(made.path)(data.numpy())
    for runner in (OrtRunner(made.path), OrtRunner(made.path, oracle=True), ReferenceRunner(made.path)):
        for count in (1, 2, 3, 7, 32):
            assert np.array_equal(runner(data[:count].numpy()), whole[:count])


class Transposed(nn.Module):
    """A transposed convolution whose result is larger on one side, or has a size asked for."""

    def __init__(self, layer: nn.ConvTranspose2d, output_size: list[int] | None = None) -> None:
        super().__init__()
        self.up, self.output_size = layer, output_size
        self.stem = nn.Conv2d(3, layer.in_channels, 1)

    def upsampled(self, x: Tensor) -> Tensor:
        """What comes out of the layer."""
        result: Tensor = self.up(F.relu(self.stem(x)), output_size=self.output_size)
        return result

    def forward(self, x: Tensor) -> Tensor:
        """Every position as if they were logits."""
        return self.upsampled(x).flatten(1)


@pytest.mark.parametrize(
    ("layer", "asked", "size", "wanted"),
    [
        (nn.ConvTranspose2d(8, 4, 3, 2, 1, (1, 0)), None, (5, 7), (10, 13)),
        (nn.ConvTranspose2d(8, 4, 3, 2, 1, (1, 0)), None, (6, 6), (12, 11)),
        (nn.ConvTranspose2d(8, 4, 3, 2, 1), [10, 13], (5, 7), (10, 13)),
        (nn.ConvTranspose2d(4, 4, 2, stride=3, output_padding=1, dilation=2), None, (5, 7), (16, 22)),
    ],
)
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_transposed_convolutions_have_torchs_size(
    target: str,
    layer: nn.ConvTranspose2d,
    asked: list[int] | None,
    size: tuple[int, int],
    wanted: tuple[int, int],
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    model = Transposed(layer, asked).eval()
    data = torch.randn(4, 3, *size)
    assert tuple(model.upsampled(data).shape[2:]) == wanted
    made = agreeing(model, tmp_path, target, data)
    told = [
        sentence for sentence in made.warnings if sentence.startswith("conv-transpose-dilated at up: ConvTranspose up ")
    ]
    assert len(told) == int(target == "tensorrt" and layer.dilation == (2, 2))  # said before the build
    for logits in all_levels(made.path, data.numpy()):
        assert logits.shape == (4, 4 * wanted[0] * wanted[1])
        assert np.array_equal(logits, ReferenceRunner(made.path)(data.numpy()))


class Moved(nn.Module):
    """A signed activation that is reshaped, permuted or pooled before the next layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.how = how
        self.conv, self.bn = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(7 if how == "permute" else 4, 4, 1)
        self.fc = nn.Linear(4 * 3 * 3 if how == "pool" else 4 * 7 * (4 if how == "permute" else 7), 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = self.bn(self.conv(x)) - 0.5
        if self.how == "permute":
            y = self.conv2(y.permute(0, 2, 1, 3))
        elif self.how == "pool":
            y = self.conv2(F.max_pool2d(y, 3, 2))
        else:
            y = y.view(y.shape[0], -1)
        logits: Tensor = self.fc(y.flatten(1))
        return logits


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("how", ["view", "permute", "pool"])
def test_moved_signed_codes_survive_every_level_of_optimization(how: str, target: str, tmp_path: Path) -> None:
    made = agreeing(Moved(how).eval(), tmp_path, target)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.onnx.graph.initializer}
    points = []
    for node in made.onnx.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            held = constants.get(node.input[0])
            if held is None or held.dtype != np.int32:  # of a bias, which has none by definition
                points.append(constants[node.input[2]])
    assert len(points) >= 6
    if target == "tensorrt":
        assert {point.dtype for point in points} == {np.dtype(np.int8)}
        assert not any(point.any() for point in points)
    wanted, codes = ReferenceRunner(made.path)(images().numpy()), ReferenceRunner(made.path).codes(images().numpy())
    assert any((tensor < 0).any() for name, tensor in codes.items() if name not in ("input.codes", "logits"))
    for logits in all_levels(made.path, images().numpy()):
        assert np.array_equal(logits, wanted)
    stored = OrtRunner(made.path, oracle=True)
    for level in codes_at_all_levels(made.path, images().numpy(), stored.code_names):
        points_of = zero_points(read_graph(made.onnx))
        for name, tensor in level.items():
            assert np.array_equal(tensor.astype(np.int64) - points_of[name], codes[name])


def test_a_foreign_file_without_zero_points_is_an_error_of_the_linter(tmp_path: Path) -> None:
    made = agreeing(Moved("permute").eval(), tmp_path)
    bare = onnx.ModelProto()
    bare.CopyFrom(made.onnx)
    for node in bare.graph.node:
        if node.op_type == "DequantizeLinear":
            del node.input[2:]
    named = [finding.node for finding in lint(bare) if finding.rule == "explicit-zero-point"]
    assert named == [node.name or node.output[0] for node in bare.graph.node if node.op_type == "DequantizeLinear"]
    assert {finding.level for finding in lint(bare) if finding.rule == "explicit-zero-point"} == {"error"}
    bare.opset_import[0].version, bare.ir_version = 21, 10
    assert not [finding for finding in lint(bare) if finding.rule == "explicit-zero-point"]
