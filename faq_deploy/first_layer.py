"""The layer where a stage leaves PyTorch quantized: codes of one failing image, walked in the order of the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines import engine_manifest
from engines.causes import Evidence, is_unsigned, kernels_saturate, layer_reach
from engines.code_engine import open_code_engine
from engines.engine_manifest import EngineManifest
from engines.errors import FaqError
from engines.file_changes import changed_constants
from engines.first_difference import LOGITS, layer_before
from engines.onnx_metadata import modules_of
from engines.ort import OrtRunner
from engines.parity import Divergence, IntArray, compare_codes
from engines.qdq_graph import load_model, read_graph
from engines.reference import ReferenceRunner
from engines.run_folder import RunFolder
from engines.runner import CodeRunner, FloatArray
from faq_deploy.agreement import torch_codes
from faq_deploy.certificate import certificate
from faq_deploy.evidence_gates import FileCheck
from faq_deploy.stages import Tally
from faq_deploy.stored_net import StoredNet

__all__ = ["FirstLayer", "walk"]


@dataclass(frozen=True)
class FirstLayer:
    """Where one stage leaves the net.

    Attributes:
        layer: the ONNX node.
        module: its path in the user's model; empty where it is not known.
        tensor: the codes that differ first, or `logits`.
        first: how they differ; None where only logits do, or codes can't be read.
        compared: how many codes the tensor has.
        evidence: for the table of causes.
        note: why codes could not be read; empty where they were.
    """

    layer: str
    module: str
    tensor: str
    first: Divergence | None
    compared: int
    evidence: Evidence
    note: str = ""


def walk(
    run: RunFolder, stored: StoredNet, path: Path, check: FileCheck, tally: Tally, image: FloatArray
) -> FirstLayer:
    """Compare all codes of one image.

    Args:
        run: the run.
        stored: its quantized net.
        path: its model.onnx.
        check: of the file.
        tally: the stage that differs.
        image: float32, shape (1, C, H, W).

    Raises:
        FaqError: a runtime refuses the image.
    """
    wanted, _ = torch_codes(stored.net, image)
    graph, order = check.graph, list(wanted)
    manifest = _engine(run, tally)
    found, note = _codes(path, run, tally, manifest, image)
    shaped = {} if found is None else _shaped(wanted, found)
    first = compare_codes(shaped, found, order).first if found is not None else None
    tensor = LOGITS if first is None else first.tensor
    layer = layer_before(graph, graph.logits_name if first is None else tensor)
    reads = {name: codes.astype(np.int64) for name, codes in wanted.items()}
    runtime = {"reference": "reference", "onnxruntime": "oracle"}.get(tally.kind) or (
        "engine" if manifest is None else manifest.runtime
    )
    evidence = Evidence(
        runtime=runtime,
        first=first,
        file_changes=[str(change) for change in check.constants],
        engine_changes=_engine_changes(run, tally, manifest, path) if runtime == "onnxruntime" else (),
        fresh_agrees=first is None if runtime.startswith("tensorrt") and found is not None else None,
        saturates=runtime == "onnxruntime" and kernels_saturate(),
        reach=layer_reach(graph, layer, reads) if runtime == "onnxruntime" else None,
        unsigned=first is not None and is_unsigned(graph, tensor),
        proven=next((bound.proven for bound in certificate(stored.net) if bound.name == layer), None),
        float_parts=any(node.is_float for node in stored.net.graph),
    )
    size = wanted[tensor].size if tensor in wanted else 0
    return FirstLayer(layer, modules_of(graph.model).get(layer, ""), tensor, first, size, evidence, note)


def _engine(run: RunFolder, tally: Tally) -> EngineManifest | None:
    return engine_manifest.read(_folder(run, tally)) if tally.kind == "engine" else None


def _folder(run: RunFolder, tally: Tally) -> Path:
    return run / "engines" / tally.name.removeprefix("engine ")


def _codes(
    path: Path, run: RunFolder, tally: Tally, manifest: EngineManifest | None, image: FloatArray
) -> tuple[Mapping[str, IntArray] | None, str]:
    """The stage's codes, and why there are none."""
    try:
        with contextlib.closing(_open(path, run, tally, manifest)) as runner:
            return runner.codes(image), ""
    except FaqError as error:
        return None, f"Its codes inside could not be read: {error.what}"


def _open(path: Path, run: RunFolder, tally: Tally, manifest: EngineManifest | None) -> CodeRunner:
    if manifest is None:
        return ReferenceRunner(path) if tally.kind == "reference" else OrtRunner(path, oracle=True)
    if manifest.runtime == "onnxruntime":
        return OrtRunner(_folder(run, tally) / manifest.file)
    return open_code_engine(path, manifest.runtime)


def _engine_changes(run: RunFolder, tally: Tally, manifest: EngineManifest | None, path: Path) -> list[str]:
    """What an engine that is an ONNX file holds otherwise than model.onnx."""
    if manifest is None:
        return []
    engine = read_graph(load_model(_folder(run, tally) / manifest.file))
    return [str(change) for change in changed_constants(read_graph(load_model(path)), engine)]


def _shaped(wanted: Mapping[str, IntArray], found: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """PyTorch's codes in the runtime's shapes: tensors that are flat in one may have positions in the other."""
    return {name: codes.astype(np.int64).reshape(found[name].shape) for name, codes in wanted.items()}
