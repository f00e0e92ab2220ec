"""Engines that show the codes inside the net."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines import code_engine
from engines.build_options import BuildOptions
from engines.bundle_samples import code_hash
from engines.code_engine import NO_CODE, TensorRTCodeRunner, codes_of, open_code_engine, with_code_outputs
from engines.errors import CannotRunHere, InputError
from engines.host import RuntimeName, this_host
from engines.ort import OrtRunner
from engines.prepare import prepare
from engines.profile import Profile
from engines.qdq_graph import load_model
from engines.reference import ReferenceRunner
from engines.tensorrt import build_rtx
from tests.engine_nets import needs_rtx
from tests.onnx_nets import around, images, residual_net, saved


def test_onnxruntime_shows_the_codes_of_the_reference(tmp_path: Path) -> None:
    path = saved(residual_net("tensorrt", 0), tmp_path)
    found, expected = open_code_engine(path, "onnxruntime").codes(images(0, 3, 33)), ReferenceRunner(path)
    for name, codes in expected.codes(images(0, 3, 33)).items():
        assert np.array_equal(found[name], codes), name


def test_shown_values_are_the_codes_times_their_step(tmp_path: Path) -> None:
    model = residual_net("tensorrt", 0)
    marked, steps = with_code_outputs(model)
    assert len(model.graph.output) == 1
    path, plain = tmp_path / "marked.onnx", saved(model, tmp_path)
    onnx.save(marked, path)
    batch = images(1, 2, 33)
    session = OrtRunner(path, oracle=True)._plain_session
    assert session is not None
    values = session.run([f"{name}.shown" for name in steps], {"input": batch})
    codes = ReferenceRunner(plain).codes(batch)
    assert set(steps) == codes.keys() - {"logits"}
    for (name, step), shown in zip(steps.items(), values, strict=True):
        assert np.array_equal(shown / np.float32(step), codes[name]), name


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("runtime", "sm"), [("tensorrt", 86), ("tensorrt-rtx", 75), ("tensorrt-rtx", 86)])
def test_forms_for_each_gpu_show_the_codes_of_the_file(
    tmp_path: Path, runtime: RuntimeName, sm: int, bits: int
) -> None:
    path, batch = saved(residual_net("tensorrt", 0, bits=bits), tmp_path), images(1, 2, 33)
    marked, steps = with_code_outputs(prepare(load_model(path), runtime, sm, BuildOptions()).model)
    onnx.save(marked, tmp_path / "marked.onnx")
    session = OrtRunner(tmp_path / "marked.onnx", oracle=True)._plain_session
    assert session is not None
    values = session.run([f"{name}.shown" for name in steps], {"input": batch})
    expected = ReferenceRunner(path).codes(batch)
    assert {*steps, "logits"} == expected.keys()
    for (name, step), shown in zip(steps.items(), values, strict=True):
        assert np.array_equal(codes_of(shown, step), expected[name]), name


def test_codes_that_nothing_reads_are_refused() -> None:
    model = around([onnx.helper.make_node("Relu", ["x.values"], ["y"])], {}, (1, 2, 2))
    last = model.graph.node[-1]
    last.input[0] = "x.codes"
    with pytest.raises(InputError, match=r"y\.codes is read by no DequantizeLinear"):
        with_code_outputs(model)


def test_value_beside_the_grid_is_no_code() -> None:
    values = np.array([0.0, -0.5, 63.5, 0.25, np.nan, np.inf], np.float32)
    assert codes_of(values, 0.5).tolist() == [0, -1, 127, NO_CODE, NO_CODE, NO_CODE]


def test_value_beside_the_grid_is_hashed_as_a_difference() -> None:
    codes = codes_of(np.array([0.25, 1.0], np.float32), 0.5)
    assert code_hash(codes) != code_hash(codes_of(np.array([0.0, 1.0], np.float32), 0.5))


@needs_rtx
def test_engine_with_its_codes_as_outputs_builds_ahead_of_time(tmp_path: Path) -> None:
    marked, _ = with_code_outputs(residual_net("tensorrt", 0))
    built = build_rtx(saved(marked, tmp_path), 86, Profile(), tmp_path / "model.engine")
    assert built.path.stat().st_size > 10_000


@pytest.mark.skipif(this_host().gpu is not None, reason="there is a GPU here: tests/gpu runs the engine")
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_the_sentence_says_so(
    tmp_path: Path, runtime: RuntimeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_engine, "load", lambda package: None)  # installed or not, there is no GPU
    with pytest.raises(CannotRunHere, match="needs an NVIDIA GPU here"):
        TensorRTCodeRunner(saved(residual_net("tensorrt", 0), tmp_path), runtime)


def test_without_the_package_the_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(CannotRunHere, match="package tensorrt is not installed"):
        TensorRTCodeRunner(saved(residual_net("tensorrt", 0), tmp_path), "tensorrt")
