"""What the examples share: scikit-learn's digits, and a small float net that was trained on them."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from engines.image_batches import batches
from engines.images import ImageSet
from faq_deploy.data import default_preprocessing, open_data
from faq_deploy.nets import digits_resnet

__all__ = ["Loader", "float_net", "loaders", "top1"]

Loader = DataLoader[tuple[Tensor, ...]]


def loaders(batch_size: int = 64) -> tuple[Loader, Loader]:
    """1,348 images to train on, shuffled, and 449 to validate on: float32 (N, 1, 8, 8) and labels int64 (N,)."""
    preprocessing = default_preprocessing("digits")
    assert preprocessing is not None
    splits = open_data("digits", preprocessing=preprocessing)
    train = DataLoader(_tensors(splits.train), batch_size, shuffle=True, drop_last=True)
    return train, DataLoader(_tensors(splits.val), batch_size)


@functools.cache
def float_net() -> nn.Module:
    """A ResNet for digits after three epochs."""
    torch.manual_seed(0)
    train, _ = loaders()
    net = digits_resnet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return net.eval()


def top1(model: nn.Module, loader: Loader) -> float:
    """Share of images that a model classifies right, 0 to 1."""
    with torch.inference_mode():
        right = torch.cat([model(images).argmax(1) == labels for images, labels in loader])
    return float(right.float().mean())


def _tensors(images: ImageSet) -> TensorDataset:
    found = list(batches(images, None, len(images)))
    labels = [images.labels[batch.indices] for batch in found]
    return TensorDataset(
        torch.from_numpy(np.concatenate([batch.images for batch in found])),
        torch.from_numpy(np.concatenate(labels)),
    )
