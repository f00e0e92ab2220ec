"""What `lint` prints: every place in a QDQ file that an engine would refuse, round otherwise, or run in float."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import onnx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines import onnx_facts
from engines.lint import Finding, Level
from engines.lint import lint as lint_model
from engines.qdq_graph import load_model

__all__ = ["findings", "lint"]

_SHOWN: Final = 3  # places of one rule in the table; --json has all
_COUNTED: Final[dict[Level, tuple[str, str]]] = {
    "error": ("error", "errors"),
    "warning": ("warning", "warnings"),
    "info": ("remark", "remarks"),
}
_TARGETS: Final = ("tensorrt", "onnxruntime", "paper")
_LINEAR: Final = "QLinear"  # QLinearConv, QLinearMatMul, ... compute on codes
_INTEGER: Final = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})


def lint(path: Path, target: str | None, *, as_json: bool) -> int:
    """Check an ONNX file of any tool, print what was found, and return the exit code.

    Args:
        path: the file.
        target: "tensorrt", "onnxruntime" or "paper"; None takes what the file says, and every engine where it says
            nothing.
        as_json: machine output, with every place.

    Returns:
        0 if there is no error, 1 if there is.

    Raises:
        InputError: the file is missing, is not ONNX, was cut short, or its weights are.
    """
    chosen, found = findings(path, target)
    code = 1 if any(finding.level == "error" for finding in found) else 0
    if as_json:
        counts = {level: sum(finding.level == level for finding in found) for level in _COUNTED}
        result = {"exit_code": code, "file": str(path), "target": chosen, "counts": counts}
        print(json.dumps({**result, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        _print(path, chosen, found)
    return code


def findings(path: Path, target: str | None = None) -> tuple[str | None, list[Finding]]:
    """What there is to say of a file.

    Args:
        path: the file.
        target: as for `lint`.

    Returns:
        The target that was taken, and the findings: errors, then warnings, then information.

    Raises:
        InputError: as for `lint`.
    """
    said = onnx_facts.read(path).target
    chosen = said if target is None and said in _TARGETS else target  # another tool may mean something else by it
    model = load_model(path, unpack=False, any_inputs=True)
    unquantized = _unquantized(model)
    found = ([] if unquantized is None else [unquantized]) + lint_model(model, chosen)
    return chosen, sorted(found, key=lambda finding: list(_COUNTED).index(finding.level))


def _unquantized(model: onnx.ModelProto) -> Finding | None:
    """What to say of a file that computes on codes, or has no Q or DQ at all: no rule has a hold on it."""
    kinds = {node.op_type for node in model.graph.node}
    integer = next((node for node in model.graph.node if _on_codes(node.op_type)), None)
    if integer is None:
        if not kinds.isdisjoint({"QuantizeLinear", "DequantizeLinear"}):
            return None
        return Finding(
            "not-quantized",
            "info",
            "",
            "There is no QuantizeLinear or DequantizeLinear in the file: nothing is quantized.",
            "every engine runs it in float; `faq-deploy quantize` and `export` make a quantized one.",
        )
    name = integer.name or integer.output[0]
    return Finding(
        "operator-format",
        "warning",
        name,
        f"{integer.op_type} {name}: the file is in operator format, which onnxruntime alone reads.",
        "export it in QDQ format (QuantizeLinear and DequantizeLinear around float operators).",
    )


def _on_codes(kind: str) -> bool:
    return kind.startswith(_LINEAR) or kind in _INTEGER


def _print(path: Path, target: str | None, found: Sequence[Finding]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for column in ("level", "rule", "places"):
        table.add_column(column, justify="right" if column == "places" else "left", no_wrap=True)
    table.add_column("what was found, and what to do", overflow="fold")
    for rule in dict.fromkeys(finding.rule for finding in found):
        group = [finding for finding in found if finding.rule == rule]
        table.add_row(group[0].level, rule, f"{len(group):,}", Text(_text(group)))
    console = Console()
    if found:
        console.print(table)
    console.print(_verdict(path, target, found), soft_wrap=True, markup=False, highlight=False)


def _text(group: Sequence[Finding]) -> str:
    """The first places of one rule; what to do once, where it is the same for all."""
    shown, remedies = group[:_SHOWN], list(dict.fromkeys(finding.remedy for finding in group[:_SHOWN]))
    if len(remedies) == 1:
        lines = [finding.message for finding in shown]
    else:
        lines = [line for finding in shown for line in (finding.message, f"Note: {finding.remedy}")]
    if len(group) > len(shown):
        lines.append(f"and {len(group) - len(shown):,} more; --json lists them.")
    return "\n".join(lines if len(remedies) > 1 else [*lines, f"Note: {remedies[0]}"])


def _verdict(path: Path, target: str | None, found: Sequence[Finding]) -> str:
    checked = "by the rules of every engine" if target is None else f"for target {target}"
    if not found:
        return f"{path}, {checked}: nothing to remark."
    counts = []
    for level, (one, several) in _COUNTED.items():
        count = sum(finding.level == level for finding in found)
        if count:
            counts.append(f"{count:,} {one if count == 1 else several}")
    return f"{path}, {checked}: {', '.join(counts)}."
