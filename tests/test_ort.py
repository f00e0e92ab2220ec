"""onnxruntime: every memory layout right, every bad file one sentence, codes on request, INT8 kernels in use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import CannotRunHere, InputError
from engines.ort import CpuFeatures, OrtRunner, cpu_features
from engines.reference import ReferenceRunner
from engines.runner import CodeRunner
from tests.onnx_nets import images, residual_net, saved

Array = npt.NDArray[np.generic]
Runner = OrtRunner | ReferenceRunner

LAYOUTS: dict[str, Callable[[npt.NDArray[np.float32]], Array]] = {
    "fortran": np.asfortranarray,
    "nhwc": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "every second of a larger one": lambda x: np.repeat(x, 2, axis=0)[::2],
    "mirrored twice": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "big-endian": lambda x: x.astype(">f4"),
    "float64 of the same values": lambda x: x.astype(np.float64),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(residual_net("onnxruntime", 7, size=32), tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module", params=["oracle", "onnxruntime", "reference"])
def runner(request: pytest.FixtureRequest, path: Path) -> Runner:
    made: Runner = ReferenceRunner(path) if request.param == "reference" else OrtRunner(path, request.param == "oracle")
    assert made.name == request.param
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_values_in_any_layout_give_the_same_logits(runner: Runner, layout: str) -> None:
    batch = images(0, 4, 32)
    expected = runner(batch)
    laid_out = LAYOUTS[layout](batch)
    laid_out.flags.writeable = False
    assert np.array_equal(runner(laid_out), expected)  # type: ignore[arg-type]
    assert len(np.unique(expected, axis=0)) == 4


def test_integers_that_float32_holds_are_taken_and_others_refused(runner: Runner) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    assert np.array_equal(runner(pixels), runner(pixels.astype(np.float32)))
    third = np.full((1, 3, 32, 32), 1 / 3)
    large = np.full((1, 3, 32, 32), 2**24 + 1)
    for batch in (third, large):
        with pytest.raises(InputError, match=f"{batch.dtype} values that float32 cannot hold exactly"):
            runner(batch)


def test_nan_complex_and_wrong_shapes_are_refused(runner: Runner) -> None:
    batch = images(0, 3, 32)
    batch[2, 1, 4, 4] = np.nan
    with pytest.raises(InputError, match="image 2 of the batch"):
        runner(batch)
    with pytest.raises(InputError, match="complex64"):
        runner(batch.astype(np.complex64))
    with pytest.raises(InputError, match=r"shape \(N, 3, 32, 32\), not \(1, 32, 32, 3\)"):
        runner(np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(InputError, match=r"not \(3, 32, 32\)"):
        runner(np.zeros((3, 32, 32), np.float32))


def test_an_empty_batch_gives_no_rows(runner: Runner) -> None:
    empty = np.zeros((0, 3, 32, 32), np.float32)
    assert runner(empty).shape == (0, 7)
    codes = runner.codes(empty)
    assert codes["logits"].shape == (0, 7)
    assert codes["stem.out.codes"].shape == (0, 8, 16, 16)


def test_codes_are_free_of_zero_points_and_complete(runner: Runner) -> None:
    as_protocol: CodeRunner = runner
    codes = as_protocol.codes(images(1, 2, 32))
    assert list(codes) == [*as_protocol.code_names, "logits"]
    assert all(array.dtype == np.int64 for array in codes.values())
    assert codes["input.codes"].min() == -64
    assert codes["two.skip.codes"].min() < 0


def test_with_codes_gives_the_same_codes_from_one_session(path: Path) -> None:
    batch = images(2, 2, 32)
    one, two = OrtRunner(path, with_codes=True), OrtRunner(path, threads=1)
    ours, theirs = one.codes(batch), two.codes(batch)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert np.array_equal(one(batch), two(batch))


def test_the_onnxruntime_form_runs_in_int8_kernels(path: Path, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    # all but the head, whose logits stay float
    assert {kind: kinds.count(kind) for kind in ("QLinearConv", "Conv", "QLinearAdd", "Add")} == {
        "QLinearConv": 9,
        "Conv": 1,
        "QLinearAdd": 2,
        "Add": 0,
    }


def test_a_closed_runner_says_so(path: Path) -> None:
    runner = OrtRunner(path)
    runner.close()
    runner.close()
    with pytest.raises(InputError, match="was closed"):
        runner(images(0, 1, 32))


def test_a_float_net_has_logits_and_no_codes(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["pixels"], ["flat"])],
        "float",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [helper.make_tensor_value_info("flat", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    runner = OrtRunner(saved(model, tmp_path))
    assert runner.code_names == ()
    assert runner(np.array([[[[1, -2]]]], np.float32)).tolist() == [[1, -2]]
    assert list(runner.codes(np.array([[[[1]]]], np.float32))) == ["logits"]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("make", [OrtRunner, ReferenceRunner])
def test_a_file_that_is_not_onnx_is_named(make: Callable[[Path], Runner], content: bytes, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.onnx is not an ONNX file"):
        make(bad)


@pytest.mark.parametrize("make", [OrtRunner, ReferenceRunner])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(make: Callable[[Path], Runner], share: float, path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    content = path.read_bytes()
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cut\.onnx"):
        make(cut)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.onnx could not be read: No such file"):
        OrtRunner(tmp_path / "absent.onnx")


def test_what_onnxruntime_refuses_is_said_in_one_line(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[3].op_type = "Konv"
    with pytest.raises(InputError, match=r"model\.onnx is refused by onnxruntime .*Konv") as caught:
        OrtRunner(saved(model, tmp_path))
    assert "\n" not in caught.value.what
    newer = onnx.load(path)
    newer.ir_version = 99
    with pytest.raises(InputError, match="refused by onnxruntime"):
        OrtRunner(saved(newer, tmp_path))


def test_without_onnxruntime_it_cannot_run_here(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CannotRunHere, match="onnxruntime is not installed") as caught:
        OrtRunner(path)
    assert "pip install onnxruntime" in caught.value.remedy


CPUS = {
    "model name\t: Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nmodel name\t: other\n": (
        "Xeon",
        "yes",
        "yes",
        "yes",
    ),
    "model name\t: Alder Lake\nflags\t\t: avx2 avx_vnni\n": ("Alder Lake", "yes", "no", "yes"),
    "model name\t: Haswell\nflags\t\t: avx2 fma\n": ("Haswell", "yes", "no", "no"),
    "model name\t: old\nflags\t\t: sse2\n": ("old", "no", "no", "no"),
}


@pytest.mark.parametrize("text", CPUS)
def test_cpu_features_are_read_from_linux(text: str, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    model, avx2, avx512, vnni = CPUS[text]
    found = cpu_features(file)
    assert (found.model, found.avx2, found.avx512, found.vnni) == (model, avx2, avx512, vnni)


def test_an_unknown_system_has_unknown_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    monkeypatch.setattr("platform.processor", lambda: "some CPU")
    assert cpu_features(tmp_path / "absent") == CpuFeatures("some CPU", "unknown", "unknown", "unknown")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert cpu_features(tmp_path / "absent") == CpuFeatures("some CPU", "no", "no", "no")
