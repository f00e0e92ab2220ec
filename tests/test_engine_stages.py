"""The rows of a run's engines in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines import engine_manifest
from engines.engine_plan import predict
from engines.errors import InputError
from engines.ort import OrtRunner
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


def test_engines_are_closed_again_where_a_later_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = exported_run(tmp_path / "run")
    built(run, ["onnxruntime"])
    manifest = engine_manifest.read(run / "engines" / "onnxruntime")
    second = run / "engines" / "second"
    second.mkdir()
    (second / manifest.file).write_bytes(b"cut short")
    engine_manifest.write(second, manifest)
    run.record("build/second", version="0.1.0")
    closed: list[str] = []
    monkeypatch.setattr(OrtRunner, "close", lambda runner: closed.append(runner.name))
    with pytest.raises(InputError, match="second"):
        engine_stages(run, run / "model.onnx", None)
    assert closed == ["onnxruntime"]
    tallies, _ = engine_stages(run, run / "model.onnx", ["onnxruntime"])
    assert (len(tallies), closed) == (1, ["onnxruntime"])  # the one that is returned stays open
