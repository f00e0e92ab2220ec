"""Calibrated nets for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.preprocess import Preprocessing
from faq_deploy.activation_exponents import calibrate
from faq_deploy.recipe import Recipe, load_recipe, override
from faq_deploy.rewrite import rewrite
from faq_deploy.stored_net import NetFacts, StoredNet

__all__ = ["images", "make_recipe", "quantized_net"]


def images(count: int = 8, size: int = 16, seed: int = 5) -> Tensor:
    """Normal noise, float32, (count, 3, size, size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def make_recipe(target: str = "tensorrt", bits: int = 8, batch_norm: str = "fold", cpu: str = "any") -> Recipe:
    """The 8-bit recipe with these choices."""
    values = {"target": target, "bits": bits, "quantizer.batch_norm": batch_norm, "cpu": cpu}
    return override(load_recipe("faq-8bit"), values)


def quantized_net(model: nn.Module, recipe: Recipe, data: Tensor | None = None) -> StoredNet:
    """Rewrite and calibrate on `data` (noise if None)."""
    data = images() if data is None else data
    net = rewrite(model, data, recipe)
    ranges = calibrate(net, [data], recipe.calibration, recipe.target)
    facts = NetFacts(
        model="test",
        weights_sha256=None,
        classes=tuple("abcde"),
        preprocessing=Preprocessing(),
        ranges=[r.as_dict() for r in ranges],
    )
    return StoredNet(net=net.eval(), recipe=recipe, facts=facts)
