"""Architectures of torchvision and timm as a whole: traced, quantized, exported, the same codes everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from benchmarks import networks_page
from benchmarks.trial import TARGETS, Outcome, Trial, attempt
from benchmarks.zoo import smallest_of_timm, torchvision_entries
from faq_deploy.batch_norm import fold
from faq_deploy.capture import Captured, capture
from faq_deploy.place import place_quantizers

# the smallest of each of torchvision's families; the rest is the sweep's
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11_bn", "wide_resnet50_2"),
)


def assert_exact(model: str, *targets: str) -> Trial:
    trial = attempt(model, "", targets or TARGETS)
    assert {target: (o.status, o.reason) for target, o in trial.outcomes.items()} == {
        target: ("exact", "") for target in targets or TARGETS
    }
    return trial


@pytest.fixture(scope="module")
def inception() -> Captured:
    net = torchvision.models.inception_v3(weights=None, transform_input=True, init_weights=False)
    return capture(net, torch.zeros(2, 3, 299, 299))


def test_a_network_of_the_zoo_is_exact_with_every_sum_proven() -> None:
    outcome = assert_exact("torchvision:shufflenet_v2_x0_5", "tensorrt").outcomes["tensorrt"]
    assert outcome.proven == outcome.layers > 56
    assert outcome.codes > 100_000


def test_inception_loses_its_auxiliary_head_and_keeps_its_input_transform(inception: Captured) -> None:
    assert not any("AuxLogits" in node.module for node in inception.graph)
    assert sum(node.kind == "conv" for node in inception.graph) == 94
    assert sum(node.kind == "cat" for node in inception.graph) == 15
    (first,) = (node for node in inception.graph if "input" in node.inputs)
    assert first.kind == "affine"
    weight = inception.state[f"{first.name}.weight"]
    expected = torch.tensor([0.229, 0.224, 0.225]) / 0.5
    assert torch.allclose(weight, expected)


def test_inceptions_concats_share_one_exponent_and_all_of_its_layers_read_codes(inception: Captured) -> None:
    graph, _ = fold(inception.graph, inception.state, "fold")
    placed = place_quantizers(graph, bits=8, target="tensorrt")
    groups = {node.settings["group"] for node in placed if node.kind == "quantize"} - {None}
    assert 2 <= len(groups) <= 15


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_of_torchvision_is_exact_in_both_targets(name: str) -> None:
    assert_exact(f"torchvision:{name}")


def test_every_classifier_of_torchvision_is_in_the_sweep() -> None:
    entries = torchvision_entries()
    names = [name for name, _ in entries]
    assert len(names) == len(set(names)) >= 65
    assert set(FAMILIES) <= set(names)
    assert names.index("squeezenet1_1") < names.index("resnet18") < names.index("regnet_y_128gf")


def test_the_sweep_takes_the_smallest_of_a_timm_family_and_no_test_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    monkeypatch.setattr(timm, "list_modules", lambda: ["vgg"])
    sizes = tmp_path / "sizes.json"
    assert smallest_of_timm(sizes) == [("vgg", "timm:vgg11")]
    monkeypatch.setattr(timm, "create_model", None)  # the second time nothing is made
    assert smallest_of_timm(sizes) == [("vgg", "timm:vgg11")]


def test_a_trial_survives_its_line_of_json() -> None:
    trial = Trial("timm:a", "a", 64, 5, 7, {"tensorrt": Outcome("exact", nodes=3), "onnxruntime": Outcome("refused")})
    assert Trial.from_json(trial.to_json()) == trial
    assert trial.status == "refused"


def test_the_page_counts_transformers_apart_and_gives_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks_page, "RESULTS", tmp_path)
    monkeypatch.setattr(networks_page, "PAGE", tmp_path / "networks.md")
    reason = "x multiplies activations by activations: attention is not supported."
    trials = [
        Trial("timm:net", "net", 64, 1_000_000, 900, {t: Outcome("exact") for t in TARGETS}),
        Trial("timm:odd", "odd", 64, 1_000_000, 900, {t: Outcome("refused", "no cumsum.") for t in TARGETS}),
        Trial("timm:vit", "vit", 224, 1_000_000, 900, {t: Outcome("refused", reason) for t in TARGETS}),
    ]
    (tmp_path / "sweep.jsonl").write_text("".join(t.to_json() + "\n" for t in trials))
    assert "1 of 2 convolutional or MLP architectures (50 %)" in networks_page.write_page()
    page = (tmp_path / "networks.md").read_text()
    assert "`timm:odd`: tensorrt, onnxruntime: no cumsum." in page
    assert "because they hold attention: `vit`." in page
