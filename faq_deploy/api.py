"""The Python API: `prepare`, `calibrate`, train in any loop, `export`, `check`. docs/api.md is its page."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.errors import InputError
from engines.preprocess import Preprocessing
from engines.runner import FloatArray
from faq_deploy.activation_exponents import ActivationRange
from faq_deploy.activation_exponents import calibrate as measure
from faq_deploy.agreement import compare
from faq_deploy.check_result import CheckResult
from faq_deploy.correction import correct, correctable, corrects
from faq_deploy.given import (
    Batch,
    images_of,
    one_input,
    require_batches,
    require_float_model,
    require_image_batch,
    require_one_device,
    require_prepared,
    require_sound,
    require_statistics,
    targets_of,
)
from faq_deploy.given_outputs import outputs_said
from faq_deploy.metric_stages import MetricStages
from faq_deploy.metrics import Metric, given_metric
from faq_deploy.net import QuantizedNet
from faq_deploy.onnx_export import ExportResult, write_onnx
from faq_deploy.place import Target
from faq_deploy.prepared_model import PreparedModel
from faq_deploy.recipe import Recipe, load_recipe, override, resolved
from faq_deploy.rewrite import rewrite
from faq_deploy.tracing import evaluating, structure_of
from faq_deploy.versions import engine_versions

__all__ = ["calibrate", "check", "export", "prepare"]

_SAMPLES = 8  # images that `export` compares where none are given
_CORRECTED_TOGETHER = 16  # images in a batch: what a layer reads and writes should fit the cache


def prepare(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    target: Target | None = None,
    recipe: str | Path | Recipe = "faq-8bit",
    output: str | None = None,
) -> PreparedModel:
    """Put a float model on fixed-point grids: the first call.

    The weights are copied; `model` stays as it is. What comes back computes in float until `calibrate`.

    Args:
        model: a float32 CNN with trained weights, in any mode, on any one device.
        example_inputs: float32 images, shape (N, C, H, W), N at least 1, as the model takes them; or a tuple of one
            such tensor. Only their shape matters, and that they are finite.
        target: `tensorrt`, `onnxruntime` or `paper`: whose grids to train on (docs/targets.md); None takes the
            recipe's, which is `tensorrt` unless it says otherwise.
        recipe: every other choice: a name of `faq-deploy recipes`, a TOML file, or a `Recipe`.
        output: which of several outputs to keep: a key, or a position as text; `*` keeps all. None takes the recipe's
            choice; where that says nothing either, `logits` or `out`, and a warning names what is left out.

    Returns:
        An ordinary module with the model's inputs and outputs, on its device, in its mode. A softmax at the model's
        end is left out: it returns the logits. With `*` it returns what the model does: a dict, a tuple, nested or not.

    Raises:
        InputError: NaN weights or none, batch norms that never saw a batch, a part that isn't supported, a model that
            is prepared already, no such recipe, several outputs of which none is chosen.
    """
    require_float_model(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    require_one_device(model, device)
    require_statistics(model)
    name = type(model).__name__
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if target is not None and target != chosen.target:
        chosen = override(chosen, {"target": target})
    if output is not None:
        chosen = override(chosen, {"layers.output": output})
    chosen = correctable(resolved(chosen, name))
    example = _example(example_inputs)
    source = model if device.type == "cpu" else copy.deepcopy(model).cpu()  # it is traced on the CPU
    net = rewrite(source, example, chosen, outputs_said)
    structure = structure_of(source, example) if chosen.layers.output == "*" else None
    return PreparedModel(net, chosen, name, example, structure).to(device).train(model.training)


def calibrate(
    model: PreparedModel,
    batches: Iterable[Batch],
    *,
    force: bool = False,
    name_of: Callable[[int], str] | None = None,
) -> list[ActivationRange]:
    """Run the float net on a few batches and fix the exponent of every activation: the second call.

    Args:
        model: of `prepare`.
        batches: of training images as the model takes them, float32, shape (N, C, H, W), on the model's device; or
            pairs of images and anything, as a `DataLoader` gives. The first `calibration.batches` of the recipe
            are taken (5, of 64 images say).
        force: once more, with the weights of now.
        name_of: names the image that came as number 0, 1, ..., for errors.

    Returns:
        What was found, one record a quantizer in the order of the graph.

    Raises:
        InputError: calibrated already; no images; a NaN or Inf, with its layer and image; images on another device,
            or of another shape or type. The model is then as it was.
    """
    require_prepared(model)
    if model.is_calibrated and not force:
        raise InputError(
            "the model is calibrated already: new exponents would undo what it was trained for.",
            "train it, or pass force=True to calibrate again with the weights of now.",
        )
    require_batches(batches)
    device = require_sound(model)
    section = model.recipe.calibration
    seen: list[Tensor] = []
    wanted = max(_SAMPLES, section.correction_images if corrects(section) else 0)

    def looked_at() -> Iterable[Tensor]:
        for batch in islice(batches, section.batches):
            images = require_image_batch(images_of(batch), model.samples, device)
            missing = wanted - sum(map(len, seen))
            if missing > 0:
                seen.append(images[:missing].detach().clone())
            if len(images):
                yield images

    with evaluating(model):
        try:
            ranges = measure(model.net, looked_at(), section, model.recipe.target, name_of)
        except BaseException:
            model.mark(calibrated=model.is_calibrated)  # nothing observes any more
            raise
        if corrects(section):
            correct(model.net, torch.split(torch.cat(seen), _CORRECTED_TOGETHER), section)
    if seen:
        model.samples = torch.cat(seen)[:_SAMPLES].cpu()
    model.mark(calibrated=True)
    return ranges


def export(
    model: PreparedModel,
    path: str | Path,
    *,
    images: Tensor | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    packed: bool = False,
) -> ExportResult:
    """Write the QDQ ONNX file, if PyTorch, the integer reference and onnxruntime agree on its codes.

    The model is exported as it would be in eval mode; it stays as it is.

    Args:
        model: calibrated, and trained or not.
        path: of the file; it gets its name after all checks.
        images: float32, shape (N, C, H, W): what the check compares; None takes 8 of those that it was calibrated on.
        classes: names in the order of the logits, for the metadata.
        preprocessing: of every image, for the metadata.
        packed: store 4-bit weights in 4 bits.

    Returns:
        What was written, and what was proved about it.

    Raises:
        InputError: not calibrated, NaN weights, no images, a full disk.
        FaqError: codes differ although every layer is proven exact: a bug in faq-deploy.
    """
    require_prepared(model)
    model.require_calibrated("export it")
    require_sound(model)
    about: dict[str, object] = {"model": model.name}
    if classes is not None:
        about["classes"] = list(classes)
    if preprocessing is not None:
        about["preprocessing"] = preprocessing.model_dump(mode="json")
    compared = model.samples if images is None else require_image_batch(images_of(images), model.samples, None)
    if not len(compared):
        raise InputError("there are no images to compare.", "give at least one, or leave images= out.")
    return write_onnx(
        model.frozen(),
        model.recipe,
        Path(path),
        compared.detach().cpu().contiguous().numpy(),
        about=about,
        versions=engine_versions(),
        packed=packed,
    )


def check(
    model: PreparedModel,
    path: str | Path,
    batches: Iterable[Batch],
    *,
    metric: str | Metric | None = None,
    float_model: nn.Module | None = None,
) -> CheckResult:
    """Compare the model with an exported file: every code and every value of its outputs, in two runtimes.

    Args:
        model: calibrated; run as in eval mode, on the CPU, and left as it is.
        path: of the ONNX file.
        batches: float32 images, shape (N, C, H, W), or pairs of them and anything; all are compared.
        metric: what PyTorch and onnxruntime are judged by too, higher is better: `top-K`, `mean-iou`,
            `path/file.py:NAME`, a function of (outputs, targets), or a class with `update(outputs, targets)` and
            `compute()`. Outputs are a NumPy array, or a dict of arrays where the net has several; targets are the
            second items of the batches.
        float_model: that `prepare` was given: its metric is computed too.

    Returns:
        How many codes and logits differ: 0, if the file was exported from these weights; and the metric of each stage.

    Raises:
        InputError: not calibrated, no images, no such file, or the file of another net; no such metric, or batches
            without targets for it.
    """
    require_prepared(model)
    model.require_calibrated("compare it with a file")
    require_batches(batches)
    require_sound(model)
    net = model.frozen()
    scores = None if metric is None else _stages(model, net, metric, Path(path), float_model)

    def given() -> Iterable[FloatArray]:
        for batch in batches:
            images = require_image_batch(images_of(batch), model.samples, None).detach().cpu().contiguous().numpy()
            if len(images):
                if scores is not None:
                    scores.add(images, targets_of(batch))
                yield images

    try:
        found = compare(net, Path(path), given())
        if not found[0].images:
            raise InputError("there are no images to compare.", "give at least one batch of images.")
        return CheckResult(tuple(found), {} if scores is None else scores.values())
    finally:
        if scores is not None:
            scores.close()


def _stages(
    model: PreparedModel, net: QuantizedNet, metric: str | Metric, path: Path, float_model: nn.Module | None
) -> MetricStages:
    return MetricStages(given_metric(metric), net, path, float_model, model.recipe.layers.output or None)


def _example(example_inputs: object) -> Tensor:
    """Two images on the CPU."""
    example = require_image_batch(one_input(example_inputs), None, None).detach().cpu()
    if not len(example):
        raise InputError("example_inputs has no image.", "give a batch of at least one.")
    return example[:2] if len(example) > 1 else example.expand(2, *example.shape[1:]).contiguous()
