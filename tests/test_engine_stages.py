"""The rows of a run's engines in the report."""

from __future__ import annotations

from pathlib import Path

from engines.engine_plan import predict
from engines.qdq_graph import load_model
from faq_deploy.engine_stages import engine_stages
from tests.engine_nets import built, exported_run, needs_rtx


@needs_rtx
def test_each_row_says_what_its_engine_runs(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run")
    built(run, ["onnxruntime", "tensorrt-rtx"], [86])
    _, rows = engine_stages(run, run / "model.onnx", ["onnxruntime"])
    plans = {row.name: (row.status, row.plan) for row in rows}
    assert plans == {
        "onnxruntime": ("ran", None),
        "tensorrt-rtx-sm86": ("not asked for", predict(load_model(run / "model.onnx"), 86)),
    }
