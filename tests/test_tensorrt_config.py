"""Settings reach a real builder configuration: that of TensorRT-RTX, which has TensorRT's names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from engines import tensorrt_config
from engines.build_options import Hardware
from engines.errors import CannotRunHere
from engines.tensorrt_api import TensorRTApi, tensorrt_api
from engines.tensorrt_package import open_log

if TYPE_CHECKING:
    import tensorrt as trt

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'faq-deploy[rtx]'")


@pytest.fixture
def api() -> TensorRTApi:
    return tensorrt_api("tensorrt-rtx")


@pytest.fixture
def config(api: TensorRTApi) -> trt.IBuilderConfig:
    logger, _ = open_log("tensorrt-rtx")
    return api.Builder(logger).create_builder_config()


@pytest.mark.parametrize(
    ("hardware", "level"), [("exact", "unset"), ("same-cc", "SAME_COMPUTE_CAPABILITY"), ("ampere+", "AMPERE_PLUS")]
)
def test_other_hardware_is_a_level(api: TensorRTApi, hardware: Hardware, level: str) -> None:
    config = SimpleNamespace(hardware_compatibility_level="unset")
    tensorrt_config.allow_other_hardware(api, cast("trt.IBuilderConfig", config), hardware)
    assert getattr(config.hardware_compatibility_level, "name", "unset") == level


def test_level_that_is_ignored_is_refused(api: TensorRTApi, config: trt.IBuilderConfig) -> None:
    with pytest.raises(CannotRunHere, match=r"--hardware same-cc is not accepted .* on this platform"):
        tensorrt_config.allow_other_hardware(api, config, "same-cc")  # TensorRT-RTX has the name and ignores it


def test_level_that_an_older_tensorrt_lacks_is_refused(config: trt.IBuilderConfig) -> None:
    levels = SimpleNamespace(NONE=0, AMPERE_PLUS=1)
    older = cast("TensorRTApi", SimpleNamespace(HardwareCompatibilityLevel=levels, __version__="10.0.1"))
    with pytest.raises(CannotRunHere, match=r"--hardware same-cc is unknown to TensorRT 10\.0\.1"):
        tensorrt_config.allow_other_hardware(older, config, "same-cc")


def test_later_versions_are_allowed_by_a_flag(api: TensorRTApi, config: trt.IBuilderConfig) -> None:
    assert not config.get_flag(api.BuilderFlag.VERSION_COMPATIBLE)
    tensorrt_config.allow_other_versions(api, config)
    assert config.get_flag(api.BuilderFlag.VERSION_COMPATIBLE)


def test_workspace_is_limited_in_bytes(api: TensorRTApi, config: trt.IBuilderConfig) -> None:
    tensorrt_config.limit_workspace(api, config, 64 << 20)
    assert config.get_memory_pool_limit(api.MemoryPoolType.WORKSPACE) == 64 << 20


def test_layers_are_told_in_detail(api: TensorRTApi, config: trt.IBuilderConfig) -> None:
    tensorrt_config.tell_layers(api, config)
    assert config.profiling_verbosity == api.ProfilingVerbosity.DETAILED


def test_architecture_that_is_not_accepted_exits_3(config: trt.IBuilderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(num_compute_capabilities=0, set_compute_capability=lambda capability, index: False)
    monkeypatch.setattr(tensorrt_config, "rtx_config", lambda config: refusing)
    with pytest.raises(CannotRunHere, match="does not accept SM 86") as caught:
        tensorrt_config.use_architecture(config, 86)
    assert caught.value.exit_code == 3


def test_strong_typing_is_asked_for_by_capability(api: TensorRTApi) -> None:
    assert tensorrt_config.creation_flags(api) == 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    without = cast("TensorRTApi", SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace()))
    assert tensorrt_config.creation_flags(without) == 0  # a later TensorRT may drop the flag


@pytest.mark.parametrize(("made", "accepted", "fits"), [(True, True, True), (True, False, False), (False, True, False)])
def test_timings_that_do_not_fit_are_replaced_by_none(made: bool, accepted: bool, fits: bool) -> None:
    caches: list[tuple[str, bool]] = []

    class Config:
        def create_timing_cache(self, data: bytes) -> str | None:
            return "empty" if data == b"" else "saved" if made else None

        def set_timing_cache(self, cache: str, ignore_mismatch: bool) -> bool:
            caches.append((cache, ignore_mismatch))
            return accepted or cache == "empty"

    assert tensorrt_config.use_timings(cast("trt.IBuilderConfig", Config()), b"kernels") is fits
    assert caches[-1] == ("saved" if fits else "empty", False)


def test_measured_timings_may_be_none() -> None:
    config = cast("trt.IBuilderConfig", SimpleNamespace(get_timing_cache=lambda: None))
    assert tensorrt_config.measured_timings(config) is None
