"""The ONNX file that a builder gets: the exported one itself, or a prepared network in a temporary file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import EncodeError

from engines.build_options import BuildOptions
from engines.files import atomic_path, scratch_folder
from engines.fp16 import fp16_baseline
from engines.host import RuntimeName
from engines.int4 import unpack_int4
from engines.onnx_facts import OnnxFacts
from engines.prepare import prepare
from engines.qdq_graph import load_model

__all__ = ["EngineSource", "engine_source", "temporary_onnx"]

_LARGEST_BYTES: Final = (1 << 31) - 1  # of one protobuf message

_BASELINE_NOTES: Final = (
    "An engine named -fp16 is the net without its quantizers, in FP16, to compare speed with: it gives other numbers, "
    "and its codes and logits are never compared.",
)


@dataclass(frozen=True)
class EngineSource:
    """What one engine is built from.

    Args:
        path: the file for the builder; the exported one where nothing had to change.
        model: the network in it, with all its weights.
        notes: what was changed and why, a sentence each.
    """

    path: Path
    model: onnx.ModelProto
    notes: tuple[str, ...]


@contextlib.contextmanager
def engine_source(
    facts: OnnxFacts, runtime: RuntimeName, sm: int | None, options: BuildOptions, *, baseline: bool = False
) -> Iterator[EngineSource]:
    """Prepare a network for one engine.

    Args:
        facts: of the exported file.
        runtime: that will run it.
        sm: GPU architecture as one number, where it is known.
        options: of the build.
        baseline: take the net without quantizers, in FP16.

    Yields:
        What to build from; a temporary file is there until the block ends.

    Raises:
        InputError: the file can't be read, or a layer that the GPU has no kernel for in any form.
        WriteError: the disk is full.
    """
    exported = load_model(facts.path, unpack=False, any_inputs=True)
    notes: tuple[str, ...] = ()
    model = exported
    if baseline:
        model, notes = fp16_baseline(unpack_int4(exported)), _BASELINE_NOTES
        options = BuildOptions(profile=options.profile)  # there is no INT4 in it, and everything is in FP16
    prepared = prepare(model, runtime, sm, options)
    notes += prepared.notes
    if prepared.model is exported:
        yield EngineSource(facts.path, exported, notes)
        return
    with temporary_onnx(prepared.model) as path:
        yield EngineSource(path, prepared.model, notes)


@contextlib.contextmanager
def temporary_onnx(model: onnx.ModelProto) -> Iterator[Path]:
    """Write a model for as long as the block lasts, its weights beside it where one file can't hold them.

    Args:
        model: with all its weights.

    Yields:
        The file.

    Raises:
        WriteError: the disk is full.
    """
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        with atomic_path(path) as temporary:
            data = _in_one_message(model)
            if data is not None:
                temporary.write_bytes(data)
            else:
                copy = onnx.ModelProto()
                copy.CopyFrom(model)  # saving beside moves the weights out of the model
                onnx.save_model(copy, temporary, save_as_external_data=True, location="model.data")
        yield path


def _in_one_message(model: onnx.ModelProto) -> bytes | None:
    try:
        return bytes(model.SerializeToString()) if model.ByteSize() <= _LARGEST_BYTES else None
    except (EncodeError, ValueError):  # protobuf's own limit
        return None
