"""Segmentation, detection, keypoints and embeddings: the same integers in all outputs, everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import engines
import faq_deploy
from engines.errors import InputError
from engines.parity import compare_logits
from faq_deploy.given_outputs import OutputWarning
from faq_deploy.graph import Graph
from faq_deploy.stored_net import load_net, save_net
from faq_deploy.tracing import labelled
from tests.cpu_kernels import optimized_is_exact
from tests.nets import with_statistics
from tests.quantized import images, make_recipe, quantized_net
from tests.task_nets import Detector, Embedder, Keypoints, Segmenter

TARGETS = ("tensorrt", "onnxruntime")
TORCHVISION = ("lraspp_mobilenet_v3_large", "fcn_resnet50", "retinanet_resnet50_fpn", "fcos_resnet50_fpn")
OUTPUTS = {
    "segmenter": ["out", "aux"],
    "detector": ["scores", "boxes.0", "boxes.1", "boxes.2", "boxes.3"],
    "detector without norms": ["scores", "boxes.0", "boxes.1", "boxes.2", "boxes.3"],
    "keypoints": ["output_0", "output_1"],
    "embedder": ["logits"],
}
NETS: dict[str, Callable[[], nn.Module]] = {
    "segmenter": Segmenter,
    "detector": Detector,
    "detector without norms": lambda: Detector(norm=False),
    "keypoints": Keypoints,
    "embedder": Embedder,
}


def prepared(name: str, target: str, size: int = 32) -> tuple[nn.Module, faq_deploy.PreparedModel]:
    torch.manual_seed(3)
    net = with_statistics(NETS[name]())
    model = faq_deploy.prepare(net, images(2, size), target, output="*")  # type: ignore[arg-type]
    faq_deploy.calibrate(model, [images(4, size)])
    return net, model


@pytest.mark.parametrize("example", [images(1), [torch.zeros(3, 64, 64)]])
@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn"])
def test_whole_detector_is_refused_with_the_way_to_its_body(name: str, example: object) -> None:
    make = getattr(torchvision.models.detection, name)
    with pytest.raises(InputError, match="is a whole detector") as caught:
        faq_deploy.prepare(make(weights=None, weights_backbone=None).eval(), example)  # type: ignore[arg-type]
    assert "prepare its body alone" in caught.value.remedy
    assert "docs/tasks.md shows under Detection" in caught.value.remedy


def step(model: nn.Module, data: Tensor) -> None:
    """One step of training that every output has a part in."""
    model.train()
    leaves = pytree.tree_leaves(model(data))
    torch.autograd.backward(torch.stack([leaf.square().mean() for leaf in leaves]).sum())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.eval()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_all_outputs_are_the_same_everywhere_after_a_training_step(name: str, target: str, tmp_path: Path) -> None:
    net, model = prepared(name, target)
    data, path = images(3, 32, seed=9), tmp_path / "model.onnx"
    step(model, data)
    result = faq_deploy.export(model, path)
    assert all(found.equal and found.codes_compared for found in result.agreements)
    assert [output.name for output in onnx.load(path).graph.output] == OUTPUTS[name]
    found = model(data)
    assert pytree.tree_structure(found) == pytree.tree_structure(net(data))
    wanted = [value.detach().numpy() for value in pytree.tree_leaves(found)]
    runtimes = ("reference", "oracle", "onnxruntime") if optimized_is_exact(target) else ("reference", "oracle")
    for runtime in runtimes:
        runner = engines.load(path, runtime)  # type: ignore[arg-type]
        answers = runner.outputs(data.numpy())
        first = runner(data.numpy())
        runner.close()
        assert list(answers) == OUTPUTS[name]
        assert all(np.array_equal(a, b) for a, b in zip(answers.values(), wanted, strict=True)), runtime
        assert np.array_equal(first, wanted[0])
    checked = faq_deploy.check(model, path, [data])
    assert checked.equal
    assert checked.logits == 2 * sum(value.size for value in wanted)
    assert checked.top1_agreement == 1.0


def test_a_shared_head_keeps_one_weight_in_training(tmp_path: Path) -> None:
    net, model = prepared("detector", "tensorrt")
    count = sum(parameter.numel() for parameter in net.parameters())
    # the convolution before the group norm is given a bias
    assert sum(parameter.numel() for parameter in model.parameters()) == count + 8
    step(model, images(3, 32))
    layers = model.net.weighted()
    heads = [name for name in layers if name.startswith("classes")]
    assert len(heads) == 4
    assert all(layers[name].weight is layers["classes"].weight for name in heads)
    assert all(layers[name].bias is layers["classes"].bias for name in heads)
    again = faq_deploy.prepare(net, images(2, 32), "tensorrt", output="*")
    again.load_state_dict(model.state_dict())
    data = images(2, 32)
    pairs = zip(pytree.tree_leaves(again.eval()(data)), pytree.tree_leaves(model(data)), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_sharing_survives_a_copy_and_a_file(tmp_path: Path) -> None:
    _, model = prepared("keypoints", "tensorrt")
    data = images(2, 32)
    copied = copy.deepcopy(model)
    assert all(map(torch.equal, copied(data), model(data)))

    class Twice(nn.Module):
        """One convolution, called twice."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.conv(torch.relu(self.conv(torch.relu(self.stem(x))))))
            found: Tensor = self.head(y.mean((2, 3)))
            return found

    stored = quantized_net(Twice().eval(), make_recipe())
    save_net(tmp_path / "net.pt", stored.net, stored.recipe, stored.facts)
    layers = load_net(tmp_path / "net.pt").net.weighted()
    assert layers["conv_1"].weight is layers["conv"].weight
    assert layers["conv_1"].bias is layers["conv"].bias
    assert layers["head"].weight is not layers["stem"].weight


def test_corrections_give_each_call_of_a_shared_head_a_weight_of_its_own() -> None:
    recipe = faq_deploy.load_recipe("faq-8bit")
    chosen = recipe.model_copy(
        update={"calibration": recipe.calibration.model_copy(update={"bias_correction": "empirical"})}
    )
    torch.manual_seed(3)
    model = faq_deploy.prepare(with_statistics(Detector()), images(2, 32), recipe=chosen, output="*")
    faq_deploy.calibrate(model, [images(4, 32)])
    layers = model.net.weighted()
    assert layers["classes_1"].bias is not layers["classes"].bias
    assert not any("weight_of" in node.settings for node in model.net.graph)


def test_outputs_of_several_grids_that_are_only_joined_keep_their_values(tmp_path: Path) -> None:
    class Joined(nn.Module):
        """Two tensors whose ranges are far apart, both read by a layer, joined for an output alone."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
            self.c = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = torch.relu(self.a(x)), torch.relu(self.b(x) / 64)
            return self.c(a) + self.c(b), torch.cat([a, b], 1)

    torch.manual_seed(0)
    for target in ("tensorrt", "onnxruntime", "paper"):
        model = faq_deploy.prepare(Joined().eval(), images(2), target, output="*")
        faq_deploy.calibrate(model, [images(4)])
        faq_deploy.export(model, tmp_path / "model.onnx")
        assert faq_deploy.check(model, tmp_path / "model.onnx", [images(3)]).equal


def test_one_output_is_kept_by_its_name() -> None:
    net = with_statistics(Segmenter())
    data = images(2, 32)
    found = faq_deploy.prepare(net, data, output="aux")(data)
    torch.testing.assert_close(found, net(data)["aux"], rtol=1e-4, atol=1e-5)
    with pytest.warns(OutputWarning, match=r"returns out, aux: out is kept, the rest is left out") as warned:
        usual = faq_deploy.prepare(net, data)
    assert warned[0].filename == __file__
    torch.testing.assert_close(usual(data), net(data)["out"], rtol=1e-4, atol=1e-5)
    with pytest.raises(faq_deploy.InputError, match=r"no output 'masks'.*\n.*choose one of out, aux"):
        faq_deploy.prepare(net, data, output="masks")


def test_detector_is_refused_until_its_outputs_are_chosen() -> None:
    net = with_statistics(Detector())
    data = images(2, 32)
    with pytest.raises(faq_deploy.InputError) as caught:
        faq_deploy.prepare(net, data)
    labels = list(labelled(net(data)))
    assert len(labels) > 1
    said = f"the model returns {len(labels)} outputs, {', '.join(labels)}, and which of them to keep is not said."
    assert caught.value.what == said
    assert 'output="*"' in caught.value.remedy
    assert f'output="{labels[0]}"' in caught.value.remedy
    faq_deploy.prepare(net, data, output=labels[0])


def test_labels_of_outputs_are_kept_on_disk_and_must_fit() -> None:
    _, model = prepared("keypoints", "tensorrt")
    graph = model.net.graph
    assert graph.labels == ("0", "1")
    assert Graph.from_json(graph.to_json()) == graph
    with pytest.raises(faq_deploy.InputError, match="1 labels of 2 outputs"):
        Graph.from_json(graph.to_json().replace('"labels": ["0", "1"]', '"labels": ["0"]'))


def test_dense_outputs_are_compared_value_by_value() -> None:
    a = np.zeros((3, 2, 4, 4), np.float32)
    b = a.copy()
    b[1, 0, 2, 2] = 0.5
    found = compare_logits(a, b)
    assert (found.images, found.differing, found.largest_difference, found.flips) == (3, 1, 0.5, 1)
    b[2] = np.nan
    with pytest.raises(faq_deploy.InputError, match="image 2 has NaN"):
        compare_logits(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_nets_are_exact(name: str, target: str, tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(0)
    if hasattr(models.segmentation, name):
        net = getattr(models.segmentation, name)(weights=None, weights_backbone=None, num_classes=5)
    else:
        whole = getattr(models.detection, name)(weights=None, weights_backbone=None, num_classes=5)
        net = nn.Sequential(whole.backbone, _Levels(), whole.head)
    data = images(4, 64)
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(data)
    model = faq_deploy.prepare(net.eval(), data, target, output="*")  # type: ignore[arg-type]
    faq_deploy.calibrate(model, [data])
    faq_deploy.export(model, tmp_path / "model.onnx", images=data[:1])
    assert faq_deploy.check(model, tmp_path / "model.onnx", [data[1:2]]).equal


class _Levels(nn.Module):
    """The levels of a pyramid as a head takes them."""

    def forward(self, levels: dict[str, Tensor]) -> list[Tensor]:
        return list(levels.values())
