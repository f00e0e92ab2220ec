"""timm's models, with the preprocessing that their configuration names. timm is an extra."""

from __future__ import annotations

import difflib
import math
from typing import Final

from torch import nn

from engines.errors import InputError, NotInstalled
from engines.extras import pip_install
from engines.preprocess import Preprocessing
from faq_deploy.architecture import Architecture, local_weights

__all__ = ["timm_architecture"]

_PRETRAINED: Final = "pretrained"


def timm_architecture(name: str, weights: str | None) -> Architecture:
    """A model of timm.

    Args:
        name: as `timm.create_model` takes it, with or without a tag (`resnet18.a1_in1k`).
        weights: a file, `pretrained` (timm downloads or has them), `random`, or None.

    Returns:
        The architecture, with the preprocessing of timm's own pretrained weights.

    Raises:
        InputError: an unknown name, no such file; building may raise it for a failed download.
        NotInstalled: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise NotInstalled(f"timm:{name} needs timm, which is not installed.", pip_install("timm")) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise InputError(
            f"timm has no model {name!r}.",
            f"did you mean {', '.join(near)}?" if near else "timm.list_models() names all.",
        )
    pretrained = weights == _PRETRAINED
    config = timm.get_pretrained_cfg(name)
    own_classes = config.num_classes if config is not None else None

    def build(classes: int | None) -> nn.Module:
        if pretrained and classes not in (None, own_classes):
            raise InputError(
                f"The pretrained weights of timm:{name} have {own_classes} classes, not {classes}.",
                "leave off --num-classes, or pass a file with weights for your classes.",
            )
        options = {} if classes is None or pretrained else {"num_classes": classes}
        try:
            module = timm.create_model(name, pretrained=pretrained, **options)
        except Exception as error:
            raise InputError(
                f"timm could not make {name}: {' '.join(str(error).split())[:200].rstrip('.')}.",
                "check the network where weights are to be downloaded, or pass a file with --weights.",
            ) from error
        if not isinstance(module, nn.Module):
            raise InputError(f"timm's {name} is not a module.", "name another model.")
        return module

    return Architecture(
        name,
        build,
        preprocessing=None if config is None else _preprocessing(config.to_dict()),
        weights=None if pretrained else local_weights(weights),
        has_weights=pretrained,
    )


def _preprocessing(config: dict[str, object]) -> Preprocessing:
    """As timm evaluates: the shorter side to crop / crop_pct, then the center crop.

    Source:
        timm.data.transforms_factory.transforms_imagenet_eval with crop_mode "center".
    """
    size, share = config.get("input_size"), config.get("crop_pct")
    crop = size[-1] if isinstance(size, tuple) else 224
    mean, std = config.get("mean"), config.get("std")
    return Preprocessing.model_validate(
        {
            "resize": math.floor(crop / (share if isinstance(share, float) else 0.875)),
            "crop": crop,
            "interpolation": config.get("interpolation") or "bicubic",
            **({"mean": mean} if mean else {}),
            **({"std": std} if std else {}),
        }
    )
