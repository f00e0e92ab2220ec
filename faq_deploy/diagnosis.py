"""Where a training went wrong: the layer in which NaN or Inf began."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from faq_deploy.checkpoint import TrainingState
from faq_deploy.layers import FloatLayer
from faq_deploy.live_norm import LiveNorm
from faq_deploy.repeatable import reseed
from faq_deploy.schedule import learning_rate
from faq_deploy.update_step import BatchSource, UpdateStep, steps_together

__all__ = ["first_damaged_layer", "layer_that_failed"]


def layer_that_failed(update: UpdateStep, train: BatchSource, saved: TrainingState, step: int) -> str | None:
    """Repeat the steps since a checkpoint, and look into the one whose loss was not finite.

    By the time that a loss is read, later steps have spread NaN over all weights: only a repetition shows its source.

    Args:
        update: its net and optimizer take over the checkpoint's.
        train: the batches.
        saved: the last checkpoint, of the same epoch.
        step: the first one with a bad loss, counted from the start of training.

    Returns:
        The layer's name; None if all is finite this time, as may be on a GPU whose kernels don't repeat.
    """
    net, training = update.net, update.training
    net.load_state_dict(saved.net)
    update.optimizer.load_state_dict(saved.optimizer)
    update.restore_scaler(saved.scaler)
    for group in update.optimizer.param_groups:
        group["lr"] = learning_rate(training, saved.epoch)
    update.train(saved.epoch)
    before = saved.global_step - saved.step_in_epoch  # steps of earlier epochs
    batches = train.batches(saved.epoch, saved.step_in_epoch)
    now = saved.step_in_epoch
    while now <= step - before:
        steps = steps_together(training, saved.epoch, now, saved.steps_per_epoch)
        update.begin(saved.epoch)
        for now in steps:
            reseed(training.seed, before + now, update.ranks)
            images, labels = update.on_device(*next(batches))
            if before + now == step:
                return first_damaged_layer(net, images)
            update.add(images, labels, sum(map(train.images_in, steps)), last=now == steps[-1])
        update.finish()
        now += 1
    return None


@torch.no_grad()
def first_damaged_layer(net: nn.Module, images: Tensor) -> str | None:
    """The first layer, in the order of the forward pass, whose weights or output hold NaN or Inf.

    Args:
        net: left in its mode.
        images: a batch that gave a loss which isn't finite.

    Returns:
        Its name, or None where all is finite.
    """
    found: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            tensors = [*module.parameters(recurse=False), *([output] if isinstance(output, Tensor) else [])]
            if any(not bool(t.isfinite().all()) for t in tensors if t.is_floating_point()):
                found.append(name.removeprefix("layers."))

        return look

    modules = {name: m for name, m in net.named_modules() if isinstance(m, FloatLayer) or not list(m.children())}
    # a live norm counts as its layer's
    hooks = [m.register_forward_hook(hook(name)) for name, m in modules.items() if not isinstance(m, LiveNorm)]
    try:
        net(images)
    finally:
        for handle in hooks:
            handle.remove()
    return found[0] if found else None
