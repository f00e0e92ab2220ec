"""Every lint rule has a small file that breaks it, is found in it, and has a page in the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from engines.lint import lint, lint_file
from engines.lint_rules import RULES, page_of
from tests.bad_models import BAD_MODELS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "lint.md").read_text()
INVALID = ("external-data", "missing-opset", "int4-opset")  # what the ONNX checker refuses by itself


@pytest.mark.parametrize("rule", RULES)
def test_rule_finds_its_bad_model_and_says_so(rule: str, tmp_path: Path) -> None:
    bad, path = BAD_MODELS[rule], tmp_path / f"{rule}.onnx"
    path.write_bytes(bad.model().SerializeToString())
    found = lint_file(path, bad.target)[1]
    of_rule = [finding for finding in found if finding.rule == rule]
    assert bad.message in [finding.message for finding in of_rule]
    assert {finding.level for finding in of_rule} == {RULES[rule].level}
    for finding in of_rule:
        assert finding.page == page_of(rule)
        assert finding.remedy.endswith(".")


@pytest.mark.parametrize("rule", RULES)
def test_bad_model_breaks_no_other_rule_than_it_says(rule: str) -> None:
    bad = BAD_MODELS[rule]
    assert {finding.rule for finding in lint(bad.model(), bad.target)} == {rule, *bad.others}


def test_every_rule_has_one_bad_model() -> None:
    assert list(BAD_MODELS) == list(RULES)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in INVALID])
def test_bad_model_is_valid_onnx_so_that_only_the_linter_tells(rule: str) -> None:
    onnx.checker.check_model(BAD_MODELS[rule].model(), full_check=True)


def test_bad_models_are_written_by_one_command(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "tests.bad_models", str(tmp_path)], cwd=ROOT, check=True)
    assert {path.stem for path in tmp_path.iterdir()} == set(RULES)


def test_documentation_has_exactly_the_rules_in_their_order_and_words() -> None:
    headings = re.findall(r"^### (\S+)$", PAGES, re.MULTILINE)
    assert headings == list(RULES)
    for name, rule in RULES.items():
        page = PAGES.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert page.lstrip().startswith(f"**{rule.level}**"), name
        assert rule.about in page, name
        for part in ("Breaks:", "Why:", "Remedy:", "Source:"):
            assert part in page, (name, part)


def test_documentation_says_for_which_targets_a_rule_holds() -> None:
    for name, rule in RULES.items():
        page = PAGES.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        targets = page.lstrip().partition("\n")[0].partition(", ")[2].partition(".")[0]
        assert targets == targets_text(rule.targets), name


def targets_text(targets: frozenset[str | None]) -> str:
    """How a page says for which targets a rule holds."""
    named = [name for name in ("tensorrt", "onnxruntime", "paper") if name in targets]
    if len(named) == 3:
        return "every target"
    asked = "" if None in targets else " only"
    return f"target {' and '.join(f'`{name}`' for name in named)}{asked or ', and where none is given'}"
