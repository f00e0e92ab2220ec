"""What `inspect` says of a model before it is quantized."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engines.errors import InputError
from faq_deploy.inspect import Inspection, Share, inspect_model, inspect_net
from faq_deploy.new_run import QuantizeOptions
from faq_deploy.recipe import override, resolved
from faq_deploy.rewrite import rewrite
from faq_deploy.run_data import DataOptions
from tests.nets import Inverted, PreActivation, Small, with_statistics
from tests.quantized import images, make_recipe


class Wrapped(nn.Module):
    """A stem, one layer, and a classifier."""

    def __init__(self, layer: nn.Module | Callable[[Tensor], Tensor], channels: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.layer = layer
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.layer(F.relu(self.stem(x))).mean((2, 3)))
        return logits


class Excited(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The input, each channel multiplied by its gate."""
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


def inspected(model: nn.Module, choices: dict[str, object] | None = None, example: Tensor | None = None) -> Inspection:
    example = images() if example is None else example
    with torch.no_grad():
        model.eval()(example)
    recipe = resolved(override(make_recipe(), choices or {}), "")
    return inspect_net(rewrite(model.eval(), example, recipe), recipe, "a model")


def options(model: str, **choices: object) -> QuantizeOptions:
    return QuantizeOptions(model, Path(), DataOptions(**choices))  # type: ignore[arg-type]


def said(found: Inspection, word: str) -> str:
    (sentence,) = [warning for warning in found.warnings if word in warning]
    return sentence


@pytest.fixture(scope="module")
def resnet18() -> Inspection:
    return inspect_model(options("torchvision:resnet18"))


def test_resnet18_has_its_1814073344_macs_all_in_int8(resnet18: Inspection) -> None:
    assert resnet18.macs == Share(1_814_073_344, 1_814_073_344)
    assert resnet18.input_shape == (3, 224, 224)
    assert resnet18.adds == Share(8, 8)
    assert len(resnet18.layers) == 21
    assert resnet18.quantizers == 22
    assert resnet18.warnings == ()


def test_a_layer_is_told_with_its_bits_macs_and_source(resnet18: Inspection) -> None:
    rows = {row.name: row for row in resnet18.layers}
    first, last = rows["conv1"], rows["fc"]
    assert (first.kind, first.weight_shape, first.weight_bits) == ("conv", (64, 3, 7, 7), 8)
    assert (first.inputs, first.outputs, first.macs) == ("s8", "u7", 118_013_952)
    assert first.source.startswith("conv1, resnet.py:")
    assert (last.kind, last.inputs, last.outputs, last.macs) == ("linear", "u7", "float", 512_000)
    assert rows["layer1_0_conv2"].outputs == "accumulator"


def test_four_bit_nets_keep_eight_at_both_ends() -> None:
    found = inspected(with_statistics(Small()), {"bits": 4})
    assert [row.weight_bits for row in found.layers] == [8, 4, 4, 4, 4, 4, 8]
    assert "INT8 kernels" in said(found, "4-bit")


@pytest.mark.parametrize(("target", "int8"), [("tensorrt", 2), ("onnxruntime", 2), ("paper", 1)])
def test_adds_in_int8_by_target(target: str, int8: int) -> None:
    """The paper's second add sums two accumulators."""
    assert inspected(with_statistics(Small()), {"target": target}).adds == Share(int8, 2)


def test_concats_of_codes_are_counted_and_lone_batch_norms_are_multiply_adds() -> None:
    found = inspected(with_statistics(PreActivation()))
    assert found.concats == Share(2, 2)
    assert [row.kind for row in found.layers].count("multiply-add") == 4


@given(
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 1),
)
@settings(max_examples=12)
def test_macs_are_those_that_torch_counts(
    dims: int, transposed: bool, groups: int, kernel: int, stride: int, padding: int
) -> None:
    make = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    padding = min(padding, kernel - 1)
    net = nn.Sequential(make(4, 8, kernel, stride, padding, groups=groups), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    example = torch.randn(2, 4, *[6] * dims)
    net.eval()(example)
    with FlopCounterMode(display=False) as counter:
        net(example)
    assert inspected(net, example=example).macs.all * 2 * len(example) == counter.get_total_flops()


def test_a_skipped_layer_stays_in_float_and_its_macs_leave_int8() -> None:
    found = inspected(with_statistics(Small()), {"layers.skip": ["blocks.0.conv1"]})
    row = next(row for row in found.layers if row.name == "blocks_0_conv1")
    assert (row.weight_bits, row.int8, row.why_float) == (None, False, "kept in float by --leaf or --skip")
    assert found.macs.all - found.macs.int8 == row.macs == 8 * 8 * 9 * 8 * 8


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_an_add_behind_a_float_layer_is_not_in_int8(target: str) -> None:
    found = inspected(with_statistics(Small()), {"target": target, "layers.leaf": ["blocks.0"]})
    assert found.adds == Share(1, 2)
    assert [row.why for row in found.floats if row.kind == "add"] == ["kept in float by --leaf"]


def test_depthwise_convolutions_are_warned_of_and_more_so_per_tensor() -> None:
    found = inspected(with_statistics(Inverted()))
    assert said(found, "depthwise").startswith("1 depthwise convolution (depthwise_0)")
    assert [row.kind for row in found.layers].count("depthwise conv") == 1
    found = inspected(with_statistics(Inverted()), {"quantizer.granularity": "tensor"})
    assert sum("depthwise" in warning for warning in found.warnings) == 2


@pytest.mark.parametrize(("groups", "warned"), [(4, "3x3"), (3, ""), (1, "")])
def test_groups_that_int8_kernels_do_not_take_are_warned_of(groups: int, warned: str) -> None:
    found = inspected(Wrapped(nn.Conv2d(12, 12, 3, groups=groups)))
    assert [w for w in found.warnings if "grouped" in w] == ([said(found, warned)] if warned else [])


def test_awkward_groups_are_no_matter_on_cpus() -> None:
    assert inspected(Wrapped(nn.Conv2d(12, 12, 3, groups=4)), {"target": "onnxruntime"}).warnings == ()


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.SiLU(), "SiLU"),
        (nn.Hardswish(), "hard-swish"),
        (nn.GELU(), "GELU"),
        (nn.GroupNorm(3, 12), "group norm"),
        (nn.ConvTranspose2d(12, 12, 2), "transposed"),
        (Excited(), "squeeze-and-excitation"),
    ],
)
def test_what_engines_do_badly_is_said_once_with_the_layers_name(layer: nn.Module, word: str) -> None:
    assert said(inspected(Wrapped(layer)), word).startswith("1 ")


def test_pixels_that_are_never_negative_waste_a_bit_of_the_image() -> None:
    found = inspect_model(options("builtin:digits-resnet", mean=(0.0,), std=(1 / 255,)))
    assert "half of the codes are never used" in said(found, "pixels")
    assert inspect_model(options("builtin:digits-resnet")).warnings == ()


def test_the_size_of_the_images_can_be_given() -> None:
    square = inspect_model(options("builtin:digits-resnet"))
    wide = inspect_model(options("builtin:digits-resnet"), (8, 16))
    assert (square.input_shape, wide.input_shape) == ((1, 8, 8), (1, 8, 16))
    head = 48 * 10
    assert wide.macs.all - head == 2 * (square.macs.all - head)


def test_attention_is_refused_with_its_place(tmp_path: Path) -> None:
    code = """
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(3, 8, 4, 4)
                self.mixer = nn.MultiheadAttention(8, 2, batch_first=True)
            def forward(self, x):
                x = self.stem(x).flatten(2).transpose(1, 2)
                return self.mixer(x, x, x)[0].mean(1)
    """
    (tmp_path / "net.py").write_text(textwrap.dedent(code))
    with pytest.raises(InputError, match="attention is not supported"):
        inspect_model(options(f"{tmp_path}/net.py:Net"), (16, 16))


def test_the_result_is_json() -> None:
    found = inspected(with_statistics(Small()))
    read = json.loads(json.dumps(found.as_dict()))
    assert read["macs"] == {"int8": found.macs.int8, "all": found.macs.all}
    assert [layer["name"] for layer in read["layers"]] == [row.name for row in found.layers]
