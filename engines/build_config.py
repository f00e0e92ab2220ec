"""Choices of a build that an engine can't have together, each refused in a sentence, and what the others cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from engines.build_options import BuildOptions, Hardware
from engines.errors import InputError
from engines.host import Gpu, RuntimeName

__all__ = ["check_hardware", "check_options", "option_notes", "refuse_dla"]

_AMPERE: Final = 80

_HARDWARE_NOTES: Final[Mapping[Hardware, str]] = {
    "same-cc": "Runs on every GPU of this compute capability; fewer kernels were to choose from, so it may be slower "
    "than one for exactly this GPU.",
    "ampere+": "Runs on Ampere and newer GPUs, never on Turing; kernels may use 48 KiB of shared memory at most and "
    "some fusions are left out, so it may be slower than one for exactly this GPU.",
}

_VERSION_NOTE: Final = (
    "Version-compatible: later versions of this TensorRT can load it (of TensorRT 10 also 11), earlier ones can't. "
    "It is limited to what TensorRT's lean runtime runs, may be slower, and carries that runtime, host code that is "
    "run when it is loaded: load only such engines as you trust."
)


def refuse_dla() -> InputError:
    """Why there are no engines for a DLA, and what to do instead.

    Source: "Working with DLA" and "DLA Supported Layers and Restrictions" in the documentation of TensorRT 11.4.1.
    """
    return InputError(
        "--dla: there are no engines for a DLA. TensorRT 10.8 to 11.3 have no DLA at all, on earlier ones it took no "
        "network with Q/DQ nodes, and on TensorRT 11.4.1 (Jetson AGX Orin) it takes fixed batches only, and layers by "
        "rules of its own that these networks are not made for.",
        "build for the GPU of the same Jetson: leave out --dla.",
    )


def check_options(runtimes: Sequence[RuntimeName], options: BuildOptions) -> None:
    """Refuse choices that none of the wanted runtimes has.

    Args:
        runtimes: that will be built for.
        options: of the build.

    Raises:
        InputError: a choice that is TensorRT's alone, and TensorRT is not among them.
    """
    names = ", ".join(runtimes)
    chosen = {"--hardware": options.hardware != "exact", "--version-compatible": options.version_compatible}
    for option, given in chosen.items():
        if given and "tensorrt" not in runtimes:
            instead = (
                "TensorRT-RTX builds for the architectures of --sm and for its own version"
                if "tensorrt-rtx" in runtimes
                else "an onnxruntime engine runs on every CPU and in every version as it is"
            )
            raise InputError(
                f"{option} is for tensorrt, which is not among the runtimes ({names}): {instead}.",
                f"leave out {option}, or add --runtime tensorrt.",
            )
    idle = {
        "--int4-linear": options.int4_linear,
        "--fp16-rest": options.fp16_rest,
        "--rebuilds": options.rebuilds > 1,
        "--workspace": options.workspace_mib is not None,
    }
    for option, given in idle.items():
        if given and set(runtimes) == {"onnxruntime"}:
            raise InputError(
                f"{option} is for GPUs: an onnxruntime engine is the ONNX file itself.",
                f"leave out {option}, or add --runtime tensorrt or tensorrt-rtx.",
            )
    if options.fp16_baseline and set(runtimes) == {"onnxruntime"}:
        raise InputError(
            "--fp16-baseline is for GPUs, and onnxruntime computes on the CPU, in FP32.",
            "leave it out, or add --runtime tensorrt or tensorrt-rtx.",
        )


def check_hardware(gpu: Gpu, hardware: Hardware) -> None:
    """Refuse GPUs to run on that an engine built on this one can't serve.

    Args:
        gpu: that the engine is built on.
        hardware: that it must run on.

    Raises:
        InputError: engines for Ampere and newer can only be built there.
    """
    if hardware == "ampere+" and gpu.sm < _AMPERE:
        raise InputError(
            f"--hardware ampere+ needs a build on Ampere or newer, and {gpu.name} is SM {gpu.sm} (Turing).",
            "pass --hardware same-cc, which serves other GPUs of its kind, or leave it out.",
        )


def option_notes(options: BuildOptions) -> tuple[str, ...]:
    """What a user should know of a TensorRT engine that was built so, a sentence each."""
    hardware = _HARDWARE_NOTES.get(options.hardware)
    notes = [hardware] if hardware is not None else []
    if options.version_compatible:
        notes.append(_VERSION_NOTE)
    return tuple(notes)
