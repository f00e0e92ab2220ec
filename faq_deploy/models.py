"""Float models by name: built in, of torchvision or timm, or from a user's file, with their weights loaded."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from engines.errors import InputError, NotInstalled
from engines.extras import pip_install
from engines.preprocess import Preprocessing
from faq_deploy.architecture import RANDOM, Architecture, local_weights
from faq_deploy.data import default_preprocessing
from faq_deploy.nets import BUILTIN_NETS
from faq_deploy.timm_zoo import timm_architecture
from faq_deploy.user_model import user_architecture
from faq_deploy.weights import head_classes, load_into, read_checkpoint, require_finite_weights

__all__ = ["LoadedModel", "load_model"]

# where weights can be had by name
_PUBLISHED: Final = {"torchvision": " or DEFAULT (published ones, downloaded)", "timm": " or pretrained (downloaded)"}


@dataclass(frozen=True)
class LoadedModel:
    """A float model ready to be quantized.

    Attributes:
        module: in eval mode, on the CPU.
        name: short; recipes choose by it.
        preprocessing: what the weights were trained with, as far as known.
        input_size: channels, height, width, where the preprocessing tells.
        classes: names of the outputs, where published with the weights.
        source: one line for the log and the manifest.
        weights_sha256: hexadecimal, of the file the weights came from; None for random ones or a factory's own.
        takes_num_classes: whether it can be made for another number of classes.
        untrained: its weights are random, as far as we know: nobody gave any.
    """

    module: nn.Module
    name: str
    preprocessing: Preprocessing | None
    input_size: tuple[int, int, int] | None
    classes: tuple[str, ...] | None
    source: str
    weights_sha256: str | None
    takes_num_classes: bool = True
    untrained: bool = False


def load_model(
    spec: str,
    weights: str | None,
    *,
    num_classes: int | None = None,
    allow_random: bool = False,
    prefer_ema: bool = False,
    seed: int = 0,
) -> LoadedModel:
    """Build a float model and load its weights.

    Args:
        spec: `builtin:NAME`, `torchvision:NAME`, `timm:NAME` or `path/file.py:factory`.
        weights: a checkpoint file; for torchvision the name of published weights; for timm `pretrained`; `random` for
            seeded random weights; None where the factory brings its own.
        num_classes: outputs of the classifier. None takes the checkpoint's count, else the architecture's own.
        allow_random: no weights means seeded random ones, for training from scratch.
        prefer_ema: take a checkpoint's averaged weights where it holds both.
        seed: of random weights, and of what a factory draws. The global generator is left as it was.

    Returns:
        The model, with every parameter and buffer loaded.

    Raises:
        InputError: an unknown name, failing user code, or weights that are missing, unreadable or don't fit.
        CannotRunHere: a package that the model needs is not installed.
    """
    kind, colon, name = spec.partition(":")
    if num_classes is not None and num_classes < 1:
        raise InputError(f"--num-classes {num_classes} is less than 1.", "leave it off to take the checkpoint's count.")
    if not colon:
        raise _unknown(spec)
    architecture = _KINDS[kind](name, weights) if kind in _KINDS else _user(spec, weights)
    if weights is None and not (architecture.has_weights or allow_random):
        raise InputError(
            f"{spec} has no weights.",
            f"pass --weights FILE{_PUBLISHED.get(kind, '')}, or --weights {RANDOM} for seeded random ones; "
            "`faq-deploy train` makes some.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _with_weights(architecture, num_classes, prefer_ema)
    require_finite_weights(module, spec)
    classes = architecture.classes if num_classes in (None, len(architecture.classes or ())) else None
    return LoadedModel(
        module=module.eval().float(),  # a factory may give it in half precision
        name=architecture.name,
        preprocessing=architecture.preprocessing,
        input_size=architecture.preprocessing.input_shape if architecture.preprocessing else None,
        classes=classes,
        source=f"{spec}, {_weights_in_words(architecture, seed)}",
        weights_sha256=architecture.weights.sha256 if architecture.weights else None,
        takes_num_classes=architecture.takes_num_classes,
        untrained=architecture.weights is None and not architecture.has_weights,
    )


def _with_weights(architecture: Architecture, num_classes: int | None, prefer_ema: bool) -> nn.Module:
    module = architecture.build(num_classes)
    if architecture.weights is None:
        return module
    path = architecture.weights.path
    state = read_checkpoint(path, prefer_ema=prefer_ema)
    count = head_classes(module, state)
    if (
        num_classes is None
        and architecture.takes_num_classes
        and count not in (None, head_classes(module, module.state_dict()))
    ):
        module = architecture.build(count)  # the head's class count follows the checkpoint
    load_into(module, state, str(path))
    return module


def _weights_in_words(architecture: Architecture, seed: int) -> str:
    if architecture.weights is not None:
        return f"weights {architecture.weights.path}"
    return "with its own weights" if architecture.has_weights else f"random weights (seed {seed})"


def _builtin(name: str, weights: str | None) -> Architecture:
    if name not in BUILTIN_NETS:
        raise InputError(f"There is no built-in model {name!r}.", f"choose from {', '.join(BUILTIN_NETS)}.")
    make = BUILTIN_NETS[name]
    return Architecture(
        name,
        lambda classes: make(10 if classes is None else classes),
        preprocessing=default_preprocessing("digits" if name.startswith("digits") else "cifar10:"),
        weights=local_weights(weights),
    )


def _torchvision(name: str, weights: str | None) -> Architecture:
    try:
        from faq_deploy.torchvision_zoo import torchvision_architecture
    except ImportError as error:
        raise NotInstalled(
            f"torchvision:{name} needs torchvision, which can't be imported ({error}).",
            pip_install("torch"),
        ) from error
    return torchvision_architecture(name, weights)


def _user(spec: str, weights: str | None) -> Architecture:
    file = spec.rpartition(":")[0]
    if not file.endswith(".py"):
        raise _unknown(spec)
    return user_architecture(spec, weights)


_KINDS: Final[Mapping[str, Callable[[str, str | None], Architecture]]] = {
    "builtin": _builtin,
    "torchvision": _torchvision,
    "timm": timm_architecture,
}


def _unknown(spec: str) -> InputError:
    what = f"The model {spec!r} is not of the form builtin:NAME, torchvision:NAME, timm:NAME or path/file.py:factory."
    if spec.endswith(".py"):
        return InputError(what, f"add the function that makes the model: {spec}:factory.")
    near = difflib.get_close_matches(spec.replace("_", "-"), list(BUILTIN_NETS), n=1, cutoff=0.8)
    if near:
        return InputError(what, f"did you mean builtin:{near[0]}?")
    if spec.isidentifier():
        return InputError(what, f"did you mean torchvision:{spec}?")
    return InputError(what, "for a first try: builtin:digits-resnet.")
