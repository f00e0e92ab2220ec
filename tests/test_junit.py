"""JUnit XML: a case a gate, failures with their blame, and a green suite only for exit code 0."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from faq_deploy.junit import junit_xml, write_junit
from faq_deploy.report_model import Gate, Report, Verdict
from tests.test_report import SKIPPED, report

KEPT = Gate(name="flips: engine", limit=0, value=0, passed=True, detail="images")
BROKEN = Gate(name="codes: <engine>", limit=0, value=20, passed=False, detail="of 99 codes. Likely cause: \x00 & more.")


def parsed(found: Report) -> ElementTree.Element:
    return ElementTree.fromstring(junit_xml(found))


def test_every_gate_is_a_case_and_a_broken_one_fails_with_its_detail() -> None:
    verdict = Verdict(passed=False, exit_code=1, sentences=["codes differ"])
    suite = parsed(report(gates=[KEPT, BROKEN], verdict=verdict))
    counts = {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "2", "failures": "1", "skipped": "0", "errors": "0"}
    kept, broken = suite.findall("testcase")
    assert (kept.get("name"), len(kept)) == ("flips: engine", 0)
    failure = broken.find("failure")
    assert failure is not None
    assert failure.get("message") == "codes: <engine> is 20, the limit is 0"
    assert failure.text == "of 99 codes. Likely cause: \N{REPLACEMENT CHARACTER} & more."


@pytest.mark.parametrize("allowed", [True, False])
def test_a_skipped_engine_is_a_skipped_case_and_fails_the_suite_unless_allowed(allowed: bool) -> None:
    sentence = "tensorrt-rtx-sm86 was skipped: no NVIDIA GPU here"
    verdict = Verdict(passed=allowed, exit_code=0 if allowed else 3, sentences=[sentence])
    suite = parsed(report(gates=[KEPT], stages=[*report().stages, SKIPPED], verdict=verdict))
    cases = {case.get("name"): [child.tag for child in case] for case in suite.findall("testcase")}
    wanted: dict[str | None, list[str]] = {"flips: engine": [], "tensorrt-rtx-sm86": ["skipped"]}
    assert cases == wanted | ({} if allowed else {"every wanted engine ran": ["failure"]})


def test_the_file_is_xml_with_a_declaration(tmp_path: Path) -> None:
    path = tmp_path / "new" / "junit.xml"
    write_junit(report(gates=[KEPT]), path)
    first, second, *_ = path.read_text("utf-8").splitlines()
    assert first == '<?xml version="1.0" encoding="UTF-8"?>'
    assert second.startswith('<testsuite name="faq-deploy eval runs/r18"')
    assert ElementTree.parse(path).getroot().tag == "testsuite"
