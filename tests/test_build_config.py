"""Options that an engine can't have are refused in a sentence; what the others cost is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engines.build_config import check_hardware, check_options, option_notes, refuse_dla
from engines.build_options import BuildOptions, Hardware, recorded
from engines.errors import InputError
from engines.host import Gpu, RuntimeName

T4 = Gpu("Tesla T4", 75, 16 << 30)
A10 = Gpu("NVIDIA A10", 86, 24 << 30)


def assert_accepted(check: Callable[..., object], *arguments: object) -> None:
    assert check(*arguments) is None  # it raises where it refuses


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (BuildOptions(hardware="same-cc"), "--hardware"),
        (BuildOptions(hardware="ampere+"), "--hardware"),
        (BuildOptions(version_compatible=True), "--version-compatible"),
    ],
)
@pytest.mark.parametrize(
    ("runtimes", "instead"),
    [
        (("tensorrt-rtx",), "TensorRT-RTX builds for the architectures of --sm"),
        (("onnxruntime",), "an onnxruntime engine runs on every CPU"),
    ],
)
def test_what_is_tensorrts_alone_is_refused_without_it(
    runtimes: tuple[RuntimeName, ...], options: BuildOptions, named: str, instead: str
) -> None:
    with pytest.raises(InputError, match=rf"^{named} is for tensorrt, which is not among the runtimes .*{instead}"):
        check_options(runtimes, options)
    assert_accepted(check_options, ("tensorrt", *runtimes), options)


def test_baseline_needs_a_gpus_runtime() -> None:
    with pytest.raises(InputError, match="--fp16-baseline is for GPUs"):
        check_options(["onnxruntime"], BuildOptions(fp16_baseline=True))
    assert_accepted(check_options, ["onnxruntime", "tensorrt-rtx"], BuildOptions(fp16_baseline=True))


@pytest.mark.parametrize(("gpu", "hardware"), [(T4, "exact"), (T4, "same-cc"), (A10, "ampere+"), (A10, "same-cc")])
def test_hardware_that_a_gpu_can_build_for_passes(gpu: Gpu, hardware: Hardware) -> None:
    assert_accepted(check_hardware, gpu, hardware)


def test_turing_can_not_build_for_ampere_and_newer() -> None:
    with pytest.raises(InputError, match=r"needs a build on Ampere or newer, and Tesla T4 is SM 75") as caught:
        check_hardware(T4, "ampere+")
    assert caught.value.remedy.startswith("pass --hardware same-cc")


def test_dla_is_refused_with_the_way_out() -> None:
    error = refuse_dla()
    assert error.exit_code == 2
    assert "there are no engines for a DLA" in error.what
    assert error.remedy == "build for the GPU of the same Jetson: leave out --dla."


def test_options_that_cost_something_say_what() -> None:
    assert option_notes(BuildOptions()) == ()
    (turing,) = option_notes(BuildOptions(hardware="ampere+"))
    assert "never on Turing" in turing
    same, version = option_notes(BuildOptions(hardware="same-cc", version_compatible=True))
    assert "every GPU of this compute capability" in same
    assert "lean runtime" in version
    assert "load only such engines as you trust" in version


@pytest.mark.parametrize(
    ("runtime", "names"),
    [
        ("onnxruntime", set()),
        ("tensorrt-rtx", {"fp16_rest", "int4_linear", "rebuilds"}),
        ("tensorrt", {"fp16_rest", "int4_linear", "rebuilds", "hardware", "version_compatible", "workspace_mib"}),
    ],
)
def test_record_holds_what_an_engine_depends_on(runtime: RuntimeName, names: set[str]) -> None:
    found = recorded(BuildOptions(workspace_mib=256), runtime)
    assert found.keys() == names
    assert found.get("workspace_mib", 256) == 256
