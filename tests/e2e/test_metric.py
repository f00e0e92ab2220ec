"""`eval --metric`: built-in and the user's own, in the table, the report and the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from tests.e2e.test_cases_eval import evaluated

Call = Callable[..., Result]

METRICS = """
values = [1.0]

def falling(outputs, targets):
    assert outputs.shape == (len(targets), 4) and outputs.dtype.name == "float32"
    values.append(values[-1] / 2)
    return values[-2]

def broken(outputs, targets):
    return outputs["masks"]
"""


def test_a_metric_is_shown_and_judged_by_its_own_limit(call: Call, tmp_path: Path) -> None:
    evaluated(call, tmp_path, 4)
    run, file = tmp_path / "run", tmp_path / "mine.py"
    file.write_text(METRICS)
    result = call("eval", run, "--metric", "top-3", "--max-metric-drop", 100, "--max-drop", 0)
    assert result.exit_code == 0, result.output
    assert "top-3" in result.output
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert report["metric"] == "top-3"
    assert all(0 <= stage["metric"] <= 100 for stage in report["stages"])
    assert '<th scope="col" class="n">top-3</th>' in (run / "report.html").read_text("utf-8")
    gates = {gate["name"]: gate["limit"] for gate in report["gates"] if "top-3" in gate["name"]}
    assert gates == {
        "drop of top-3 by quantization": 100,
        "drop of top-3: integer reference (NumPy)": 100,
        "drop of top-3: onnxruntime, optimizations off": 100,
        "drop of top-3: engine onnxruntime": 100,
    }
    result = call("eval", run, "--metric", f"{file}:falling", "--max-metric-drop", 0.3)
    assert result.exit_code == 1
    assert f"drop of {file}:falling by quantization is 0.5, the limit is 0.3" in result.output
    stages = json.loads((run / "report.json").read_text("utf-8"))["stages"]
    assert [stage["metric"] for stage in stages] == [1.0, 0.5, 0.25, 0.125, 0.0625]
    result = call("eval", run, "--metric", f"{file}:broken")
    assert result.exit_code == 2
    assert "mine.py:10: the metric raised IndexError" in result.output
    result = call("eval", run, "--max-metric-drop", 1)
    assert result.exit_code == 2
    assert "has no metric to judge" in result.output
