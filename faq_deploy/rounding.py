"""Error-compensated rounding: each weight makes good what rounding the weights before it did to the layer's output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from faq_deploy.fixed_point import MAX_EXPONENT, MIN_EXPONENT, FixedPoint
from faq_deploy.layers import WeightedLayer
from faq_deploy.net import QuantizedNet
from faq_deploy.products import Convolution, MatrixProduct
from faq_deploy.side_by_side import Seen, mean_output, mean_tensor, shift_bias, walk_side_by_side
from faq_deploy.weight_moments import LARGEST_ROW, Moments, moments

__all__ = ["compensate", "rounded"]

_RIDGE: Final = 0.05  # how much a weight's own value counts, as a share of its inputs' mean power
_SAMPLES_A_WEIGHT: Final = 10  # with fewer the own value counts more: few images say little about many weights
_SWEEPS: Final = 2
_BLOCK: Final = 64  # weights of a row whose errors are passed on together
_FEW_BITS: Final = 4  # up to here other exponents than the rule's are tried too
_TRIED: Final = (0, 1, -1)


@dataclass(frozen=True)
class _Quadratic:
    """‖q‖²_H - 2·q·b for each row q: the output error on the images, up to a constant.

    Attributes:
        curvature: H, float64, shape (groups, K, K).
        linear: b, float64, shape (groups, rows, K).
    """

    curvature: Tensor
    linear: Tensor

    def loss(self, rows: Tensor) -> Tensor:
        """Float64, shape (groups, rows)."""
        return ((rows @ self.curvature - 2 * self.linear) * rows).sum(2)

    def with_ridge(self, weight: Tensor, ridge: Tensor) -> _Quadratic:
        """Plus ridge·‖q - weight‖²; ridge has shape (groups,)."""
        more = ridge.reshape(-1, 1, 1)
        unit = torch.eye(self.curvature.shape[1], dtype=torch.float64, device=weight.device)
        return _Quadratic(self.curvature + more * unit, self.linear + more * weight)


def compensate(net: QuantizedNet, batches: Iterable[Tensor]) -> None:
    """Choose weight codes, and biases, by what the layer's output becomes rather than by the nearest code.

    Layer by layer, the codes q and the bias are looked for that make q·x̃ + b̃ close to w·x + b, where x is what the
    float net reads and x̃ what the quantized net reads, with all errors of the layers before. That is a least-squares
    problem in integers. It is solved nearly: weights are rounded one after the other, each passing its error on to
    those that are still free (GPTQ), then every code is moved to its best place with the others held, twice over.
    Where that should not beat rounding to nearest on the images, a row keeps the nearest codes.

    Afterwards the layers' float weights lie on the grid, so that `refresh` finds their codes again, by the rules `mse`
    and `max`. Transposed convolutions and rows of over 8,192 weights are rounded to nearest, with corrected biases.

    Args:
        net: calibrated, batch norms folded. Weights, biases and weight exponents change.
        batches: float32 images, shape (N, C, H, W), normalized; no labels.

    Source: E. Frantar et al., GPTQ, ICLR 2023; Y. Li et al., GPTAQ, 2025 (the float net's output as the target).
    """
    walk_side_by_side(net, batches, _compensate_layer)
    net.refresh()


def rounded(weight: Tensor, seen: Moments, exponent: Tensor, grid: FixedPoint) -> Tensor:
    """Rows on the grid whose output on the images is closest to the float rows', nearly.

    Args:
        weight: float64, shape (groups, rows, K).
        seen: of the layer's inputs.
        exponent: int32, shape (groups, rows) or (groups, 1).
        grid: of the weights.

    Returns:
        Values on the grid, float64, of the weight's shape.
    """
    plain = _Quadratic(seen.quantized, weight @ seen.crossed)
    power = seen.quantized.diagonal(dim1=1, dim2=2).mean(1)
    share = _RIDGE * max(1.0, _SAMPLES_A_WEIGHT * weight.shape[2] / seen.samples)
    problem = plain.with_ridge(weight, torch.where(power > 0, share * power, 1.0))
    step = torch.exp2(exponent.double()).expand(weight.shape[:2])
    found = _moved(_passed_on(problem, step, grid), problem, step, grid)
    nearest = _on_grid(weight, step.unsqueeze(2), grid)
    better = plain.loss(found) < plain.loss(nearest)
    return torch.where(better.unsqueeze(2), found, nearest)


def _compensate_layer(layer: WeightedLayer, seen: Seen) -> None:
    means = mean_tensor(seen.exact), mean_tensor(seen.quantized)
    wanted = mean_output(layer, means[0], layer.folded()[0])
    _absorb_norm(layer)
    product = layer.product
    fits = isinstance(product, (Convolution, MatrixProduct)) and layer.weight[0].numel() <= LARGEST_ROW
    if fits:
        groups = product.groups if isinstance(product, Convolution) else 1
        rows = layer.weight.detach().double().reshape(groups, -1, layer.weight[0].numel())
        _choose(layer, rows, moments(product, layer.weight.shape, seen))
    shift_bias(layer, wanted - mean_output(layer, means[1], layer.constants()[0]))


def _choose(layer: WeightedLayer, rows: Tensor, seen: Moments) -> None:
    """Set the layer's weights and exponents to the best that was found."""
    per_row = layer.weight_exponent.expand(len(layer.weight)).reshape(rows.shape[:2])
    plain = _Quadratic(seen.quantized, rows @ seen.crossed)
    best, exponents, least = rows, per_row, torch.full(rows.shape[:2], torch.inf, dtype=torch.float64)
    for raised in _TRIED if layer.grid.bits <= _FEW_BITS else (0,):
        tried = (per_row + raised).clamp(MIN_EXPONENT, MAX_EXPONENT)
        found = rounded(rows, seen, tried, layer.grid)
        loss = plain.loss(found)
        better = loss < least if layer.per_channel else (loss.sum() < least.sum()).expand(loss.shape)
        best = torch.where(better.unsqueeze(2), found, best)
        exponents, least = torch.where(better, tried, exponents), torch.where(better, loss, least)
    layer.weight.data.copy_(best.reshape(layer.weight.shape))
    layer.weight_exponent.copy_(exponents.reshape(-1)[: len(layer.weight_exponent)])


@torch.no_grad()
def _absorb_norm(layer: WeightedLayer) -> None:
    """Multiply a live batch norm's factors into the weights for good; what the layer computes stays the same."""
    norm = layer.norm
    if norm is None:
        return
    a, _ = norm.constants()
    layer.weight.copy_(layer.product.scaled(layer.weight, a))
    norm.running_mean.mul_(a)
    norm.running_var.mul_(a.square())
    norm.weight.copy_(torch.sqrt(norm.running_var + norm.eps))  # x/x is 1 exactly: codes on the grid stay there


def _on_grid(values: Tensor, step: Tensor, grid: FixedPoint) -> Tensor:
    return (values / step).round().clamp(grid.min_code, grid.max_code) * step


def _passed_on(problem: _Quadratic, step: Tensor, grid: FixedPoint) -> Tensor:
    """Round column by column, those with the most power first, and pass each error on (GPTQ)."""
    size = problem.curvature.shape[1]
    target = torch.linalg.solve(problem.curvature, problem.linear.transpose(1, 2)).transpose(1, 2)
    order = problem.curvature.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    columns = order.unsqueeze(1).expand(target.shape)
    square = order.unsqueeze(2).expand(-1, size, size)
    curvature = problem.curvature.gather(1, square).gather(2, square.transpose(1, 2))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
    passes = torch.linalg.cholesky(inverse, upper=True).float()
    left, result, steps = target.gather(2, columns).float(), torch.empty_like(target), step.float()
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        inner, errors = left[:, :, start:end].clone(), torch.empty_like(left[:, :, start:end])
        for j in range(end - start):
            row = passes[:, start + j]
            rounded_column = _on_grid(inner[:, :, j], steps, grid)
            errors[:, :, j] = (inner[:, :, j] - rounded_column) / row[:, start + j].unsqueeze(1)
            inner[:, :, j + 1 :] -= errors[:, :, j : j + 1] * row[:, start + j + 1 : end].unsqueeze(1)
            result[:, :, start + j] = rounded_column
        left[:, :, end:] -= errors @ passes[:, start:end, end:]
    return torch.empty_like(result).scatter_(2, columns, result)


def _moved(rows: Tensor, problem: _Quadratic, step: Tensor, grid: FixedPoint) -> Tensor:
    """Move each code to the best place with the others held, over and over: the loss can only fall."""
    curvature, steps = problem.curvature.float(), step.float()
    weights, size = rows.float(), rows.shape[2]
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    for _ in range(_SWEEPS):
        slope = (rows @ problem.curvature - problem.linear).float()
        for start in range(0, size, _BLOCK):
            end = min(start + _BLOCK, size)
            before, inner = weights[:, :, start:end].clone(), slope[:, :, start:end].clone()
            for j in range(start, end):
                column = weights[:, :, j]
                best = column - inner[:, :, j - start] / diagonal[:, j].unsqueeze(1)
                best = _on_grid(best, steps, grid)
                inner += (best - column).unsqueeze(2) * curvature[:, j, start:end].unsqueeze(1)
                weights[:, :, j] = best
            moved = weights[:, :, start:end] - before
            slope[:, :, end:] += moved @ curvature[:, start:end, end:]
        rows = weights.double()
    return rows
