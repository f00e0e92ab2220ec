"""The command line that runs a recipe, with placeholders for what only its user has."""

from __future__ import annotations

from typing import Final

from faq_deploy.recipe import Recipe

__all__ = ["run_command", "trains_float"]

_OF_FLOAT_NETS: Final = frozenset({"cifar-float", "cifar-quick", "digits-float", "float"})

# of recipes that no row of the paper ties to one
_MODELS: Final = {
    "cifar-quick": "builtin:resnet18-cifar",
    "digits-4bit": "builtin:digits-resnet",
    "digits-8bit": "builtin:digits-resnet",
    "digits-float": "builtin:digits-resnet",
}
_DATA: Final = {"builtin:resnet18-cifar": "cifar10:DIR", "builtin:digits-resnet": "digits"}
_TRAINED: Final = {
    "builtin:resnet18-cifar": "runs/cifar-float/float.pth",
    "builtin:digits-resnet": "runs/digits-float/float.pth",
}


def run_command(recipe: Recipe, source: str | None = None) -> tuple[str, ...]:
    """The words of the command that runs a recipe.

    Args:
        recipe: its `paper.model` and `paper.weights` are used where it has them.
        source: the recipe's name or file; None takes its name.

    Returns:
        From `faq-deploy` on. `MODEL`, `FILE` (weights) and `DIR` (images) stand for the user's own.
    """
    model = recipe.paper.model or _MODELS.get(recipe.name, "MODEL")
    words = ["faq-deploy", "train" if trains_float(recipe) else "quantize", model]
    if not trains_float(recipe):
        published = "IMAGENET1K_V1" if model.startswith("torchvision:") else "FILE"
        words += ["--weights", recipe.paper.weights or _TRAINED.get(model, published)]
    words += ["--data", _DATA.get(model, "DIR"), "--recipe", source or recipe.name]
    return (*words, "-o", f"runs/{recipe.name}")


def trains_float(recipe: Recipe) -> bool:
    """Whether it is one for `train`, of the recipes that come with the tool."""
    return recipe.name in _OF_FLOAT_NETS
