"""The golden model: our QDQ ONNX in NumPy integers. Slow, exact, and independent of every runtime.

Each tensor is integer codes and an exponent, so nothing is rounded except where the graph says QuantizeLinear, and
there half to even by shift and comparison. What this runner returns is what an engine has to return.
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
from engines.qdq_graph import QdqGraph, attributes, label, load_model, read_graph, zero_points
from engines.reference_ops import OPERATORS, Attributes, Operator, Value, fixed
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
            float32 logits, shape (N, classes): exact values, rounded once.

        Raises:
            InputError: a batch that the net cannot read, or values that 60 bits cannot hold.
        """
        return self._run(batch, wanted=())[1]

    def codes(self, batch: FloatArray) -> dict[str, IntArray]:
        """Run one batch and keep the integers inside.

        Args:
            batch: as for a call.

        Returns:
            Codes of every tensor named `*.codes`, without zero points, and the bits of `logits`.

        Raises:
            InputError: as for a call.
        """
        found, logits = self._run(batch, wanted=self.code_names)
        return {**found, "logits": logit_bits(logits)}

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
            if operator is None or len(node.output) != 1:
                raise InputError(
                    f"{label(node)} is not an operator of the integer reference.",
                    f"it knows {', '.join(sorted(OPERATORS))}, each with one output; leave this part float elsewhere.",
                )
            done = tuple(name for name in dict.fromkeys(node.input) if name and last_reader[name] is node)
            step = _Step(node, operator, attributes(node), done)
            if all(name in self._constants or not name for name in node.input):
                self._constants[node.output[0]] = _compute(step, self._constants)
            else:
                steps.append(step)
        return tuple(steps)

    def _run(self, batch: FloatArray, wanted: Sequence[str]) -> tuple[dict[str, IntArray], FloatArray]:
        if not self._steps:
            raise InputError("the reference runner was closed.", "load the file again.")
        native = native_batch(batch, self._graph.input_shape, self.name)
        if len(native) == 0:  # shapes and names of one black image, without the image
            found, logits = self._run_piece(np.zeros((1, *native.shape[1:]), np.float32), wanted)
            return {name: codes[:0] for name, codes in found.items()}, logits[:0]
        pieces = [self._run_piece(native[i : i + _IMAGES], wanted) for i in range(0, len(native), _IMAGES)]
        found = {name: np.concatenate([codes[name] for codes, _ in pieces]) for name in wanted}
        return found, np.concatenate([logits for _, logits in pieces])

    def _run_piece(self, images: FloatArray, wanted: Sequence[str]) -> tuple[dict[str, IntArray], FloatArray]:
        values: dict[str, Value] = {self._graph.input_name: images}
        found: dict[str, IntArray] = {}
        logits_name = self._graph.logits_name
        for step in self._steps:
            (name,) = step.node.output
            value = values[name] = _compute(step, {**self._constants, **values})
            if name in wanted and not isinstance(value, FixedTensor):
                found[name] = value.astype(np.int64) - self._zero_points[name]
            for finished in step.done:
                if finished != logits_name:
                    values.pop(finished, None)
        return found, _logits(self._graph, values | self._constants)


def _compute(step: _Step, values: Mapping[str, Value]) -> Value:
    try:
        return step.operator([values[name] if name else None for name in step.node.input], step.attributes)
    except Refused as reason:
        raise InputError(
            f"{label(step.node)} cannot be computed exactly: {reason}.",
            "an engine would round here; keep scales powers of two, and biases on the grid of their layer.",
        ) from reason


def _logits(graph: QdqGraph, values: Mapping[str, Value]) -> FloatArray:
    try:
        return to_float32(fixed(values[graph.logits_name]))
    except Refused as reason:
        raise InputError(f"output {graph.logits_name}: {reason}.", "check the scales of the last layer.") from reason
