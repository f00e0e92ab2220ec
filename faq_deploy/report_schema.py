"""The published JSON Schema of report.json: `python -m faq_deploy.report_schema > docs/report.schema.json`."""

from __future__ import annotations

import json

from faq_deploy.report_model import Report

__all__ = ["report_schema"]


def report_schema() -> dict[str, object]:
    """The schema, as JSON Schema 2020-12."""
    found = Report.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


if __name__ == "__main__":
    print(json.dumps(report_schema(), indent=2))
