"""The exported file computes the same integers as PyTorch, in every target, precision and batch norm mode."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import faq_deploy
from engines.errors import FaqError, InputError
from engines.ort import OrtRunner
from engines.reference import ReferenceRunner
from faq_deploy import agreement as agreement_module
from faq_deploy.agreement import torch_answers, torch_codes
from faq_deploy.certificate import certificate
from faq_deploy.net import QuantizedNet
from faq_deploy.onnx_export import ExportResult, export_onnx
from faq_deploy.recipe import override
from faq_deploy.stored_net import StoredNet, load_net, save_net
from tests.cpu_kernels import optimized_is_exact
from tests.nets import Inverted, PreActivation, Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net

NETS = [Small, PreActivation, Inverted]


def run_export(stored: StoredNet, folder: Path, name: str = "model.onnx") -> ExportResult:
    return export_onnx(stored, folder / name, images(6, seed=9).numpy(), versions={"a": "1"}, checkpoint_sha256="0")


def initializer(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name))


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "paper"])
@pytest.mark.parametrize(("bits", "mode"), [(8, "fold"), (4, "fold"), (8, "paper"), (4, "paper"), (8, "fit")])
def test_reference_and_oracle_agree_with_torch(
    make: type[nn.Module], target: str, bits: int, mode: str, tmp_path: Path
) -> None:
    stored = quantized_net(with_statistics(make()), make_recipe(target, bits, mode))
    result = run_export(stored, tmp_path)
    assert [a.differing for a in result.agreements] == [0, 0]
    assert [a.largest_difference for a in result.agreements] == [0.0, 0.0]
    assert min(a.codes_compared for a in result.agreements) > 10_000


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize(("bits", "mode"), [(8, "fold"), (4, "fold"), (8, "paper")])
def test_optimized_onnxruntime_gives_identical_logits(
    make: type[nn.Module], target: str, bits: int, mode: str, tmp_path: Path
) -> None:
    if not optimized_is_exact(target):
        pytest.skip("this CPU has no VNNI: onnxruntime's kernels may saturate in files for GPUs")
    stored = quantized_net(with_statistics(make()), make_recipe(target, bits, mode))
    path = run_export(stored, tmp_path).path
    data = images(7, seed=11).numpy()
    wanted = torch_codes(stored.net, data)[1]
    with_all = OrtRunner(path)
    assert np.array_equal(with_all(data), wanted)
    assert np.array_equal(np.concatenate([with_all(data[i : i + 1]) for i in range(7)]), wanted)


def test_onnxruntime_target_fuses_into_integer_kernels(tmp_path: Path) -> None:
    import onnxruntime as ort

    path = run_export(quantized_net(with_statistics(Small()), make_recipe("onnxruntime")), tmp_path).path
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] == 6
    assert kinds["QLinearAdd"] == 2
    assert kinds["Conv"] == kinds["FusedConv"] == kinds["Add"] == 0


def test_same_bytes_when_exported_twice(tmp_path: Path) -> None:
    stored = quantized_net(with_statistics(Small()), make_recipe())
    first = run_export(stored, tmp_path, "a.onnx").path.read_bytes()
    assert run_export(stored, tmp_path, "b.onnx").path.read_bytes() == first


def test_stored_net_exports_the_same_bytes(tmp_path: Path) -> None:
    stored = quantized_net(with_statistics(Small()), make_recipe("paper", 8, "paper"))
    first = run_export(stored, tmp_path, "a.onnx").path.read_bytes()
    save_net(tmp_path / "net.pt", stored.net, stored.recipe, stored.facts)
    assert run_export(load_net(tmp_path / "net.pt"), tmp_path, "b.onnx").path.read_bytes() == first


def test_file_has_the_promised_form(tmp_path: Path) -> None:
    stored = quantized_net(with_statistics(Small()), make_recipe("tensorrt", 4))
    model = onnx.load(run_export(stored, tmp_path).path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]
    assert model.ir_version == 8
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 3, 16, 16]
    kinds = Counter(n.op_type for n in model.graph.node)
    assert kinds["Gemm"] == 0  # Turing refuses it
    assert kinds["BatchNormalization"] == 0
    for node in model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            scale, zero = initializer(model, node.input[1]), initializer(model, node.input[2])
            assert (np.frexp(scale)[0] == 0.5).all()
            assert (scale > 0).all()
            assert (zero == 0).all()
            assert zero.dtype == np.int8
            assert scale.ndim == (1 if "weight" in node.input[1] else 0)
    weights = initializer(model, "blocks_0_conv1.weight_codes")
    assert weights.dtype == np.int8
    assert np.abs(weights).max() <= 7
    assert np.abs(initializer(model, "stem.weight_codes")).max() > 7  # the first layer keeps 8 bits
    metadata = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert metadata["faq_deploy.target"] == "tensorrt"
    assert metadata["faq_deploy.classes"] == list("abcde")
    assert metadata["faq_deploy.exponents"]["input_quantizer"] == int(
        stored.net.quantizers()["input_quantizer"].exponent
    )


def test_nodes_are_told_by_module(tmp_path: Path) -> None:
    model = onnx.load(run_export(quantized_net(with_statistics(Small()), make_recipe()), tmp_path).path)
    modules = json.loads(next(p.value for p in model.metadata_props if p.key == "faq_deploy.modules"))
    assert set(modules) <= {node.name for node in model.graph.node}
    layers = {node.name: modules[node.name] for node in model.graph.node if node.op_type == "Conv"}
    assert layers == {
        "stem": "stem",
        "blocks_0_conv1": "blocks.0.conv1",
        "blocks_0_conv2": "blocks.0.conv2",
        "blocks_1_down_0": "blocks.1.down.0",
        "blocks_1_conv1": "blocks.1.conv1",
        "blocks_1_conv2": "blocks.1.conv2",
        "fc": "fc",
    }
    assert modules["stem.weight"] == "stem"


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_packed_file_is_smaller_says_so_and_gives_the_same_codes(target: str, tmp_path: Path) -> None:
    stored = quantized_net(with_statistics(Small(width=32)), make_recipe(target, 4))
    plain = run_export(stored, tmp_path, "plain.onnx")
    data = images(6, seed=9).numpy()
    result = export_onnx(
        stored, tmp_path / "packed.onnx", data, versions={"a": "1"}, checkpoint_sha256="0", packed=True
    )
    sizes = f"{result.bytes / 1e6:.3g} MB instead of {plain.bytes / 1e6:.3g} MB"
    factor = f"{plain.bytes / result.bytes:.2f}"
    assert result.notes == [f"packed.onnx: 4-bit weights packed, {sizes} ({factor} times smaller)"]
    assert plain.bytes > 1.5 * result.bytes
    assert result.agreements == plain.agreements
    assert all(agreement.equal for agreement in result.agreements)
    stored_types = {tensor.name: tensor.data_type for tensor in onnx.load(result.path).graph.initializer}
    assert stored_types["blocks_0_conv1.weight_codes"] == onnx.TensorProto.INT4
    with_packed, with_plain = OrtRunner(result.path), OrtRunner(plain.path)
    assert np.array_equal(with_packed(data), with_plain(data))


def test_nothing_to_pack_leaves_the_file_as_it_is_and_says_so(tmp_path: Path) -> None:
    stored = quantized_net(with_statistics(Small()), make_recipe())
    plain = run_export(stored, tmp_path)
    before = plain.path.read_bytes()
    data = images(6, seed=9).numpy()
    result = export_onnx(stored, plain.path, data, versions={"a": "1"}, checkpoint_sha256="0", packed=True)
    assert result.notes == ["model.onnx: no layer has 4-bit weights, so that nothing is packed."]
    assert result.path.read_bytes() == before


def test_bias_lies_on_the_accumulator_grid(tmp_path: Path) -> None:
    model = onnx.load(run_export(quantized_net(with_statistics(Small()), make_recipe()), tmp_path).path)
    step = initializer(model, "stem.weight_scale").astype(np.float64) * initializer(model, "input_quantizer.scale")
    codes = initializer(model, "stem.bias").astype(np.float64) / step
    assert np.array_equal(codes, np.rint(codes))
    assert np.abs(codes).max() > 0


def test_negative_multiplier_flips_codes_and_keeps_a_positive_scale(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = with_statistics(Small())
    with torch.no_grad():
        model.bn.weight[0], model.bn.weight[1] = -1.0, 0.0
    stored = quantized_net(model, make_recipe("paper", 8, "paper"))
    exported = onnx.load(run_export(stored, tmp_path).path)
    codes, own = initializer(exported, "stem.weight_codes"), stored.net.weighted()["stem"].weight_codes().numpy()
    assert np.array_equal(codes[0], -own[0])
    assert (codes[1] == 0).all()
    assert np.abs(own[1]).max() > 0
    assert (initializer(exported, "stem.weight_scale") > 0).all()
    metadata = {p.key: json.loads(p.value) for p in exported.metadata_props}
    assert metadata["faq_deploy.batch_norm"]["bn"]["k"][1] == 0


def test_dead_channel_exports_positive_scale(tmp_path: Path) -> None:
    model = with_statistics(Small())
    with torch.no_grad():
        model.stem.weight[2] = 0.0
        model.stem.weight[3] = 1e-30
        model.bn.bias[3] = 2.0
    stored = quantized_net(model, make_recipe())
    result = run_export(stored, tmp_path)
    exported = onnx.load(result.path)
    scale = initializer(exported, "stem.weight_scale")
    assert (scale > 0).all()
    assert np.isfinite(initializer(exported, "stem.bias")).all()
    assert (initializer(exported, "stem.weight_codes")[2:4] == 0).all()
    assert next(b for b in result.bounds if b.name == "stem").dead_channels == 2


def test_codes_at_their_extremes_agree_where_the_certificate_holds(tmp_path: Path) -> None:
    stored = quantized_net(with_statistics(Small()), make_recipe("onnxruntime", cpu="vnni"))
    assert all(b.proven for b in certificate(stored.net))
    path = run_export(stored, tmp_path).path
    signs = torch.randint(0, 2, (16, 3, 16, 16), generator=torch.Generator().manual_seed(1)) * 2 - 1
    extreme = (signs * 1e4).float().numpy()
    codes, logits = torch_codes(stored.net, extreme)
    assert set(np.unique(codes["input_quantizer.codes"])) == {-128, 127}
    for runner in (ReferenceRunner(path), OrtRunner(path, oracle=True)):
        assert np.array_equal(runner(extreme), logits)


def test_layer_over_2_to_24_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 2048, 1), nn.ReLU(), nn.Conv2d(2048, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        last = wide[2]
        assert isinstance(last, nn.Conv2d)
        last.weight.fill_(1.0)
    # certify, the default, would halve the codes of the last layer
    stored = quantized_net(wide.eval(), override(make_recipe("paper"), {"quantizer.certify": False}))
    over = [b for b in certificate(stored.net) if not b.proven]
    assert len(over) == 1
    assert over[0].ratio > 1
    result = run_export(stored, tmp_path)
    assert any("1 of 3 sums could in the worst case pass 2^24" in w for w in result.warnings)


def test_unexplained_difference_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = quantized_net(with_statistics(Small()), make_recipe())

    def wrong(net: QuantizedNet, data: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        codes, answers = torch_answers(net, data)
        codes["relu.codes"] = codes["relu.codes"] + 1
        return codes, answers

    monkeypatch.setattr(agreement_module, "torch_answers", wrong)
    with pytest.raises(FaqError, match=r"differs from PyTorch in \d+ of \d+ codes \(first in relu"):
        run_export(stored, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"model\.onnx could not be written: No space left on device"):
        run_export(quantized_net(with_statistics(Small()), make_recipe()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_a_training_that_diverged_are_refused_as_such(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    data = images(4, 8)
    model = faq_deploy.prepare(net, data)
    faq_deploy.calibrate(model, [data])
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("0.bias")).fill_(1e14)
    with pytest.raises(InputError, match=r"too large for any grid: .*int32") as refused:
        faq_deploy.export(model, tmp_path / "model.onnx")
    assert "diverged" in refused.value.remedy
    assert not (tmp_path / "model.onnx").exists()
