"""Real TensorRT-RTX builds without a GPU, and what a user is told where there is no engine to be had."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from engines import onnx_facts, tensorrt
from engines.errors import CannotRunHere, InputError
from engines.host import Driver, Gpu
from engines.profile import DEFAULT_PROFILE, Profile
from engines.tensorrt import build_rtx, build_tensorrt, check_signed, check_sm
from tests.engine_nets import classifier

GPU = Gpu("NVIDIA Test 4000", 86, 8 << 30)


@pytest.fixture
def rtx() -> ModuleType:
    module: ModuleType = pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'faq-deploy[rtx]'"
    )
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "model.onnx")


@pytest.mark.usefixtures("rtx")
class TestRtx:
    @pytest.mark.parametrize("sm", [75, 86, 89, 120])
    def test_each_architecture_builds_without_a_gpu(self, model: Path, tmp_path: Path, sm: int) -> None:
        built = build_rtx(model, sm, DEFAULT_PROFILE, tmp_path / "model.engine")
        assert built.path.read_bytes()[:4] == b"vtrt"
        assert built.shapes == {"input": ((1, 3, 16, 16), (8, 3, 16, 16), (32, 3, 16, 16))}
        assert built.version == sys.modules["tensorrt_rtx"].__version__
        assert built.gpu is None
        assert built.seconds > 0

    def test_architectures_get_different_engines(self, model: Path, tmp_path: Path) -> None:
        engines = {build_rtx(model, sm, Profile(), tmp_path / f"{sm}").path.read_bytes() for sm in (75, 86, 120)}
        assert len(engines) == 3

    def test_profile_reaches_the_engine(self, model: Path, tmp_path: Path) -> None:
        built = build_rtx(model, 86, Profile(2, 4, 6), tmp_path / "model.engine")
        assert built.shapes == {"input": ((2, 3, 16, 16), (4, 3, 16, 16), (6, 3, 16, 16))}

    def test_fixed_batch_needs_no_profile(self, tmp_path: Path) -> None:
        model = classifier(tmp_path / "model.onnx", input_shape=(4, 3, 16, 16))
        built = build_rtx(model, 86, Profile(), tmp_path / "model.engine")
        assert built.shapes == {"input": ((4, 3, 16, 16),) * 3}

    def test_parser_error_names_the_node(self, tmp_path: Path) -> None:
        model = classifier(tmp_path / "model.onnx", flaw="unknown operator")
        with pytest.raises(InputError, match=r"model\.onnx is refused .* node 'layer3\.conv2' \(Nonsense\): "):
            build_rtx(model, 86, Profile(), tmp_path / "model.engine")
        assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]

    def test_negative_scale_is_refused_by_name(self, tmp_path: Path) -> None:
        model = classifier(tmp_path / "model.onnx", flaw="negative scale")
        with pytest.raises(InputError, match=r"node 'x\.quantize' \(QuantizeLinear\): .*must all be positive"):
            build_rtx(model, 86, Profile(), tmp_path / "model.engine")

    def test_builder_failure_says_what_the_builder_logged(self, tmp_path: Path) -> None:
        model = classifier(tmp_path / "model.onnx", gemm=True)
        with pytest.raises(InputError) as caught:
            build_rtx(model, 75, Profile(), tmp_path / "model.engine")
        assert caught.value.what == (
            f"{model} could not be built for SM 75: Myelin: Cannot compile operation 'classifier' for Turing (SM75): "
            "FP32 GEMM is not supported."
        )
        assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]

    def test_an_earlier_failure_is_not_told_again(self, tmp_path: Path, model: Path) -> None:
        gemm = classifier(tmp_path / "gemm.onnx", gemm=True)
        with pytest.raises(InputError, match="FP32 GEMM"):
            build_rtx(gemm, 75, Profile(), tmp_path / "model.engine")
        odd = classifier(tmp_path / "odd.onnx", input_shape=("N", 3, "H", "W"))
        with pytest.raises(InputError) as caught:
            build_rtx(odd, 75, Profile(), tmp_path / "model.engine")
        assert "GEMM" not in str(caught.value)
        assert "dynamic in more than its batch" in caught.value.what
        assert build_rtx(model, 75, Profile(), tmp_path / "model.engine").warnings == ()

    def test_unknown_architecture_lists_the_known_ones(self) -> None:
        with pytest.raises(InputError, match="SM 999 is unknown") as caught:
            check_sm(999)
        assert "--sm 75" in caught.value.remedy
        assert "--sm 120" in caught.value.remedy


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")  # there a timing cache holds no timings
class TestTensorRT:
    """The `tensorrt` package needs a GPU; TensorRT-RTX has the same builder, and stands in for it here."""

    @pytest.fixture(autouse=True)
    def _stand_in(self, rtx: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", rtx)
        monkeypatch.setattr(tensorrt, "driver", lambda: Driver("13.0", (GPU,)))

    def test_engine_is_recorded_with_its_gpu(self, model: Path, tmp_path: Path) -> None:
        built = build_tensorrt(model, Profile(), tmp_path / "model.engine", workspace_mib=256)
        assert built.gpu == GPU
        assert built.path.stat().st_size > 0

    def test_timing_cache_is_written_and_read_again(self, model: Path, tmp_path: Path) -> None:
        cache = tmp_path / "timing.cache"
        build_tensorrt(model, Profile(), tmp_path / "model.engine", timing_cache=cache)
        first = cache.read_bytes()
        assert first
        build_tensorrt(model, Profile(), tmp_path / "model.engine", timing_cache=cache)
        assert cache.read_bytes() == first

    def test_damaged_timing_cache_is_replaced(self, model: Path, tmp_path: Path) -> None:
        cache = tmp_path / "timing.cache"
        cache.write_bytes(b"not a cache")
        build_tensorrt(model, Profile(), tmp_path / "model.engine", timing_cache=cache)
        assert cache.read_bytes() != b"not a cache"

    def test_gpu_without_int8_is_refused(self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorrt, "driver", lambda: Driver("12.4", (Gpu("GTX 1080", 61, 8 << 30),)))
        with pytest.raises(CannotRunHere, match=r"GTX 1080 is SM 61: INT8 needs SM 7\.5 or newer"):
            build_tensorrt(model, Profile(), tmp_path / "model.engine")

    def test_no_gpu_exits_3_and_says_why(self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorrt, "driver", lambda: Driver(None, (), "no NVIDIA driver"))
        with pytest.raises(CannotRunHere, match="needs an NVIDIA GPU here: no NVIDIA driver") as caught:
            build_tensorrt(model, Profile(), tmp_path / "model.engine")
        assert caught.value.exit_code == 3
        assert "tensorrt-rtx" in caught.value.remedy


@pytest.mark.parametrize("zero_point", [np.uint8(128), np.uint8(0)])
def test_unsigned_codes_are_refused_before_the_parser(tmp_path: Path, zero_point: np.uint8) -> None:
    # a zero point of 0 would pass the parser, which reads it as int8 and saturates codes 128..255
    model = classifier(tmp_path / "model.onnx", zero_point=zero_point, metadata={"target": "onnxruntime"})
    with pytest.raises(InputError, match="was made for target onnxruntime, and TensorRT has no uint8 codes") as caught:
        check_signed(onnx_facts.read(model))
    assert caught.value.remedy == "make the run with --target tensorrt."


def test_architecture_without_int8_is_refused() -> None:
    with pytest.raises(InputError, match=r"INT8 needs SM 7\.5 or newer, so there is no engine for SM 61"):
        check_sm(61)
