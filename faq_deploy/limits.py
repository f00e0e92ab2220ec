"""What a run must keep: the limits of `eval`, from flags and from a gate file."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import InputError
from engines.host import RuntimeName

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Limits", "limits_from", "read_limits"]

Points = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_MOST_BYTES: Final = 1 << 20
_SHOWN: Final = 60


class Limits(BaseModel):
    """The gates of `eval`: the keys of a gate file; None is no such gate.

    Attributes:
        max_drop: points of top-1 that a stage may lose against `drop_against`.
        drop_against: the stage that others are compared with.
        max_flips: images whose top-1 may differ from PyTorch quantized.
        max_float_drop: points that PyTorch quantized may lose against PyTorch float.
        min_top1: percent that PyTorch quantized must reach.
        max_fall: points of top-1 that PyTorch quantized may lie under what `quantize` measured; None: luck's share.
        max_class_drop: points that no class may lose more than, PyTorch quantized against PyTorch float.
        max_metric_drop: what PyTorch quantized may lose of --metric against PyTorch float, and each other stage against
            PyTorch quantized, in the metric's unit.
        max_latency_ratio: of an engine's time for an image and PyTorch float's.
        min_int8_share: of an engine's multiply-adds that must be in INT8.
        max_engine_bytes: size of an engine file.
        required_runtimes: each must have an engine that ran.
        max_regression: points of top-1 that PyTorch quantized may lose against the baseline's.
        max_latency_growth: ratio of an engine's time for an image and the same engine's in the baseline.
        max_bytes_growth: ratio of an engine's bytes and the same engine's in the baseline.
        allow_skip: engines may be left out: none was built, or one can't run here.
        allow_undecided: a gate that so many images can't decide passes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_drop: Points = 0.1
    drop_against: Literal["quantized", "float"] = "quantized"
    max_flips: Annotated[int, Field(ge=0)] = 0
    max_float_drop: Points | None = None
    min_top1: Points | None = None
    max_fall: Points | None = None
    max_class_drop: Points | None = None
    max_metric_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_latency_ratio: Ratio | None = None
    min_int8_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_engine_bytes: Annotated[int, Field(ge=1)] | None = None
    required_runtimes: tuple[RuntimeName, ...] = ()
    max_regression: Points = 0.5
    max_latency_growth: Ratio | None = None
    max_bytes_growth: Ratio | None = None
    allow_skip: bool = False
    allow_undecided: bool = False


def read_limits(path: Path, flags: Mapping[str, object]) -> Limits:
    """The limits of a gate file, with the command line's own choices over them.

    Args:
        path: TOML with the keys of `Limits`.
        flags: what the command line says, by key.

    Raises:
        InputError: the file can't be read, has an unknown key (the nearest one is named), or a limit that can't be.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is too large to be a gate file.", "name a small TOML file.")
        found = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"The gate file {path} does not exist.", "name another one, or pass flags.") from error
    except (OSError, ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError
        raise InputError(f"{path} can't be read: {error}.", "write TOML such as `max_drop = 0.1`.") from error
    limits_from(found, str(path))  # its own mistakes are told by its name
    return limits_from({**found, **flags}, "the command line")


def limits_from(values: Mapping[str, object], source: str) -> Limits:
    """Limits by key.

    Args:
        values: as in a gate file.
        source: where they come from, for messages.

    Raises:
        InputError: an unknown key, or a limit that can't be.
    """
    try:
        return Limits.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        keys = Limits.model_fields
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, keys, 1, 0.5)
            remedy = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(keys)}."
            raise InputError(f"{source}: {key[:_SHOWN]!r} is no gate.", remedy) from error
        said = first["msg"]
        value = repr(first["input"])[:_SHOWN]
        what = f"{source}: {key} = {value} can't be: {said[0].lower()}{said[1:].replace('tuple', 'list')}."
        raise InputError(what, _meaning(key)) from error


def _meaning(key: str) -> str:
    """What the docstring of `Limits` says of a key."""
    lines = [line.strip() for line in (Limits.__doc__ or "").splitlines()]
    said = next((line for line in lines if line.startswith(f"{key}: ")), key)
    return f"{said.rstrip('.')}."
