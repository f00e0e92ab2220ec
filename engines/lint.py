"""Rules on QDQ ONNX: what a runtime would refuse, round differently, or silently run in float."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import onnx
from google.protobuf.message import DecodeError

from engines import onnx_facts
from engines.errors import InputError
from engines.int4_storage import unpack_int4
from engines.lint_rules import RULES, Level, Rule, page_of
from engines.qdq_graph import QdqGraph, load_model, read_graph
from engines.well_formed import parsed

__all__ = ["RULES", "Finding", "Level", "Rule", "Target", "lint", "lint_file"]

Target = Literal["tensorrt", "onnxruntime", "paper"]

_TARGETS: Final[tuple[str, ...]] = get_args(Target)


@dataclass(frozen=True)
class Finding:
    """One place where a rule is broken.

    Args:
        rule: id, a key of RULES.
        level: of the rule.
        node: name of the node.
        message: one sentence that names the thing.
        remedy: what to do about it.
    """

    rule: str
    level: Level
    node: str
    message: str
    remedy: str

    @property
    def page(self) -> str:
        """Where the rule is explained."""
        return page_of(self.rule)


def lint(model: onnx.ModelProto, target: str | None = None) -> list[Finding]:
    """Check a QDQ model, ours or anybody's.

    Args:
        model: with its weights loaded, as stored (`load_model(path, unpack=False)`): of an unpacked one the rules
            about INT4 have nothing to say.
        target: "tensorrt", "onnxruntime" or "paper"; None checks what holds for every engine.

    Returns:
        Findings, errors first, then warnings, then information; each level in the order of RULES. Where weights lie
        outside the file's folder, or the operator set is missing, nothing else is looked at.

    Raises:
        InputError: there is no such target.
    """
    if target is not None and target not in _TARGETS:
        raise InputError(f"there is no target {target!r}.", "pass tensorrt, onnxruntime or paper.")
    found = list(_found(target, file=_without_values(model)))
    if found:
        return found
    stored = read_graph(model)
    unpacked = unpack_int4(model)
    graph = stored if unpacked is model else read_graph(unpacked)
    return list(_found(target, stored=stored, codes=graph))


def lint_file(path: Path, target: str | None = None) -> tuple[str | None, list[Finding]]:
    """Check an ONNX file.

    Args:
        path: the file.
        target: "tensorrt", "onnxruntime" or "paper"; None takes what the file says, and every engine where it says
            nothing.

    Returns:
        The target that was taken, and the findings as of `lint`.

    Raises:
        InputError: the file is missing, is not ONNX, was cut short, or its weights are; no such target.
    """
    unread = _unread(path)
    if unread is None:
        onnx_facts.read(path)  # says what is wrong with it
        raise InputError(f"{path} could not be read.", "export it again.")
    found = list(_found(target, file=_without_values(unread)))
    if found:
        return target, found
    said = onnx_facts.said_target(unread)
    chosen = said if target is None and said in _TARGETS else target  # another tool may mean something else by it
    return chosen, lint(load_model(path, unpack=False, any_inputs=True), chosen)


def _unread(path: Path) -> onnx.ModelProto | None:
    """The model without the weights of other files; None where it is none."""
    try:
        model = parsed(path)
    except (DecodeError, ValueError, OSError):
        return None
    return model if model.graph.node and model.graph.output else None


def _without_values(model: onnx.ModelProto) -> QdqGraph:
    return QdqGraph(model, tuple(model.graph.node), {}, {}, {}, ())


def _found(target: str | None, **graphs: QdqGraph) -> Iterator[Finding]:
    """What the rules find that see one of these graphs."""
    for level in get_args(Level):
        for name, rule in RULES.items():
            if rule.level == level and target in rule.targets and rule.sees in graphs:
                for hit in rule.check(graphs[rule.sees]):
                    yield Finding(name, rule.level, hit.node, hit.message, hit.remedy)
