"""Gates on what is certain without statistics: the file is the net, its codes are the net's, top-1 is quantize's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onnx import helper

from engines.file_changes import ConstantChange, changed_constants, changed_facts
from engines.onnx_metadata import metadata_of, modules_of
from engines.qdq_graph import QdqGraph, load_model, read_graph
from engines.run_folder import RunFolder
from faq_deploy.certificate import certificate
from faq_deploy.emit import emit_with_modules
from faq_deploy.report_model import Gate, Stage
from faq_deploy.stored_net import StoredNet

__all__ = ["FALL", "FileCheck", "check_file", "code_gates", "fall_gate", "file_gates"]

FALL: Final = "fall since quantize"
_OPSET: Final = 13
_LEAST_FALL: Final = 5.0  # points: another Pillow or a GPU's sums move a few images
_LUCK: Final = 1e-3


@dataclass(frozen=True)
class FileCheck:
    """model.onnx against the net that it was exported from.

    Attributes:
        graph: of the file.
        constants: those that differ, in the order of the graph.
        facts: clauses about preprocessing and classes that differ.
    """

    graph: QdqGraph
    constants: tuple[ConstantChange, ...]
    facts: tuple[str, ...]


def check_file(stored: StoredNet, path: Path) -> FileCheck:
    """Compare what the net would be written as with what the file holds.

    Args:
        stored: the quantized net.
        path: the file that was exported from it.

    Raises:
        InputError: no ONNX file.
    """
    model = load_model(path)
    found = read_graph(model)
    graph, _ = emit_with_modules(stored.net, stored.recipe.target)
    expected = read_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)]))
    facts = stored.facts
    wanted = {"preprocessing": facts.preprocessing.model_dump(mode="json"), "classes": list(facts.classes)}
    return FileCheck(
        found,
        changed_constants(expected, found, modules_of(model)),
        tuple(changed_facts(wanted, metadata_of(model))),
    )


def file_gates(check: FileCheck) -> list[Gate]:
    """Nothing in the file may differ from the net."""
    constants, facts = check.constants, check.facts
    return [
        Gate(
            name="numbers in model.onnx",
            limit=0,
            value=len(constants),
            passed=not constants,
            detail=f"constants that are not the net's: {constants[0]}"
            if constants
            else "constants that are not the net's",
        ),
        Gate(
            name="facts in model.onnx",
            limit=0,
            value=len(facts),
            passed=not facts,
            detail="preprocessing and classes that are not the run's" + (f": {'; '.join(facts)}" if facts else ""),
        ),
    ]


def code_gates(stored: StoredNet, stages: Sequence[Stage]) -> list[Gate]:
    """No bit may differ where every sum is proven exact: in the reference, the oracle, and engines that promise it.

    Args:
        stored: the quantized net.
        stages: of the evaluation.
    """
    if any(node.is_float for node in stored.net.graph) or not all(b.proven for b in certificate(stored.net)):
        return []
    exact = {"reference", "onnxruntime"} | ({"engine"} if stored.recipe.target == "onnxruntime" else set())
    gates = []
    for stage in stages:
        if stage.kind not in exact or stage.skipped is not None:
            continue
        if stage.codes_compared:
            said = f"of {stage.codes_compared:,} integer codes, those that differ from PyTorch quantized"
            gates.append(_nothing(f"codes: {stage.name}", stage.differing_codes, said))
        said = "the largest difference of a logit from PyTorch quantized's"
        gates.append(_nothing(f"logits: {stage.name}", stage.max_logit_difference, said))
    return gates


def _nothing(name: str, value: float | None, detail: str) -> Gate:
    return Gate(name=name, limit=0, value=value, passed=value == 0, detail=detail)


def fall_gate(run: RunFolder, quantized: Stage, max_fall: float | None) -> Gate | None:
    """Top-1 may not lie far under what `quantize` measured: then these images don't fit, or are prepared otherwise.

    Args:
        run: the run.
        quantized: PyTorch quantized.
        max_fall: points of top-1 that are allowed; None allows what luck can explain, and five points at least.

    Returns:
        None where `quantize` left no figure.
    """
    from scipy.stats import binom

    recorded = run.manifest().steps["quantize"].facts.get("top1")
    if not isinstance(recorded, int | float) or quantized.top1 is None:
        return None
    count, limit = quantized.images, max_fall
    if limit is None:
        share = (recorded / 100 * count + 1) / (count + 2)  # never 0 or 1, which luck can't reach
        limit = max(_LEAST_FALL, recorded - 100 * float(binom.ppf(_LUCK, count, share)) / count)
    fall = recorded - quantized.top1
    return Gate(
        name=FALL,
        limit=round(limit, 2),
        value=round(fall, 2),
        passed=fall <= limit + 1e-9,
        detail=f"points of top-1, {recorded:.2f} % on the validation images of quantize minus PyTorch quantized here",
    )
