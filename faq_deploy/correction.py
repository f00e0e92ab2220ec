"""What a recipe does between calibration and training to make good what rounding costs; needs images, no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from torch import Tensor

from engines.errors import InputError
from faq_deploy.bias_correction import correct_biases_analytically, correct_biases_empirically
from faq_deploy.net import QuantizedNet
from faq_deploy.recipe import CalibrationSection, Recipe, override
from faq_deploy.rounding import compensate

__all__ = ["correct", "correctable", "corrects"]

_BIASES: Final[Mapping[str, Callable[[QuantizedNet, Iterable[Tensor]], None]]] = {
    "analytic": correct_biases_analytically,
    "empirical": correct_biases_empirically,
}


def corrects(section: CalibrationSection) -> bool:
    """Whether the recipe asks for any correction."""
    return section.weight_rounding != "nearest" or section.bias_correction != "none"


def correctable(recipe: Recipe) -> Recipe:
    """The recipe with what its corrections need.

    Compensated rounding leaves weights on the grid. Rules `mse` and `max` find the exponents of such weights again,
    `sigma` doesn't, so that `auto` stands for `mse`.

    Raises:
        InputError: the corrections that are asked for can't be made.
    """
    section, quantizer = recipe.calibration, recipe.quantizer
    if not corrects(section):
        return recipe
    field = "bias_correction" if section.weight_rounding == "nearest" else "weight_rounding"
    if quantizer.batch_norm != "fold":
        raise InputError(
            f"calibration.{field} needs layers whose bias can change, but batch_norm is {quantizer.batch_norm}.",
            "set quantizer.batch_norm=fold, or leave the correction off.",
        )
    if section.weight_rounding == "nearest":
        return recipe
    if quantizer.weight_rule == "auto":
        return override(recipe, {"quantizer.weight_rule": "mse"})
    if quantizer.weight_rule == "sigma":
        raise InputError(
            "calibration.weight_rounding is compensated, but the rule sigma would not find its codes again.",
            "set quantizer.weight_rule=mse.",
        )
    return recipe


def correct(net: QuantizedNet, batches: Iterable[Tensor], section: CalibrationSection) -> None:
    """Make the corrections that the recipe asks for.

    Args:
        net: calibrated, of a recipe that `correctable` returned.
        batches: float32 images, shape (N, C, H, W), normalized.
        section: which corrections.
    """
    net.untie()
    if section.weight_rounding == "compensated":
        compensate(net, batches)
    elif section.bias_correction != "none":
        _BIASES[section.bias_correction](net, batches)
