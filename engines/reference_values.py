"""What flows along the edges of the golden model, and how its operators read their inputs and attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.fixed_tensor import FixedTensor, Refused, from_floats, rounded_to_float32, to_float32
from engines.qdq_graph import Attribute
from engines.runner import FloatArray

__all__ = [
    "Array",
    "Attributes",
    "Inputs",
    "Operator",
    "Rounded",
    "Value",
    "array",
    "fits_float32",
    "fixed",
    "floats",
    "given",
    "integers",
    "is_rounded",
    "shape_of",
    "whole",
]


@dataclass(frozen=True)
class Rounded:
    """Floats that were rounded on the way, or come from outside: what reads them is one IEEE operation.

    Args:
        values: float32, any shape.
    """

    values: FloatArray


Array = npt.NDArray[np.generic]
# Arrays are what the file stores: float constants (dyadic, so exact), codes as integers, shapes.
Value = Array | FixedTensor | Rounded
Attributes = Mapping[str, Attribute]
Inputs = Sequence[Value | None]
Operator = Callable[[Inputs, Attributes], Value]


def fixed(value: Value) -> FixedTensor:
    """An operand as exact values; float constants are dyadic, so nothing is lost.

    Args:
        value: codes, or a constant.

    Returns:
        The same numbers.

    Raises:
        Refused: it was rounded before, or holds NaN or infinity.
    """
    if isinstance(value, Rounded):
        raise Refused("it reads float32 results where exact values are needed")
    return value if isinstance(value, FixedTensor) else from_floats(value)


def floats(value: Value) -> FloatArray:
    """An operand of an IEEE operation.

    Args:
        value: of any kind.

    Returns:
        float32. An average is rounded once, as its division would.

    Raises:
        Refused: float32 does not hold its exact values.
    """
    if isinstance(value, Rounded):
        return value.values
    if not fits_float32(value):
        raise Refused("its input has more than 24 bits, and it computes in float32")
    return to_float32(value) if isinstance(value, FixedTensor) else value.astype(np.float32)


def fits_float32(value: Value) -> bool:
    """Whether float32 holds the values; those of an average are rounded by its division in any case."""
    return not isinstance(value, FixedTensor) or np.array_equal(rounded_to_float32(value).codes, value.codes)


def is_rounded(*values: Value) -> bool:
    """Whether any of the operands was rounded before."""
    return any(isinstance(value, Rounded) for value in values)


def given(inputs: Inputs, index: int) -> Value:
    """An input that must be there.

    Args:
        inputs: of the node.
        index: which one.

    Returns:
        The input.

    Raises:
        Refused: it is absent.
    """
    value = inputs[index] if len(inputs) > index else None
    if value is None:
        raise Refused(f"its input {index} is absent")
    return value


def array(inputs: Inputs, index: int) -> Array | None:
    """An input that is a constant or a shape.

    Args:
        inputs: of the node.
        index: which one.

    Returns:
        The stored array; None where it is absent.

    Raises:
        Refused: it is computed from the image.
    """
    value = inputs[index] if len(inputs) > index else None
    if isinstance(value, FixedTensor | Rounded):
        raise Refused(f"its input {index} is computed; only constants are supported there")
    return value


def integers(inputs: Inputs, index: int) -> tuple[int, ...] | None:
    """An input that is a list of integers: axes, a shape, pads.

    Args:
        inputs: of the node.
        index: which one.

    Returns:
        The integers; None where it is absent.

    Raises:
        Refused: it is computed from the image.
    """
    value = array(inputs, index)
    return None if value is None else tuple(int(number) for number in value.reshape(-1).tolist())


def shape_of(value: Value) -> tuple[int, ...]:
    """Shape of a value of any kind."""
    if isinstance(value, FixedTensor):
        return value.codes.shape
    return value.values.shape if isinstance(value, Rounded) else value.shape


def whole(attributes: Attributes, name: str, default: int) -> int:
    """An integer attribute, or its default where it is absent."""
    value = attributes.get(name, default)
    return value if isinstance(value, int) else default
