"""Quantized net to QDQ ONNX, checked before the file gets its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import onnx
import torch
from onnx import helper

from engines.errors import FaqError, InputError
from engines.files import atomic_path
from engines.int4 import pack_int4
from engines.lint import lint
from engines.runner import FloatArray
from faq_deploy.agreement import Agreement, compare
from faq_deploy.certificate import LayerBound, certificate, over_the_bound
from faq_deploy.emit import emit_with_modules
from faq_deploy.net import QuantizedNet
from faq_deploy.recipe import Recipe
from faq_deploy.stored_net import StoredNet

__all__ = ["ExportResult", "export_onnx", "write_onnx"]

OPSET: Final = 13
IR_VERSION: Final = 8  # the lowest that opset 13 needs: old runtimes on edge boxes read it (C36)


@dataclass(frozen=True)
class ExportResult:
    """What was written and what was proved about it.

    Attributes:
        path: of the ONNX file.
        bytes: of it.
        agreements: of each runtime with PyTorch.
        bounds: of each layer's sums.
        warnings, notes: sentences for the user.
    """

    path: Path
    bytes: int
    agreements: list[Agreement]
    bounds: list[LayerBound]
    warnings: list[str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line: the file, and what is proven about it."""
        proven = sum(bound.proven for bound in self.bounds)
        return f"{self.path}: {self.bytes / 1e6:.3g} MB, {proven} of {len(self.bounds)} sums proven exact in fp32"


def export_onnx(
    stored: StoredNet,
    path: Path,
    images: FloatArray,
    *,
    versions: dict[str, str],
    checkpoint_sha256: str,
    on_stage: Callable[[str], None] = lambda text: None,
    packed: bool = False,
) -> ExportResult:
    """Write the net of a run; see `write_onnx`.

    Args:
        stored: the net.
        path: the ONNX file; it is renamed into place after all checks.
        images: float32, shape (N, C, H, W), preprocessed; the images of the check.
        versions: of packages, for the metadata.
        checkpoint_sha256: of the file that `stored` was read from.
        on_stage: told what is being done.
        packed: store 4-bit weights in 4 bits.

    Raises:
        InputError: the graph breaks a rule, or the disk is full.
        FaqError: codes differ although every layer is proven exact: a bug in faq-deploy.
    """
    facts = stored.facts
    about = {
        "model": facts.model,
        "preprocessing": facts.preprocessing.model_dump(mode="json"),
        "classes": facts.classes,
        "checkpoint_sha256": checkpoint_sha256,
    }
    return write_onnx(
        stored.net, stored.recipe, path, images, about=about, versions=versions, on_stage=on_stage, packed=packed
    )


def write_onnx(
    net: QuantizedNet,
    recipe: Recipe,
    path: Path,
    images: FloatArray,
    *,
    about: Mapping[str, object],
    versions: dict[str, str],
    on_stage: Callable[[str], None] = lambda text: None,
    packed: bool = False,
) -> ExportResult:
    """Write `path` if PyTorch, the integer reference and onnxruntime agree on its codes.

    Args:
        net: on the CPU, calibrated, in eval mode.
        recipe: of the net.
        path: the ONNX file; it is renamed into place after all checks.
        images: float32, shape (N, C, H, W), preprocessed; the images of the check.
        about: metadata besides what the net and its recipe say, as JSON values by name.
        versions: of packages, for the metadata.
        on_stage: told what is being done.
        packed: store weights whose codes all have 4 bits in 4 bits, for a smaller file; everything that reads it
            here unpacks them. The checks are of this very file.

    Raises:
        InputError: the graph breaks a rule, or the disk is full.
        FaqError: codes differ although every layer is proven exact: a bug in faq-deploy.
    """
    on_stage("writing the graph")
    bounds = certificate(net)
    model = _model(net, recipe, about, versions, bounds)
    notes: list[str] = []
    if packed:
        model, sentence = _packed(model, path)
        notes.append(sentence)
    warnings = _lint(model, recipe.target)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        on_stage(f"comparing {len(images)} images with the reference and onnxruntime")
        agreements = compare(net, temporary, [images])
        warnings += _explain(net, agreements, bounds)
    return ExportResult(path, path.stat().st_size, agreements, bounds, warnings, notes)


def _model(
    net: QuantizedNet,
    recipe: Recipe,
    about: Mapping[str, object],
    versions: dict[str, str],
    bounds: list[LayerBound],
) -> onnx.ModelProto:
    graph, modules = emit_with_modules(net, recipe.target)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="faq-deploy",
        producer_version=versions.get("faq-deploy", ""),
    )
    exponents = {name: int(q.exponent) for name, q in net.quantizers().items()}
    weight_exponents = {name: layer.weight_exponent.tolist() for name, layer in net.weighted().items()}
    entries: dict[str, object] = {
        **about,
        "recipe": recipe.model_dump(mode="json"),
        "target": recipe.target,
        "bits": recipe.bits,
        "modules": modules,
        "exponents": exponents,
        "weight_exponents": weight_exponents,
        "batch_norm": _multipliers(net),
        "certificate": {b.name: b.as_dict() for b in bounds},
        "versions": versions,
    }
    for key, value in sorted(entries.items()):
        entry = model.metadata_props.add()
        entry.key, entry.value = f"faq_deploy.{key}", json.dumps(value, sort_keys=True)
    return _valid(model)


def _valid(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise FaqError(
            f"the exported graph does not pass the ONNX checker: {str(error).splitlines()[0]}.",
            "this is a bug in faq-deploy: please report it with your model.",
        ) from error
    return model


def _packed(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, str]:
    """The model with its 4-bit weights packed, and a sentence about what that saves."""
    made = pack_int4(model)
    if made is model:
        return model, f"{path.name}: no layer has 4-bit weights, so that nothing is packed."
    before, after = model.ByteSize(), made.ByteSize()
    sentence = (
        f"{path.name}: 4-bit weights packed, {after / 1e6:.3g} MB instead of {before / 1e6:.3g} MB "
        f"({before / after:.2f} times smaller)"
    )
    return _valid(made), sentence


def _multipliers(net: QuantizedNet) -> dict[str, dict[str, object]]:
    """Modes `paper` and `fit`: the pure integers k and exponent of each batch norm's a."""
    found: dict[str, dict[str, object]] = {}
    for node in net.graph:
        if node.kind == "batch_norm":
            layer = net.layers[node.name]
            with torch.no_grad():
                a, _ = layer.constants(layer.running_mean, layer.running_var)  # type: ignore[operator]
            exponent = int(layer.multiplier_exponent)  # type: ignore[arg-type]
            found[node.name] = {"exponent": exponent, "k": (a * 2.0**-exponent).round().int().tolist()}
    return found


def _lint(model: onnx.ModelProto, target: str) -> list[str]:
    findings = lint(model, target)
    errors = [f for f in findings if f.level == "error"]
    if errors:
        first = errors[0]
        if first.rule == "bias-grid":  # no exponent holds it: the weight rule had raised them as far as they go
            raise InputError(
                f"layer {first.node} has a bias or weights too large for any grid: {first.message}",
                "the training has diverged: train again at a lower learning rate, from the weights before it.",
            )
        raise FaqError(
            f"the exported graph breaks rule {first.rule} at {first.node}: {first.message}",
            "this is a bug in faq-deploy: please report it with your model.",
        )
    return [f"{f.rule} at {f.node}: {f.message}" for f in findings if f.level == "warning"]


def _explain(net: QuantizedNet, agreements: list[Agreement], bounds: list[LayerBound]) -> list[str]:
    """Sentences about what isn't proven; an error where codes differ without an arithmetic reason."""
    over = [b for b in bounds if not b.proven]
    sentences = []
    if over:
        sentences.append(
            f"{len(over)} of {len(bounds)} sums could in the worst case pass 2^24, where fp32 rounds "
            f"({over_the_bound(bounds)}); they are exact on the images that were compared."
        )
    in_float = sum(node.is_float for node in net.graph if node.kind != "quantize")
    if in_float:
        sentences.append(
            f"parts of the net stay in float, where every runtime rounds in its own way: {_seen(agreements)}."
        )
    for agreement in agreements:
        if agreement.equal or in_float:
            continue
        suspects = _before(net, agreement.first)
        causes = [b for b in over if b.name in suspects] or (over if agreement.first is None else [])
        what = (
            f"{agreement.runtime} differs from PyTorch in {agreement.differing} of {agreement.codes_compared} codes"
            f" (first in {agreement.first or 'the logits'}; largest logit difference {agreement.largest_difference:g})"
        )
        if not causes:
            raise FaqError(
                f"{what}, although every layer there is proven exact.",
                "this is a bug in faq-deploy: please report it with your model.",
            )
        sentences[:1] = [f"{what}: {causes[0].name} sums past 2^24 ({causes[0].ratio:.2f} x), where fp32 rounds."]
    return sentences


def _seen(agreements: list[Agreement]) -> str:
    worst = max(agreements, key=lambda a: a.differing)
    return (
        f"{worst.differing} of {worst.codes_compared} codes and {worst.flips} of {worst.images} predictions differ "
        f"in the {worst.runtime}"
    )


def _before(net: QuantizedNet, name: str | None) -> set[str]:
    """Nodes between quantizer `name` and the quantizers before it."""
    nodes = net.graph.by_name()
    found: set[str] = set()
    open_names = list(nodes[name].inputs) if name in nodes else list(net.graph.outputs)
    while open_names:
        node = nodes[open_names.pop()]
        if node.kind != "quantize":
            found.add(node.name)
            open_names += node.inputs
    return found
