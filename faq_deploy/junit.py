"""JUnit XML of an evaluation: one test case a gate, as CI systems show it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from engines.files import write_atomic
from faq_deploy.report_model import Gate, Report

__all__ = ["junit_xml", "write_junit"]

# what XML 1.0 has no way to write; names of files and layers come from outside
_NO_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ENGINES: Final = "every wanted engine ran"


def junit_xml(report: Report) -> str:
    """The report as a JUnit test suite.

    Args:
        report: of `eval`.

    Returns:
        XML with a test case for each gate, for each stage that was skipped, and one that fails where the verdict is
        "no engine" (exit code 3), so that a green suite always means exit code 0.

    Source: the schema that Jenkins, GitLab and GitHub's report actions read (testsuite, testcase, failure, skipped).
    """
    suite = ElementTree.Element("testsuite", name=_plain(f"faq-deploy eval {report.run}"))
    suite.set("timestamp", report.created.isoformat())
    for gate in report.gates:
        case = _case(suite, report, gate.name)
        if not gate.passed:
            kind = "undecided" if gate.undecided else "gate"
            failure = ElementTree.SubElement(case, "failure", type=kind, message=_plain(_what(gate)))
            failure.text = _plain(gate.detail)
        elif gate.undecided:
            ElementTree.SubElement(case, "skipped", message=_plain(f"undecided, which was allowed: {gate.detail}"))
    for stage in report.stages:
        if stage.skipped is not None:
            ElementTree.SubElement(_case(suite, report, stage.name), "skipped", message=_plain(stage.skipped))
    if report.verdict.exit_code == 3:
        failure = ElementTree.SubElement(_case(suite, report, _ENGINES), "failure", type="engines")
        failure.set("message", _plain(report.verdict.sentences[0] if report.verdict.sentences else "no engine ran"))
        failure.text = _plain("\n".join(report.verdict.sentences))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("errors", "0")
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def write_junit(report: Report, path: Path) -> None:
    """Write `junit_xml`, whole or not at all.

    Raises:
        WriteError: the folder can't be written, or the disk is full.
    """
    write_atomic(path, junit_xml(report))


def _case(suite: ElementTree.Element, report: Report, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_plain(report.model), name=_plain(name))


def _what(gate: Gate) -> str:
    value = "unknown" if gate.value is None else f"{gate.value:g}"
    limit = f"at least {gate.limit:g}" if gate.at_least else f"{gate.limit:g}"
    said = f"{gate.name} is {value}, the limit is {limit}"
    return f"{said}: undecided" if gate.undecided else said


def _plain(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
