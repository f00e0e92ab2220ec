"""Every construct computes what the float model does, and gives the same codes everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engines.ort import OrtRunner
from engines.reference import ReferenceRunner
from faq_deploy.agreement import torch_codes
from faq_deploy.onnx_export import export_onnx
from faq_deploy.stored_net import StoredNet
from tests.constructs import CONSTRUCTS, Around
from tests.cpu_kernels import optimized_is_exact
from tests.nets import with_statistics
from tests.quantized import images, make_recipe, quantized_net

TARGETS = ("tensorrt", "onnxruntime")


def built(name: str) -> nn.Module:
    torch.manual_seed(7)
    model = CONSTRUCTS[name]()
    with torch.no_grad():
        model.eval()(images(2))  # lazy layers take their shape
    model = with_statistics(model)
    if isinstance(model, Around):
        with torch.no_grad():
            model.norm.weight[2] = 0.0
    return model.eval()


def trained_a_step(stored: StoredNet, data: torch.Tensor) -> None:
    """One step of SGD on made-up labels; every parameter gets a finite gradient."""
    net = stored.net.train()
    net.refresh()
    torch.autograd.backward(F.cross_entropy(net(data), torch.arange(len(data)) % 5))
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    net.eval().refresh()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CONSTRUCTS)
def test_codes_are_the_same_everywhere_after_a_training_step(name: str, target: str, tmp_path: Path) -> None:
    data = images(8)
    stored = quantized_net(built(name), make_recipe(target), data)
    trained_a_step(stored, data)
    path = tmp_path / "model.onnx"
    result = export_onnx(stored, path, data.numpy(), versions={}, checkpoint_sha256="")
    assert [a.differing for a in result.agreements] == [0, 0]
    assert all(a.equal for a in result.agreements)
    for count in (1, 3):
        piece = data[:count].numpy()
        wanted, logits = torch_codes(stored.net, piece)
        assert sum(int((codes != 0).sum()) for codes in wanted.values())
        for runner in (ReferenceRunner(path), OrtRunner(path, oracle=not optimized_is_exact(target))):
            assert np.array_equal(runner(piece), logits)
            runner.close()
    optimized = OrtRunner(path, oracle=not optimized_is_exact(target))
    found = optimized.codes(piece)
    optimized.close()
    for tensor, codes in wanted.items():
        assert np.array_equal(found[tensor], codes.reshape(found[tensor].shape)), tensor


@pytest.mark.parametrize("channels", [1, 6])
def test_images_of_any_number_of_channels_and_memory_format(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    model = model.to(memory_format=torch.channels_last)
    data = torch.randn(6, channels, 12, 12).contiguous(memory_format=torch.channels_last)
    stored = quantized_net(model.eval(), make_recipe("onnxruntime"), data)
    result = export_onnx(stored, tmp_path / "model.onnx", data.numpy(), versions={}, checkpoint_sha256="")
    assert all(a.equal and a.codes_compared > 0 for a in result.agreements)
