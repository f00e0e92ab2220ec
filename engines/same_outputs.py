"""Do two ONNX models return the same bits? Both run in onnxruntime without optimizations on random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from engines.errors import InputError, NotInstalled

__all__ = ["differing_outputs", "outputs_of", "random_inputs"]

Arrays = Mapping[str, npt.NDArray[np.generic]]

_OPEN_BATCH: Final = 2
_OPEN_SIZE: Final = 32  # of any other dimension that the file leaves open
_ERRORS_ONLY: Final = 3
_SPREADS: Final = (1.0, 100.0)  # of the random numbers: within the usual grids, and saturating them


def random_inputs(model: onnx.ModelProto, seed: int = 0) -> list[Arrays]:
    """Inputs that fit a model: normal numbers, once small and once so large that codes saturate.

    Args:
        model: its open sizes become 2 for the batch and 32 elsewhere.
        seed: of the numbers.

    Raises:
        InputError: an input is of a type that has no random numbers, such as text.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]
    rng = np.random.default_rng(seed)
    return [{value.name: _random(value, rng, spread) for value in values} for spread in _SPREADS]


def outputs_of(model: onnx.ModelProto, inputs: Sequence[Arrays]) -> list[Arrays]:
    """What a model returns, by output name.

    Args:
        model: less than 2 GiB.
        inputs: one a run.

    Raises:
        NotInstalled: onnxruntime is not installed.
        InputError: onnxruntime refuses the model, or could not run it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise NotInstalled("onnxruntime is not installed.", "install it with `pip install onnxruntime`.") from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    names = [value.name for value in model.graph.output]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [dict(zip(names, session.run(names, dict(given)), strict=True)) for given in inputs]
    except Exception as error:  # onnxruntime's exceptions share no base class
        said = " ".join(str(error).split()).rstrip(".")[:300]
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} does not run the model: {said}.",
            "repair what it names first; `faq-deploy lint` lists more.",
        ) from error


def differing_outputs(before: Sequence[Arrays], after: Sequence[Arrays]) -> list[str]:
    """The outputs whose bits differ, NaN and the sign of zero included."""
    return [
        name
        for name in before[0]
        if any(_bits(one[name]) != _bits(other[name]) for one, other in zip(before, after, strict=True))
    ]


def _bits(value: npt.NDArray[np.generic]) -> tuple[tuple[int, ...], str, bytes]:
    return value.shape, str(value.dtype), value.tobytes()


def _random(value: onnx.ValueInfoProto, rng: np.random.Generator, spread: float) -> npt.NDArray[np.generic]:
    kind = value.type.tensor_type
    shape = [
        size.dim_value if size.dim_value > 0 else _OPEN_BATCH if index == 0 else _OPEN_SIZE
        for index, size in enumerate(kind.shape.dim)
    ]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind == "f":
        return rng.normal(0, spread, shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 128, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    raise InputError(
        f"the input {value.name} is of type {dtype}, for which there are no random numbers.",
        "lint without --fix, and repair by hand.",
    )
