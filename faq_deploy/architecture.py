"""A float network before it has weights: how to build it, and what belongs to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engines.errors import InputError
from engines.files import sha256_of
from engines.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RANDOM", "Architecture", "WeightsFile", "local_weights", "require_weights"]

RANDOM: Final = "random"  # as --weights: seeded random weights


@dataclass(frozen=True)
class WeightsFile:
    """A checkpoint on disk and the sha256 (hexadecimal) of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Architecture:
    """What a model spec names.

    Attributes:
        name: short, for recipes that depend on the model and for messages.
        build: makes the net, in any mode, with that many classes; None means the architecture's own count.
        takes_num_classes: whether `build` accepts a count.
        preprocessing: what its weights were trained with, as far as known.
        weights: the checkpoint to load, or None.
        has_weights: `build` brings them (a factory, a pretrained timm model).
        classes: names of the weights' classes in the order of the outputs, where published.
    """

    name: str
    build: Callable[[int | None], nn.Module]
    takes_num_classes: bool = True
    preprocessing: Preprocessing | None = None
    weights: WeightsFile | None = None
    has_weights: bool = False
    classes: tuple[str, ...] | None = None


def local_weights(weights: str | None) -> WeightsFile | None:
    """Find and hash the checkpoint that `--weights` names.

    Args:
        weights: a path, `random`, or None.

    Returns:
        The file, or None where `weights` names none.

    Raises:
        InputError: there is no such file.
    """
    if weights is None or weights == RANDOM:
        return None
    path = require_weights(weights)
    return WeightsFile(path, sha256_of(path))


def require_weights(weights: str) -> Path:
    """The checkpoint that `--weights` names.

    Args:
        weights: a path.

    Raises:
        InputError: there is no such file.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise InputError(
            f"The weights {path} {'are a folder, not a file' if path.exists() else 'do not exist'}.",
            "check the path after --weights.",
        )
    return path
