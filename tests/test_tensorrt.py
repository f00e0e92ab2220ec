"""Real TensorRT-RTX builds without a GPU, and what a user is told where there is no engine to be had."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from engines import onnx_facts, tensorrt, tensorrt_config
from engines.build_options import Hardware
from engines.engine_plan import inspected
from engines.errors import CannotRunHere, InputError, WriteError
from engines.host import Driver, Gpu
from engines.profile import DEFAULT_PROFILE, Profile
from engines.tensorrt import build_rtx, build_tensorrt, check_signed, check_sm
from engines.timing_cache import timings_file
from tests.engine_nets import classifier

STARTED_ANEW = "The timing cache did not fit this GPU and version: it was started anew."
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

    def test_full_disk_leaves_no_half_an_engine(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, data: bytes) -> int:
            with path.open("wb") as file:
                file.write(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(WriteError, match=r"model\.engine could not be written: No space left on device") as caught:
            build_rtx(model, 86, Profile(), tmp_path / "model.engine")
        assert caught.value.exit_code == 2
        assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]

    def test_unknown_architecture_lists_the_known_ones(self) -> None:
        with pytest.raises(InputError, match="SM 999 is unknown") as caught:
            check_sm(999)
        assert "--sm 75" in caught.value.remedy
        assert "--sm 120" in caught.value.remedy


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")  # there a timing cache holds no timings
class TestTensorRT:
    """The `tensorrt` package needs a GPU; TensorRT-RTX has the same builder, and stands in for it here."""

    @pytest.fixture(autouse=True)
    def _stand_in(self, rtx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", rtx)
        monkeypatch.setattr(tensorrt, "driver", lambda: Driver("13.0", (GPU,)))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def test_engine_is_recorded_with_its_gpu(self, model: Path, tmp_path: Path) -> None:
        built = build_tensorrt(model, Profile(), tmp_path / "model.engine", workspace_mib=256)
        assert built.gpu == GPU
        assert built.path.stat().st_size > 0

    def test_timings_are_kept_for_the_next_build(self, model: Path, tmp_path: Path) -> None:
        cache = timings_file(GPU, sys.modules["tensorrt"].__version__)
        build_tensorrt(model, Profile(), tmp_path / "model.engine")
        first = cache.read_bytes()
        assert first
        assert STARTED_ANEW not in build_tensorrt(model, Profile(), tmp_path / "model.engine").notes
        assert cache.read_bytes() == first

    def test_damaged_timings_are_replaced(self, model: Path, tmp_path: Path) -> None:
        cache = timings_file(GPU, sys.modules["tensorrt"].__version__)
        cache.parent.mkdir(parents=True)
        cache.write_bytes(b"not a cache")
        build_tensorrt(model, Profile(), tmp_path / "model.engine")
        assert cache.read_bytes() != b"not a cache"

    def test_timings_that_do_not_fit_are_a_note(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = timings_file(GPU, sys.modules["tensorrt"].__version__)
        cache.parent.mkdir(parents=True)
        cache.write_bytes(b"of another driver")
        monkeypatch.setattr(tensorrt_config, "use_timings", lambda config, data: False)
        assert STARTED_ANEW in build_tensorrt(model, Profile(), tmp_path / "model.engine").notes

    def test_cache_folder_that_can_not_be_written_is_a_note(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cache").write_bytes(b"a file where the folder should be")
        built = build_tensorrt(model, Profile(), tmp_path / "model.engine")
        assert built.path.is_file()
        assert [note for note in built.notes if note.startswith("The timing cache ") and "was not used" in note]

    def test_an_engine_that_can_not_be_inspected_is_built_all_the_same(self, model: Path, tmp_path: Path) -> None:
        built = build_tensorrt(model, Profile(), tmp_path / "model.engine")  # inspecting one needs the GPU
        assert built.layers is None
        assert [note for note in built.notes if note.startswith("TensorRT did not tell what the engine's layers")]

    def test_version_compatible_without_the_lean_runtime_exits_3(self, model: Path, tmp_path: Path) -> None:
        # TensorRT-RTX has no lean runtime at all, and says what TensorRT says where its own is not installed
        with pytest.raises(CannotRunHere, match="needs TensorRT's lean runtime, which does not load: ") as caught:
            build_tensorrt(model, Profile(), tmp_path / "model.engine", version_compatible=True)
        assert caught.value.remedy.startswith("pip install tensorrt-lean")

    @pytest.mark.parametrize(
        ("said", "remedy"),
        [
            ("Error Code 2: OutOfMemory (Requested size was 9 bytes.)", "end other programs on the GPU"),
            ("Error Code 1: Cuda Runtime (cudaError 719: unspecified launch failure)", "run `faq-deploy doctor`"),
        ],
    )
    def test_failure_of_the_gpu_is_not_blamed_on_the_network(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, remedy: str
    ) -> None:
        monkeypatch.setattr(tensorrt, "reason", lambda messages, otherwise: said)
        with pytest.raises(CannotRunHere, match="could not be built on NVIDIA Test 4000: Error Code") as caught:
            build_tensorrt(model, Profile(), tmp_path / "model.engine", version_compatible=True)  # which fails here
        assert caught.value.remedy.startswith(remedy)

    def test_workspace_is_what_is_free_unless_given(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        monkeypatch.setattr(tensorrt, "free_memory", lambda gpu: 3 << 30)
        monkeypatch.setattr(tensorrt_config, "limit_workspace", lambda api, config, size: sizes.append(size))
        build_tensorrt(model, Profile(), tmp_path / "model.engine")
        build_tensorrt(model, Profile(), tmp_path / "model.engine", workspace_mib=256)
        assert sizes == [3 << 30, 256 << 20]

    def test_ampere_engines_are_not_built_on_turing(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tensorrt, "driver", lambda: Driver("13.0", (Gpu("Tesla T4", 75, 16 << 30),)))
        with pytest.raises(InputError, match=r"ampere\+ needs a build on Ampere or newer, and Tesla T4 is SM 75"):
            build_tensorrt(model, Profile(), tmp_path / "model.engine", hardware="ampere+")

    def test_driver_older_than_the_package_exits_3(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tensorrt, "driver", lambda: Driver("12.8", (GPU,)))
        monkeypatch.setattr(tensorrt, "cuda_of", lambda package: 13)
        with pytest.raises(CannotRunHere, match=r"driver is too old .*: it supports CUDA 12\.8") as caught:
            build_tensorrt(model, Profile(), tmp_path / "model.engine")
        assert "580 or newer" in caught.value.remedy
        monkeypatch.setattr(tensorrt, "cuda_of", lambda package: 12)
        assert build_tensorrt(model, Profile(), tmp_path / "model.engine").gpu == GPU

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


@pytest.mark.gpu
@pytest.mark.parametrize("hardware", ["exact", "same-cc"])
def test_real_engine_tells_its_layers_and_keeps_its_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: Hardware
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = classifier(tmp_path / "model.onnx")
    try:
        built = build_tensorrt(model, Profile(), tmp_path / "model.engine", hardware=hardware)
    except CannotRunHere as error:
        pytest.skip(error.what)
    assert built.gpu is not None
    assert built.notes == ()
    assert built.layers is not None
    assert inspected(built.layers, onnx.load(model)).source == "inspected"
    assert timings_file(built.gpu, built.version).stat().st_size > 0
    again = build_tensorrt(model, Profile(), tmp_path / "model.engine", hardware=hardware)
    assert again.notes == ()  # the timings fitted


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
