"""Top-1 of a torch net over an image set."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from engines.errors import InputError
from engines.image_batches import BadImages, OnBad, batches
from engines.images import ImageSet
from engines.parity import top1

__all__ = ["top1_percent"]


def top1_percent(
    net: nn.Module,
    images: ImageSet,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    on_bad: OnBad = "error",
    bad: BadImages | None = None,
) -> float:
    """Share of images that `net` classifies right, in percent; equal logits count for the lowest class.

    Args:
        net: logits (N, classes) from float32 images (N, C, H, W); run in eval mode and left in its mode.
        images: labelled.
        batch_size: images a forward pass.
        device: where the net is; None means the CPU.
        on_bad: what to do about an image that can't be read.
        bad: collects skipped images.

    Raises:
        InputError: an image can't be used, or all were skipped.
    """
    right = seen = 0
    was_training = net.training
    net.eval()
    with torch.inference_mode():
        for batch in batches(images, None, batch_size, on_bad=on_bad, bad=bad):
            logits = net(torch.from_numpy(batch.images).to(device or "cpu")).float().cpu().numpy()
            right += int(np.count_nonzero(top1(logits) == batch.labels))
            seen += len(batch.labels)
    net.train(was_training)
    if not seen:
        raise InputError(f"No image of {images.name} can be read.", "give a data folder with images.")
    return 100 * right / seen
