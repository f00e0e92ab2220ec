"""A model repository for NVIDIA's Triton inference server: the model, its configuration, labels, and what to send."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import onnx

from engines import engine_manifest
from engines.engine_manifest import EngineManifest
from engines.errors import InputError, WriteError
from engines.files import scratch_beside
from engines.int4_storage import unpack_int4
from engines.onnx_metadata import holds_float_weights, metadata_of
from engines.profile import DEFAULT_PROFILE, Profile
from engines.qdq_graph import load_model, read_graph
from engines.run_folder import RunFolder
from engines.triton_config import ServedModel, Tensor, model_config
from engines.triton_readme import client_notes

__all__ = ["write_repository"]

_CONFIG: Final = "config.pbtxt"
_LABELS: Final = "labels.txt"
_TYPES: Final[dict[int, str]] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.BFLOAT16: "TYPE_BF16",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
}


@dataclass(frozen=True)
class _Source:
    backend: Literal["onnxruntime", "tensorrt"]
    data: bytes | Path  # of the file in version folder 1
    profile: Profile
    engine: EngineManifest | None = None  # of a TensorRT engine


def write_repository(run: RunFolder, output: Path, *, engine: str | None = None, force: bool = False) -> Path:
    """Write OUTPUT/NAME, which Triton serves with `tritonserver --model-repository=OUTPUT`.

    NAME is the run folder's own, with `_` for what is no letter, digit, `-`, `_` or `.`. The folder appears whole or
    not at all; other models of the repository stay as they are.

    Args:
        run: a run after `export`.
        output: the model repository; made if absent.
        engine: name of one of the run's engines, `onnxruntime` or one built by `tensorrt`; None serves the ONNX file.
        force: replace OUTPUT/NAME where it is a model already.

    Returns:
        OUTPUT/NAME.

    Raises:
        InputError: no model.onnx or a stale one, no such engine or a damaged one, one that Triton can't load, or
            something that stands in the way.
        WriteError: the folder could not be written; nothing is left behind.

    Source:
        Triton's user guide, "Model Repository" and "Model Configuration".
    """
    path = run.require_fresh("export", "model.onnx", {"quantized.pt": "quantize"})
    stored = load_model(path, unpack=False, any_inputs=True)
    source = _source(run, path, stored, engine)
    metadata = metadata_of(stored)
    classes = _classes(metadata.get("classes"))
    model = _served(_name(run.path), stored, source, classes, path)
    files: dict[str, bytes | Path] = {
        _CONFIG: model_config(model).encode(),
        f"1/{model.filename}": source.data,
        "README.md": client_notes(model, source.engine, has_preprocessing="preprocessing" in metadata).encode(),
    }
    if classes:
        files[_LABELS] = "".join(f"{' '.join(name.split())}\n" for name in classes).encode()
    if "preprocessing" in metadata:
        files["preprocessing.json"] = f"{json.dumps(metadata['preprocessing'], indent=2)}\n".encode()
    return _write(output / model.name, files, force=force)


def _source(run: RunFolder, path: Path, stored: onnx.ModelProto, engine: str | None) -> _Source:
    if engine is not None:
        folder = run / "engines"
        built = sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
        if engine not in built:
            among = f"it has {', '.join(built)}" if built else "none was built"
            raise InputError(
                f"{run.path} has no engine {engine!r}; {among}.", "name one of them, or leave out --engine."
            )
        manifest = engine_manifest.check(folder / engine, run.manifest().steps["export"].outputs["model.onnx"])
        if manifest.runtime == "tensorrt-rtx":
            raise InputError(
                f"{engine} is an engine of TensorRT-RTX, which Triton can't load: its TensorRT backend is another.",
                "leave out --engine to serve the ONNX file, or build with `--runtime tensorrt` on the server's GPU.",
            )
        if manifest.runtime == "tensorrt":
            return _Source("tensorrt", folder / engine / manifest.file, _profile(manifest), manifest)
    unpacked = unpack_int4(stored)  # weights stored in 4 bits would keep onnxruntime from its INT8 kernels
    data = path if unpacked is stored else unpacked.SerializeToString(deterministic=True)
    return _Source("onnxruntime", data, DEFAULT_PROFILE)


def _profile(manifest: EngineManifest) -> Profile:
    """The batch sizes that an engine takes: those of its first input, since all inputs have the same."""
    smallest, best, largest = next(iter(manifest.profile.values()), ((1,), (1,), (1,)))
    return Profile(smallest[0], best[0], largest[0])


def _served(name: str, stored: onnx.ModelProto, source: _Source, classes: Sequence[str], path: Path) -> ServedModel:
    constants = {tensor.name for tensor in stored.graph.initializer}
    inputs = [_tensor(value, path) for value in stored.graph.input if value.name not in constants]
    outputs = [_tensor(value, path) for value in stored.graph.output]
    batched = all(tensor.dims[:1] == (-1,) for tensor in (*inputs, *outputs))
    if batched and source.profile.smallest > 1:
        raise InputError(
            f"the engine takes batches from {source.profile.smallest}, and Triton sends single images too.",
            "build it with `--batch 1:OPT:MAX`.",
        )
    cut = 1 if batched else 0  # where Triton batches, dims are those of one image
    labelled = {t.name for t in outputs if len(t.dims) == 2 and t.dims[1] == len(classes)} if classes else set()
    return ServedModel(
        name=name,
        backend=source.backend,
        inputs=tuple(Tensor(t.name, t.type, t.dims[cut:]) for t in inputs),
        outputs=tuple(Tensor(t.name, t.type, t.dims[cut:], _LABELS if t.name in labelled else "") for t in outputs),
        best_batch=source.profile.best if batched else 0,
        largest_batch=source.profile.largest if batched else 0,
        optimized=source.backend == "tensorrt" or not holds_float_weights(read_graph(stored)),
    )


def _tensor(value: onnx.ValueInfoProto, path: Path) -> Tensor:
    kind = value.type.tensor_type
    if kind.elem_type not in _TYPES or not kind.HasField("shape"):
        raise InputError(
            f"{path} does not say the type and shape of {value.name}, which Triton asks for.", "export it again."
        )
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Tensor(value.name, _TYPES[kind.elem_type], dims)


def _classes(names: object) -> list[str]:
    return [str(name) for name in names] if isinstance(names, list) else []


def _name(run: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", run.resolve().name).lstrip(".") or "model"


def _write(folder: Path, files: dict[str, bytes | Path], *, force: bool) -> Path:
    """Fill a temporary folder beside `folder`, then give it that name."""
    if folder.parent.exists() and not folder.parent.is_dir():
        raise InputError(f"{folder.parent} is a file.", "name a folder with -o: the model repository.")
    if folder.exists() or folder.is_symlink():
        if not (folder / _CONFIG).is_file():
            raise InputError(f"{folder} is there and is no model of Triton's.", "name another folder with -o.")
        if not force:
            raise InputError(f"{folder} is there already.", "pass --force to replace it, or another folder with -o.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(folder) as scratch:
            made, old = scratch / "new", scratch / "old"
            made.mkdir()
            for file, data in files.items():
                _fill(made / file, data)
            if folder.exists():
                folder.rename(old)
            try:
                made.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise WriteError(
            f"{folder} could not be written: {error.strerror or error}.",
            "free some disk space, or choose a folder that can be written with -o.",
        ) from error
    return folder


def _fill(file: Path, data: bytes | Path) -> None:
    file.parent.mkdir(exist_ok=True)
    with file.open("wb") as stream:
        if isinstance(data, Path):
            with data.open("rb") as original:
                shutil.copyfileobj(original, stream)
        else:
            stream.write(data)
        os.fsync(stream.fileno())
