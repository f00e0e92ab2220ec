"""From an engine's folder or an ONNX file to a runner; an engine's record must fit its files and this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from engines import engine_manifest
from engines.errors import InputError
from engines.host import this_host
from engines.ort import OrtRunner
from engines.reference import ReferenceRunner
from engines.runner import OutputRunner
from engines.tensorrt_runner import TensorRTRunner

__all__ = ["OnnxRuntime", "load", "open_engine"]

OnnxRuntime = Literal["onnxruntime", "oracle", "reference"]


def load(path: str | Path, runtime: OnnxRuntime = "onnxruntime") -> OutputRunner:
    """A runner from an engine's folder or an ONNX file: `logits = runner(batch)`, then `runner.close()`.

    Args:
        path: `RUN/engines/NAME`, as `faq-deploy build` leaves it, or an ONNX file.
        runtime: of an ONNX file: `onnxruntime` is fast, `oracle` is onnxruntime without optimizations, `reference`
            the integers in NumPy. An engine's folder has its own.

    Returns:
        Takes float32 images, shape (N, C, H, W), preprocessed, and returns float32 logits, shape (N, classes); its
        `outputs(batch)` returns all outputs by name.

    Raises:
        InputError: there is no engine or ONNX file, or it was changed or is damaged.
        CannotRunHere: no GPU, another one, or another version of the runtime.
    """
    place = Path(path)
    if place.is_dir():
        _require_engine(place)
        return open_engine(place)
    if not place.exists():
        raise InputError(f"There is no {place}.", "name an engine's folder, as RUN/engines/NAME, or an ONNX file.")
    match runtime:
        case "onnxruntime" | "oracle":
            return OrtRunner(place, oracle=runtime == "oracle")
        case "reference":
            return ReferenceRunner(place)
    raise InputError(
        f"an ONNX file is not run by {runtime}.",
        "choose onnxruntime, oracle or reference, or build an engine with `faq-deploy build` and name its folder.",
    )


def open_engine(folder: Path, onnx_sha256: str | None = None, *, baseline: bool = False) -> OutputRunner:
    """Check an engine's record against its files and this machine, then load it.

    A file that is cut short, foreign or of another GPU or version never reaches a runtime, which would crash on it or
    name the wrong cause.

    Args:
        folder: `engines/NAME`, as `faq-deploy build` leaves it.
        onnx_sha256: of the ONNX file that it must have been built from; None takes the record's word.
        baseline: it may be the net without quantizers, whose time is of interest and whose outputs are not.

    Returns:
        A runner; close it after use.

    Raises:
        InputError: the engine is missing, changed, or built from another file.
        CannotRunHere: no GPU, another one, or another version of the runtime.
    """
    manifest = engine_manifest.check(folder, onnx_sha256, this_host())
    engine = folder / manifest.file
    if manifest.runtime == "onnxruntime":
        return OrtRunner(engine)
    if manifest.baseline and not baseline:
        raise InputError(
            f"{folder} is a net without quantizers, to compare speed with.", "open the engine without -fp16."
        )
    return TensorRTRunner(engine, manifest.runtime, host_code=manifest.options.get("version_compatible") is True)


def _require_engine(folder: Path) -> None:
    """Refuse a folder that is something else: a run, say."""
    inside = folder / "engines"
    if not inside.is_dir() and not (folder / "quantized.pt").exists():
        return
    names = sorted(found.parent.name for found in inside.glob(f"*/{engine_manifest.MANIFEST}"))
    raise InputError(
        f"{folder} is a run, not an engine.",
        f"name one of its engines: {', '.join(str(inside / name) for name in names)}."
        if names
        else f"build one with `faq-deploy build {folder}`, or name its model.onnx.",
    )
