"""Mean and variance of a batch and the gradient through them, of this process's images or of those of all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from faq_deploy.fast_path import fast_path

__all__ = [
    "NormalizesBatches",
    "batch_statistics",
    "freeze_statistics",
    "in_backward_pass",
    "normalization_gradient",
    "synchronize",
    "unbiased",
]


class NormalizesBatches(nn.Module):
    """A layer that normalizes by the batch in training.

    Attributes:
        synchronized: by the images of all processes; else by those of its own.
    """

    synchronized = False

    def repeats(self) -> bool:
        """Whether this is the forward pass that gradient checkpointing repeats in the backward pass.

        It must give what the first one gave, so that running statistics are neither moved nor, where they have moved
        since, used.
        """
        return self.training and in_backward_pass()


def in_backward_pass() -> bool:
    """Whether autograd is computing gradients now, in this thread: a forward pass within is one that it repeats."""
    return torch._C._current_graph_task_id() != -1


def synchronize(net: nn.Module) -> int:
    """Let every such layer of a net take the images of all processes; every process must do so.

    Returns:
        How many layers there are.
    """
    layers = [module for module in net.modules() if isinstance(module, NormalizesBatches)]
    for layer in layers:
        layer.synchronized = True
    return len(layers)


def freeze_statistics(net: nn.Module) -> None:
    """Let every batch norm of a net in training use its running statistics, as at inference, until `net.train()`."""
    for module in net.modules():
        if isinstance(module, (NormalizesBatches, _BatchNorm)):
            module.eval()


def batch_statistics(x: Tensor, *, synchronized: bool) -> tuple[Tensor, Tensor, float | Tensor]:
    """Mean and variance of each channel.

    Args:
        x: float32, (N, channels, ...).
        synchronized: over all processes; each has images.

    Returns:
        Mean and variance (divided by n, not n - 1), float32, shape (channels,), the same bits on all processes; and n
        itself, a scalar tensor where it had to be asked for.

    Source: T. Chan, G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", 1979, for how parts are put together.
    """
    channels = x.shape[1]
    mean, var = _own_statistics(x)
    count = x.numel() / channels
    if not synchronized or not dist.is_initialized():
        return mean, var, count
    own = torch.cat([mean, var, mean.new_tensor([count])])
    parts = own.new_empty(dist.get_world_size(), len(own))
    dist.all_gather(list(parts.unbind()), own)
    means, variances, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    total = counts.sum()
    share = counts / total
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), total


def _own_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.is_contiguous() and len(x) * x.shape[1] < x.numel() and (passes := fast_path(x)):
        return passes.statistics(x)
    unused = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    mean, var = torch.ops.aten.batch_norm_update_stats(x, *unused, 0.0)  # three times var_mean's speed
    return mean, var


def unbiased(count: float | Tensor) -> float | Tensor:
    """The factor n / (n - 1) that torch gives the running variance; 1 for a single value."""
    return count / (count - 1).clamp_min(1) if isinstance(count, Tensor) else count / max(count - 1, 1)


def normalization_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, *, synchronized: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of (x - mean)·scale·weight + bias where mean and scale = 1/√(var + ε) are those of the batch.

    Args:
        gradient: of the result, (N, channels, ...).
        x: as it came, same shape.
        weight, mean, scale: (channels,).
        synchronized: as the statistics were taken.

    Returns:
        The gradients of x, weight and bias; the latter two of this process's images alone, as DistributedDataParallel
        expects them.
    """
    synchronized = synchronized and dist.is_initialized()
    wanted = [not synchronized, True, True]
    of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, None, None, mean, scale, True, 0.0, wanted
    )
    if synchronized:
        count = x.numel() / x.shape[1]
        sums = torch.cat([of_weight, of_bias, of_bias.new_tensor([count])])
        dist.all_reduce(sums)
        sums /= sums[-1].clone()
        along, offset = sums[:-1].chunk(2)
        factor = weight * scale
        slope = -factor * scale * along
        shape = (1, -1, *[1] * (x.dim() - 2))
        of_x = torch.addcmul((-slope * mean - factor * offset).reshape(shape), x, slope.reshape(shape))
        of_x.addcmul_(gradient, factor.reshape(shape))
    return of_x, of_weight, of_bias
