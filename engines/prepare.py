"""What one engine is built from: the exported network, made fit for a runtime and a GPU without changing an integer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from engines.build_options import BuildOptions
from engines.fp16 import fp16_rest
from engines.host import RuntimeName
from engines.int4 import int4_refused, linears_as_int4, unpack_int4
from engines.turing_forms import TURING, for_every_gpu, for_turing

__all__ = ["Prepared", "prepare"]

Pass = Callable[[onnx.ModelProto], tuple[onnx.ModelProto, tuple[str, ...]]]


@dataclass(frozen=True)
class Prepared:
    """The network to hand to a builder.

    Args:
        model: with all weights in it; the very object that was given where nothing had to change.
        notes: what was done and why, a sentence each.
    """

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()


def prepare(model: onnx.ModelProto, runtime: RuntimeName, sm: int | None, options: BuildOptions) -> Prepared:
    """Make a network fit for a builder: INT4 or INT8 storage, FP16 for what was left in float, forms that it has.

    Args:
        model: as exported, with its weights loaded.
        runtime: that will run it; onnxruntime takes every network as it is.
        sm: GPU architecture as one number; None where the runtime finds it out itself.
        options: of the build.

    Returns:
        The network and what was done to it.

    Raises:
        InputError: a layer that the GPU has no kernel for in any form, by name and with the way out.
    """
    notes = list[str]()
    refused = int4_refused(runtime, sm) if options.int4_linear else None
    if refused is not None:
        notes.append(refused)
    if runtime == "onnxruntime":
        if options.fp16_rest:
            notes.append("onnxruntime computes in FP32 on a CPU what was left in float.")
        return Prepared(model, tuple(notes))
    passes: list[Pass] = [_unpacked]
    if options.int4_linear and refused is None:
        passes.append(linears_as_int4)
    if options.fp16_rest:
        passes.append(fp16_rest)
    passes.append(for_every_gpu)
    if runtime == "tensorrt-rtx" and sm == TURING:  # TensorRT itself has these kernels on Turing
        passes.append(for_turing)
    for change in passes:
        model, said = change(model)
        notes += said
    return Prepared(model, tuple(notes))


def _unpacked(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Codes of 4 bits as INT8: kernels read that, and nothing older than Ampere reads INT4."""
    plain = unpack_int4(model)
    return plain, () if plain is model else ("Weights stored in 4 bits are unpacked to INT8, the same codes.",)
