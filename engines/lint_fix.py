"""`lint --fix`: repairs that change no value, each proved before the file gets its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from engines.errors import InputError
from engines.files import write_atomic
from engines.lint import Finding, lint, lint_file
from engines.lint_repairs import REPAIRS
from engines.lint_rules import RULES
from engines.qdq_graph import load_model
from engines.same_outputs import differing_outputs, outputs_of, random_inputs

__all__ = ["Fixed", "fix_file", "fixed_model"]


@dataclass(frozen=True)
class Fixed:
    """What was repaired.

    Args:
        target: which rules were applied.
        repaired: names of the nodes that were repaired, by rule.
        refused: repairs that were tried and taken back, with what differed.
        left: what the linter says of the repaired file.
    """

    target: str | None
    repaired: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]
    left: tuple[Finding, ...]


def fix_file(path: Path, output: Path, target: str | None = None) -> Fixed:
    """Repair a file and write the result under another name.

    Args:
        path: the file; it stays as it is.
        output: written whole or not at all, with all weights inside.
        target: as for `lint_file`.

    Returns:
        What was repaired, and what was not.

    Raises:
        InputError: as `lint_file`; the two names are one; the file can't be read for what is wrong with it, or
            onnxruntime does not run it, so that nothing can be proved.
        CannotRunHere: onnxruntime is not installed.
    """
    if output.exists() and path.exists() and output.samefile(path):
        raise InputError(f"{output} is the file itself.", "name another file with -o: the original stays as it is.")
    chosen, found = lint_file(path, target)
    unread = next((finding for finding in found if RULES[finding.rule].sees == "file"), None)
    if unread is not None:
        raise InputError(f"{path} can't be repaired: {unread.message}", unread.remedy)
    model, repaired, refused = fixed_model(load_model(path, unpack=False, any_inputs=True), chosen)
    try:
        content = model.SerializeToString()
    except ValueError as error:  # protobuf holds 2 GiB
        raise InputError(f"{path} is too large to be written as one file.", "repair it without --fix.") from error
    write_atomic(output, content)
    return Fixed(chosen, repaired, refused, tuple(lint(model, chosen)))


def fixed_model(
    model: onnx.ModelProto, target: str | None
) -> tuple[onnx.ModelProto, dict[str, tuple[str, ...]], dict[str, str]]:
    """Repair a model, one rule after the other, and take back what changes a bit of any output.

    Args:
        model: with its weights; it stays as it is.
        target: whose rules are applied.

    Returns:
        The repaired model; the names of the repaired nodes by rule; and why repairs were taken back.
    """
    inputs = random_inputs(model)
    expected = None
    repaired: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    for rule, repair in REPAIRS.items():
        if target not in RULES[rule].targets:
            continue
        candidate = _copy(model)
        done = repair(candidate)
        if not done:
            continue
        if expected is None:
            expected = outputs_of(_with_version(model, candidate), inputs)
        differing = differing_outputs(expected, outputs_of(candidate, inputs))
        if differing:
            refused[rule] = f"the output {differing[0]} would change"
        else:
            model, repaired[rule] = candidate, tuple(dict.fromkeys(done))
    return model, repaired, refused


def _with_version(model: onnx.ModelProto, other: onnx.ModelProto) -> onnx.ModelProto:
    """The model with another's IR version, a stamp that says nothing of values and that runtimes refuse to read."""
    made = _copy(model)
    made.ir_version = min(model.ir_version, other.ir_version)
    return made


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made
