"""The Markdown summary: verdict first, broken gates shown, and no markup from outside."""

from __future__ import annotations

from pathlib import Path

from faq_deploy.markdown_summary import markdown_summary, write_markdown
from faq_deploy.report_model import Blame, Gate, Verdict
from tests.test_report import SKIPPED, report

KEPT = Gate(name="flips: engine", limit=0, value=0, passed=True, detail="images")
BROKEN = Gate(name="top-1", limit=90, value=80.5, passed=False, detail="percent", at_least=True)


def test_a_passing_run_is_one_line_and_its_stages() -> None:
    lines = markdown_summary(report(gates=[KEPT])).splitlines()
    assert lines[0] == "## ✅ faq-deploy: runs/r18 passed"
    assert lines[2].startswith("The same integers everywhere: 0 of ")
    assert "| engine onnxruntime | 200 | 98.00 | 0 | 0 of 1,000,000 | 0 |" in lines
    assert "All 1 gates" in lines


def test_a_failing_run_shows_the_broken_gate_and_the_blame_before_the_stages() -> None:
    blame = Blame(stage="engine", cause="other kernels", sentences=["engine leaves in conv_1.", "Likely cause: x."])
    verdict = Verdict(passed=False, exit_code=1)
    text = markdown_summary(report(gates=[KEPT, BROKEN], blame=blame, verdict=verdict))
    assert text.startswith("## ❌ faq-deploy: runs/r18 not passed (exit code 1)\n")
    assert text.index("> engine leaves in conv\\_1.") < text.index("| **failed** | top-1 | 80.5 | ≥ 90 | percent |")
    assert text.index("| **failed**") < text.index("| stage |")


def test_a_skipped_stage_keeps_its_reason() -> None:
    text = markdown_summary(report(stages=[*report().stages, SKIPPED]))
    assert "| tensorrt-rtx-sm86 | skipped: no NVIDIA GPU here |" in text


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    hostile = "<img src=x>|@team `rm` [a](b)\nnext"
    path = tmp_path / "summary.md"
    write_markdown(report(run=hostile, warnings=[hostile]), path)
    text = path.read_text("utf-8")
    assert "<img" not in text.replace("\\<img", "") and "@team" not in text
    assert "](" not in text.replace("\\](", "")
    assert "\\<img src=x\\>\\|" in text and " next" in text
