"""Top-1 of a torch net over an image set."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from engines.errors import InputError
from engines.image_batches import BadImages, OnBad, batches
from engines.images import ImageSet
from engines.parity import top1
from faq_deploy.ranks import Ranks

__all__ = ["top1_percent"]


def top1_percent(
    net: nn.Module,
    images: ImageSet,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    on_bad: OnBad = "error",
    bad: BadImages | None = None,
    ranks: Ranks | None = None,
) -> float:
    """Share of images that `net` classifies right, in percent; equal logits count for the lowest class.

    Several processes take every so many-th batch each; all get the share of all images, that of one process.

    Args:
        net: logits (N, classes) from float32 images (N, C, H, W); run in eval mode and left in its mode.
        images: labelled.
        batch_size: images a forward pass.
        device: where the net is; None means the CPU.
        on_bad: what to do about an image that can't be read.
        bad: collects skipped images, of this process's part.
        ranks: the processes that share the images, each with the same net; None: this one has them all.

    Raises:
        InputError: an image can't be used, or all were skipped.
    """
    right = seen = 0
    was_training = net.training
    net.eval()
    with torch.inference_mode():
        for batch in batches(images, _part(len(images), batch_size, ranks), batch_size, on_bad=on_bad, bad=bad):
            logits = net(torch.from_numpy(batch.images).to(device or "cpu")).float().cpu().numpy()
            right += int(np.count_nonzero(top1(logits) == batch.labels))
            seen += len(batch.labels)
    net.train(was_training)
    if ranks is not None:
        right, seen = ranks.total(torch.tensor([right, seen], device=ranks.device)).tolist()
    if not seen:
        raise InputError(f"No image of {images.name} can be read.", "give a data folder with images.")
    return 100 * right / seen


def _part(count: int, batch_size: int, ranks: Ranks | None) -> range | list[int]:
    """The images of this process: whole batches, since logits may depend on the batch in their last bits."""
    if ranks is None or ranks.count == 1:
        return range(count)
    starts = range(ranks.rank * batch_size, count, ranks.count * batch_size)
    return [index for start in starts for index in range(start, min(start + batch_size, count))]
