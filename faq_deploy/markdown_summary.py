"""A Markdown summary of an evaluation, for a pull request or a job's page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.files import write_atomic
from faq_deploy.headline import headline
from faq_deploy.report_model import Gate, Report, Stage

__all__ = ["markdown_summary", "write_markdown"]

_STAGES = ("stage", "images", "top-1, %", "flips", "codes that differ", "largest logit difference")


def markdown_summary(report: Report) -> str:
    """Verdict, blame and stages; all gates folded away.

    Args:
        report: of `eval`.

    Returns:
        GitHub-flavoured Markdown; what comes from outside is escaped.
    """
    word = "passed" if report.verdict.passed else f"not passed (exit code {report.verdict.exit_code})"
    mark = "✅" if report.verdict.passed else "❌"
    lines = [f"## {mark} faq-deploy: {_text(report.run)} {word}", "", _text(headline(report)), ""]
    if report.blame is not None:
        lines += [f"> {_text(sentence)}  " for sentence in report.blame.sentences] + [""]
    broken = [gate for gate in report.gates if not gate.passed]
    if broken:
        lines += [*_gates(broken), ""]
    elif not report.verdict.passed:
        lines += [f"- {_text(sentence)}" for sentence in report.verdict.sentences] + [""]
    lines += [*_table(_STAGES, [_row(stage, report.images) for stage in report.stages]), ""]
    lines += [f"- warning: {_text(sentence)}" for sentence in report.warnings] + [""] * bool(report.warnings)
    lines += ["<details><summary>", "", f"All {len(report.gates)} gates", "", "</summary>", ""]
    lines += [*_gates(report.gates), "", "</details>", ""]
    about = f"{report.model}; {report.data}; faq-deploy {report.faq_deploy}, {report.created:%Y-%m-%d %H:%M %Z}"
    return "\n".join([*lines, f"<sub>{_text(about)}</sub>", ""])


def write_markdown(report: Report, path: Path) -> None:
    """Write `markdown_summary`, whole or not at all.

    Raises:
        WriteError: the folder can't be written, or the disk is full.
    """
    write_atomic(path, markdown_summary(report))


def _gates(gates: Sequence[Gate]) -> list[str]:
    rows = [
        [
            _outcome(gate),
            gate.name,
            "unknown" if gate.value is None else f"{gate.value:g}",
            f"{'≥' if gate.at_least else '≤'} {gate.limit:g}",
            gate.detail,
        ]
        for gate in gates
    ]
    return _table(("", "gate", "value", "limit", "what it measures"), rows)


def _outcome(gate: Gate) -> str:
    if gate.undecided:
        return "undecided" if gate.passed else "**undecided**"
    return "passed" if gate.passed else "**failed**"


def _row(stage: Stage, images: int) -> list[str]:
    if stage.skipped is not None:
        return [stage.name, f"skipped: {stage.skipped}", "", "", "", ""]
    codes = "" if stage.codes_compared is None else f"{stage.differing_codes:,} of {stage.codes_compared:,}"
    return [
        stage.name,
        f"{stage.images:,}",
        f"{stage.top1:.2f}" if stage.images == images and stage.top1 is not None else "",
        "" if stage.kind == "quantized" else str(stage.flips),
        codes,
        "" if stage.max_logit_difference is None else f"{stage.max_logit_difference:g}",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marked = [[cell if cell.startswith("**") else _text(cell) for cell in row] for row in rows]
    lines = [list(head), ["---"] * len(head), *marked]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _text(text: str) -> str:
    """Nothing in it is markup: neither Markdown's nor HTML's."""
    one_line = " ".join(text.split())
    for sign in "\\`*_{}[]<>|#~!":
        one_line = one_line.replace(sign, f"\\{sign}")
    return one_line.replace("@", "@\u200b")  # or a name would call somebody
