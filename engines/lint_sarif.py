"""Findings of `lint` as SARIF 2.1.0, which code hosts show beside the file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from engines.files import sha256_of
from engines.host import tool_version
from engines.lint import Finding
from engines.lint_rules import RULES, Level, page_of

__all__ = ["sarif"]

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_VERSION: Final = "2.1.0"
_LEVELS: Final[dict[Level, str]] = {"error": "error", "warning": "warning", "info": "note"}
_FIRST_LINE: Final = 1  # an ONNX file has no lines, but code hosts show nothing without one


def sarif(path: Path, target: str | None, findings: Sequence[Finding]) -> dict[str, object]:
    """One run of the linter as a SARIF log.

    Args:
        path: the file that was checked; written as it was given, so that a relative one is found in the repository.
        target: which rules were asked for.
        findings: what was found.

    Returns:
        A log ready for JSON, with all rules and every finding.
    """
    names = list(RULES)
    place = _uri(path)
    artifact = {"location": {"uri": place}, "hashes": {"sha-256": sha256_of(path)}, "roles": ["analysisTarget"]}
    failed = any(finding.level == "error" for finding in findings)
    run = {
        "tool": {"driver": {"name": "faq-deploy", "version": tool_version(), "rules": [_rule(name) for name in names]}},
        "invocations": [{"executionSuccessful": True, "exitCode": int(failed)}],
        "artifacts": [artifact],
        "results": [_result(finding, names.index(finding.rule), place) for finding in findings],
        "columnKind": "unicodeCodePoints",
        "properties": {"target": target or "every engine"},
    }
    return {"$schema": _SCHEMA, "version": _VERSION, "runs": [run]}


def _rule(name: str) -> dict[str, object]:
    rule, page = RULES[name], page_of(name)
    said: dict[str, object] = {
        "id": name,
        "shortDescription": {"text": rule.about},
        "help": {"text": f"{rule.about} See {page}."},
        "defaultConfiguration": {"level": _LEVELS[rule.level]},
    }
    documentation = _documentation()
    return said if documentation is None else {**said, "helpUri": f"{documentation.rstrip('/')}/{page}"}


def _result(finding: Finding, index: int, place: str) -> dict[str, object]:
    file = {"artifactLocation": {"uri": place, "index": 0}, "region": {"startLine": _FIRST_LINE}}
    location: dict[str, object] = {"physicalLocation": file}
    if finding.node:
        location["logicalLocations"] = [{"name": finding.node, "kind": "element"}]
    same = hashlib.sha256(f"{finding.rule}\n{finding.node}\n{finding.message}".encode()).hexdigest()
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": _LEVELS[finding.level],
        "message": {"text": f"{finding.message} {finding.remedy[:1].upper()}{finding.remedy[1:]}"},
        "locations": [location],
        "partialFingerprints": {"place/v1": same},
    }


def _uri(path: Path) -> str:
    return path.as_uri() if path.is_absolute() else urllib.parse.quote(path.as_posix())


def _documentation() -> str | None:
    """Where the documentation of the installed package lies, if it says so: SARIF wants an absolute address."""
    try:
        urls = importlib.metadata.metadata("faq-deploy").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    named = dict(str(entry).split(", ", 1) for entry in urls if ", " in str(entry))
    return named.get("Documentation")
