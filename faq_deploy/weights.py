"""Weights of a float model: found in a checkpoint whatever wraps them, and loaded completely or not at all."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from operator import methodcaller
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.weight_names import essential, misfit, some
from faq_deploy.weights_file import read_weights_file

__all__ = ["WeightsWarning", "head_classes", "load_into", "read_checkpoint", "require_finite_weights"]

State = Mapping[str, Tensor]

_AVERAGED: Final = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "model_state", "net", "module")
_PREFIXES: Final = ("module.", "_orig_mod.", "model.")  # of DataParallel and DDP, torch.compile, Lightning
_PROFILER: Final = frozenset({"total_ops", "total_params"})  # thop leaves them as buffers
_AVERAGE_COUNT: Final = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
_OLD_DENSENET: Final = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # torchvision's published files


class WeightsWarning(UserWarning):
    """Something about a checkpoint that a user should know and that stops nothing."""


def read_checkpoint(path: Path, *, prefer_ema: bool = False) -> dict[str, Tensor]:
    """The state dict that a checkpoint file holds, as it is or under the usual keys, nested or not.

    Args:
        path: as for `read_weights_file`.
        prefer_ema: take the averaged weights (EMA) where a file holds both. The choice is stated as a warning.

    Returns:
        Parameter and buffer names, with prefixes as in the file, to tensors on the CPU.

    Raises:
        InputError: the file can't be read, holds no weights, or no averaged ones although they were asked for.
    """
    payload = read_weights_file(path)
    averaged_key, averaged = _averaged(payload)
    plain = _find_state(payload, _WRAPPERS)
    if prefer_ema and averaged is None:
        raise InputError(f"{path} holds no averaged (EMA) weights.", "leave off --ema.")
    if averaged is not None and (prefer_ema or plain is None):
        warnings.warn(f"{path}: the averaged weights under {averaged_key!r} are used.", WeightsWarning, stacklevel=2)
        return averaged
    if plain is None:
        keys = f"; its keys are {some(map(str, payload))}" if isinstance(payload, Mapping) else ""
        raise InputError(
            f"{path} holds no weights (it is a {type(payload).__name__}{keys}).",
            "pass what torch.save(model.state_dict(), path) wrote.",
        )
    if averaged is not None:
        warnings.warn(
            f"{path} holds plain and averaged (EMA) weights: the plain ones are used (--ema takes the others).",
            WeightsWarning,
            stacklevel=2,
        )
    return plain


def head_classes(module: nn.Module, state: State) -> int | None:
    """How many classes a checkpoint was trained for, by the shape of the module's last weight in it.

    Args:
        module: the architecture, with any class count.
        state: as `read_checkpoint` returns it.

    Returns:
        The count, or None if the checkpoint doesn't hold that weight.
    """
    weight = _fit_names(state, module.state_dict().keys()).get(_head(module))
    return None if weight is None or weight.dim() < 2 else weight.shape[0]


def load_into(module: nn.Module, state: State, name: str) -> None:
    """Load every parameter and buffer of `module`, or raise: nothing is left at its random start.

    Prefixes of wrappers (module., _orig_mod., model.) are taken off as far as that makes names match; half-precision
    weights become float32. `num_batches_tracked` may be missing, and what profilers and averaging leave is ignored.

    Args:
        module: receives the weights; after an error they are undefined.
        state: as `read_checkpoint` returns it.
        name: of the checkpoint, for messages.

    Raises:
        InputError: names or shapes don't match, another class count, or NaN or Inf.
    """
    wanted = module.state_dict()
    fitted = _fit_names(_without_extras(state, name), wanted.keys())
    _refuse_shapes(module, wanted, fitted, name)
    try:
        result = module.load_state_dict(fitted, strict=False)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{name} does not load: {' '.join(str(error).split())[:200].rstrip('.')}.",
            "pass weights of the same architecture.",
        ) from error
    missing, unknown = essential(result.missing_keys), essential(result.unexpected_keys)
    if missing or unknown:
        found = misfit(wanted, fitted, missing, unknown)
        raise InputError(f"{name} does not fit the model: {found.what}.", found.remedy)
    require_finite_weights(module, name)


def require_finite_weights(module: nn.Module, name: str) -> None:
    """Refuse a model with a NaN or Inf among its parameters and buffers.

    Args:
        module: any model.
        name: of the model or checkpoint, for messages.

    Raises:
        InputError: names the first such tensor.
    """
    for key, value in module.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(
                f"{name}: {key} holds NaN or Inf ({bad} of {value.numel()} values).",
                "take an earlier checkpoint; the training that wrote this one had diverged.",
            )


def _averaged(payload: object) -> tuple[str, dict[str, Tensor] | None]:
    if isinstance(payload, Mapping):
        for key in _AVERAGED:
            state = _find_state(payload.get(key), _WRAPPERS)
            if state is not None:
                return key, state
    return "", None


def _find_state(payload: object, wrappers: tuple[str, ...]) -> dict[str, Tensor] | None:
    """The payload itself where all its values are tensors, else what a wrapper key holds, else the tensors in it."""
    if not isinstance(payload, dict) or not payload:
        return None
    if all(isinstance(value, Tensor) for value in payload.values()):
        return payload
    for key in wrappers:
        state = _find_state(payload.get(key), wrappers)
        if state is not None:
            return state
    return {key: value for key, value in payload.items() if isinstance(value, Tensor)} or None


def _without_extras(state: State, name: str) -> State:
    profiled = [key for key in state if key.rpartition(".")[2] in _PROFILER]
    if profiled:
        warnings.warn(f"{name}: {len(profiled)} counters of a profiler are ignored.", WeightsWarning, stacklevel=3)
    ignored = {*profiled, _AVERAGE_COUNT}
    return _renamed(state, lambda key: None if key in ignored else key)


def _fit_names(state: State, wanted: Iterable[str]) -> State:
    """Take off the prefixes that all names share, as far as more names match the wanted ones."""
    names = set(wanted)
    best = current = _renamed(state, lambda key: _OLD_DENSENET.sub(r"\1\2", key) if key not in names else key)
    while current and (prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in current)), "")):
        current = _renamed(current, methodcaller("removeprefix", prefix))
        if len(names & current.keys()) > len(names & best.keys()):
            best = current
    return best


def _renamed(state: State, rename: Callable[[str], str | None]) -> State:
    """A copy with other names, without the entries renamed to None, and with the versions that modules look for."""
    renamed = OrderedDict((new, value) for key, value in state.items() if (new := rename(key)) is not None)
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        kept = {(rename(f"{key}." if key else "") or "").removesuffix("."): value for key, value in versions.items()}
        renamed.__dict__["_metadata"] = OrderedDict({"": versions.get("", {})} | kept)
    return renamed


def _refuse_shapes(module: nn.Module, wanted: State, fitted: State, name: str) -> None:
    common = [key for key in fitted if key in wanted]
    integers = [key for key in common if wanted[key].is_floating_point() != fitted[key].is_floating_point()]
    if integers:
        key = integers[0]
        raise InputError(
            f"{name}: {key} is {fitted[key].dtype}, the model's is {wanted[key].dtype}.",
            "pass float weights; those of a quantized model can't be quantized again.",
        )
    differ = [key for key in common if wanted[key].shape != fitted[key].shape]
    if not differ:
        return
    head = _head(module)
    if head in differ:
        here, there = wanted[head].shape[0], fitted[head].shape[0]
        if all(
            (wanted[key].shape[0], fitted[key].shape[0]) == (here, there)
            and wanted[key].shape[1:] == fitted[key].shape[1:]
            for key in differ
        ):
            raise InputError(
                f"{name} has {there} classes, but the model was made for {here}.",
                f"pass --num-classes {there}, or weights of a model with {here} classes.",
            )
    shapes = [f"{key} is {_shape(fitted[key])} instead of {_shape(wanted[key])}" for key in differ]
    raise InputError(
        f"{name} does not fit the model: {len(differ)} of {len(wanted)} entries have another shape ({some(shapes)}).",
        "pass weights of the same architecture, or name another model.",
    )


def _head(module: nn.Module) -> str:
    """The name of the last weight matrix in order of construction, which is the classifier in every common net."""
    return next((name for name, value in reversed(list(module.named_parameters())) if value.dim() >= 2), "")


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a single number"
