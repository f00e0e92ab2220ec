"""The golden model: our QDQ ONNX in NumPy integers. Slow, exact, and independent of every runtime.

Each tensor is integer codes and an exponent, so nothing is rounded except where the graph says QuantizeLinear, and
there half to even by shift and comparison. What no integers hold (a sigmoid, the square root of a norm) is float32,
one correctly rounded operation at a time. What this runner returns is what an engine has to return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from engines.batch import native_batch
from engines.errors import InputError
from engines.fixed_tensor import FixedTensor, IntArray, Refused, to_float32
from engines.parity import logit_bits
from engines.qdq_graph import attributes, label, load_model, read_graph, zero_points
from engines.reference_ops import OPERATORS
from engines.reference_values import Attributes, Operator, Rounded, Value, fixed
from engines.runner import FloatArray

__all__ = ["ReferenceRunner"]

_IMAGES: Final = 8  # computed together: enough to spare Python its loops, few enough to keep memory small


@dataclass(frozen=True)
class _Step:
    """One node, ready to run; `done` are the tensors that no later node reads."""

    node: onnx.NodeProto
    operator: Operator
    attributes: Attributes
    done: tuple[str, ...]


class ReferenceRunner:
    """Runs a QDQ ONNX file in exact integer arithmetic (a CodeRunner).

    Args:
        path: the ONNX file, as `faq-deploy export` writes it.

    Raises:
        InputError: no ONNX file; an operator that is not supported; a scale that is not dyadic.
    """

    name = "reference"

    def __init__(self, path: Path) -> None:
        self._graph = read_graph(load_model(path))
        self.code_names: Sequence[str] = self._graph.code_names
        self._zero_points = zero_points(self._graph)
        self._constants: dict[str, Value] = dict(self._graph.constants)
        self._steps = self._prepare()

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Run one batch.

        Args:
            batch: float32 images, shape (N, C, H, W), any memory layout, N >= 0.

        Returns:
            float32 logits, shape (N, classes): exact values, rounded once. Of several outputs, the one named `logits`,
            or else the first.

        Raises:
            InputError: a batch that the net cannot read, or values that 60 bits cannot hold.
        """
        return self._run(batch, wanted=(), outputs=(self._graph.logits_name,))[1][self._graph.logits_name]

    def outputs(self, batch: FloatArray) -> dict[str, FloatArray]:
        """Run one batch and return every float output by name.

        Args:
            batch: as for a call.

        Returns:
            float32, shape (N, ...), in the order of the file.

        Raises:
            InputError: as for a call.
        """
        return self._run(batch, wanted=(), outputs=self._graph.float_outputs)[1]

    def codes(self, batch: FloatArray) -> dict[str, IntArray]:
        """Run one batch and keep the integers inside.

        Args:
            batch: as for a call.

        Returns:
            Codes of every tensor named `*.codes`, without zero points, and as `logits` the bits of what a call returns.
            A graph with several outputs adds the bits of each float output under its name.

        Raises:
            InputError: as for a call.
        """
        outputs = self._graph.float_outputs or (self._graph.logits_name,)
        found, values = self._run(batch, wanted=self.code_names, outputs=outputs)
        bits = {name: logit_bits(value) for name, value in values.items()}
        named = bits if len(outputs) > 1 else {}
        return {**found, **named, "logits": bits[self._graph.logits_name]}

    def close(self) -> None:
        """Release the weights."""
        self._constants.clear()
        self._steps = ()

    def _prepare(self) -> tuple[_Step, ...]:
        """Compute what depends on constants only (weights), and order the rest."""
        steps: list[_Step] = []
        last_reader = {name: node for node in self._graph.nodes for name in node.input}
        for node in self._graph.nodes:
            operator = OPERATORS.get(node.op_type)
            if operator is None:
                raise InputError(
                    f"{label(node)} is not an operator of the integer reference.",
                    "compute this part behind the file, or with other operators: docs/engines.md lists those it has.",
                )
            if len(node.output) != 1:
                raise InputError(
                    f"{label(node)} has {len(node.output)} outputs, and the integer reference computes one.",
                    "leave the others out of the file.",
                )
            done = tuple(name for name in dict.fromkeys(node.input) if name and last_reader[name] is node)
            step = _Step(node, operator, attributes(node), done)
            if all(name in self._constants or not name for name in node.input):
                self._constants[node.output[0]] = _compute(step, self._constants)
            else:
                steps.append(step)
        return tuple(steps)

    def _run(
        self, batch: FloatArray, wanted: Sequence[str], outputs: Sequence[str]
    ) -> tuple[dict[str, IntArray], dict[str, FloatArray]]:
        """Codes of the wanted tensors, and the values of these outputs."""
        if not self._steps:
            raise InputError("the reference runner was closed.", "load the file again.")
        native = native_batch(batch, self._graph.input_shape, self.name)
        # of an empty batch: shapes and names of one black image, without the image
        images = native if len(native) else np.zeros((1, *native.shape[1:]), np.float32)
        pieces = [self._run_piece(images[i : i + _IMAGES], wanted, outputs) for i in range(0, len(images), _IMAGES)]
        found = {name: np.concatenate([codes[name] for codes, _ in pieces])[: len(native)] for name in wanted}
        values = {name: np.concatenate([floats[name] for _, floats in pieces])[: len(native)] for name in outputs}
        return found, values

    def _run_piece(
        self, images: FloatArray, wanted: Sequence[str], outputs: Sequence[str]
    ) -> tuple[dict[str, IntArray], dict[str, FloatArray]]:
        values: dict[str, Value] = {**self._constants, self._graph.input_name: Rounded(images)}
        found: dict[str, IntArray] = {}
        kept = self._graph.output_names
        for step in self._steps:
            (name,) = step.node.output
            value = values[name] = _compute(step, values)
            if name in wanted and not isinstance(value, FixedTensor | Rounded):
                found[name] = value.astype(np.int64) - self._zero_points[name]
            for finished in step.done:
                if finished not in kept:
                    values.pop(finished, None)
        return found, {name: _output(name, values[name]) for name in outputs}


def _compute(step: _Step, values: Mapping[str, Value]) -> Value:
    try:
        return step.operator([values[name] if name else None for name in step.node.input], step.attributes)
    except Refused as reason:
        raise InputError(
            f"{label(step.node)} cannot be computed exactly: {reason}.",
            "an engine would round here; keep scales powers of two, and biases on the grid of their layer.",
        ) from reason
    except ValueError as error:  # NumPy's word for shapes that do not fit together
        raise InputError(f"{label(step.node)} cannot be computed: {error}.", "export the model again.") from error


def _output(name: str, value: Value) -> FloatArray:
    try:
        return value.values if isinstance(value, Rounded) else to_float32(fixed(value))
    except Refused as reason:
        raise InputError(f"output {name}: {reason}.", "check the scales of the last layer.") from reason
