"""A run that is calibrated: the float model rewritten, its exponents fixed, and all of it on disk to go on from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import torch

from engines.errors import InputError
from engines.files import atomic_path
from engines.image_batches import BadImages, Batch, OnBad, batches
from engines.images import ImageSet
from engines.run_folder import RunFolder
from faq_deploy import __version__, checkpoint
from faq_deploy.activation_exponents import ActivationRange, calibrate
from faq_deploy.api import prepare
from faq_deploy.correction import correct, correctable, corrects
from faq_deploy.data import Splits, calibration_indices
from faq_deploy.interrupt import Interrupted, StopSignals
from faq_deploy.layers import Mode
from faq_deploy.model_fit import example_of, require_batches, require_fit
from faq_deploy.net import QuantizedNet
from faq_deploy.output_folder import clear_output, remove_leftovers
from faq_deploy.predictions import images_sha256
from faq_deploy.recipe import Recipe, dump_toml, parse_recipe
from faq_deploy.run_data import DataFacts
from faq_deploy.samples import COUNT, write_samples
from faq_deploy.stored_net import NetFacts, StoredNet, load_net, write_net
from faq_deploy.torch_eval import top1_percent
from faq_deploy.versions import torch_versions

__all__ = ["Calibrated", "begin_run", "calibrate_run", "interrupted", "is_random"]

_CORRECTED: Final = "corrected.pt"
_CORRECTED_TOGETHER: Final = 16  # images in a batch: what a layer reads and writes should fit the cache


@dataclass(frozen=True)
class Calibrated:
    """A run that has its exponents and can be fine-tuned.

    Attributes:
        stored: the calibrated net.
        float_top1: in percent, on the validation images.
        top1: the same, quantized.
        warnings: for the user.
    """

    stored: StoredNet
    float_top1: float
    top1: float
    warnings: list[str]


def calibrate_run(
    module: torch.nn.Module,
    splits: Splits,
    recipe: Recipe,
    facts: NetFacts,
    run: RunFolder,
    *,
    data: DataFacts,
    device: torch.device,
    on_bad: OnBad,
    bad: BadImages,
    on_stage: Callable[[str], None],
) -> Calibrated:
    """Rewrite and calibrate, and write `float.pt`, `samples.npz`, `recipe.toml`: from here on a run can be resumed.

    Where the recipe corrects weights or biases, `float.pt` keeps the float net's, and `corrected.pt` has the others.
    An earlier run in the folder is removed only then.

    Args:
        module: the float model.
        splits: images to calibrate on and to draw samples from.
        recipe: resolved.
        facts: what the run knows of the model; its `ranges` are filled in.
        run: a folder that `check_output` allowed.
        data: how to open the same data again; kept in the manifest.
        device: where to validate.
        on_bad: what to do about an image that can't be read.
        bad: collects skipped images.
        on_stage: told what is being done.

    Raises:
        InputError: images and model don't fit together, or the model has parts that can't be quantized.
        Interrupted: a signal came while the files were written; they are complete.
    """
    recipe = correctable(recipe)
    section, seed = recipe.calibration, recipe.training.seed
    wanted = section.batches * section.batch_size
    indices = calibration_indices(splits.train.labels, wanted, seed)
    images = f"{len(indices)} training image{'s' if len(indices) != 1 else ''}"
    warnings = []
    looks = section.method != "fixed"
    if looks and len(indices) < wanted:
        warnings.append(
            f"only {images} to calibrate on, fewer than {section.batches} batches of "
            f"{section.batch_size}: all are taken."
        )
    on_stage("tracing and rewriting the model")
    example = example_of(splits.train, on_bad=on_bad, bad=bad)
    kept = require_fit(module, example, facts.model, len(facts.classes), recipe.layers.output)
    if kept is not None:
        warnings.append(f"{kept.sentence}.")
    if recipe.training.epochs:
        require_batches(module, example, facts.model, min(recipe.training.batch_size, len(splits.train)))
    net = prepare(module, example, recipe=recipe, output=None if kept is None else kept.label).net
    if looks:
        on_stage(f"calibrating on {images}")
    seen: list[str] = []
    source = batches(splits.train, indices, section.batch_size, on_bad=on_bad, bad=bad)
    ranges = calibrate(net, _named(source, splits.train, seen), section, recipe.target, seen.__getitem__)
    warnings += _waste_warnings(ranges, section.waste_warning) if looks else []
    floating = copy.deepcopy(net) if corrects(section) else net
    if corrects(section):
        few = indices[: section.correction_images]
        on_stage(f"correcting weights and biases on {len(few)} training images")
        source = batches(splits.train, few, _CORRECTED_TOGETHER, on_bad=on_bad, bad=bad)
        correct(net, (torch.from_numpy(b.images) for b in source), section)
    on_stage("measuring the float and the calibrated net")
    float_top1 = _top1(floating, "float", splits, device, on_bad, bad)
    top1 = _top1(net, "quantize", splits, device, on_bad, bad)
    if looks and not is_random(facts):
        warnings += _chance_warnings(float_top1, len(facts.classes))
    stored = StoredNet(
        net=net.cpu(), recipe=recipe, facts=facts.model_copy(update={"ranges": [r.as_dict() for r in ranges]})
    )
    calibrated = Calibrated(stored, float_top1, top1, warnings)
    with StopSignals() as signals:
        _write_calibrated(calibrated, floating.cpu(), splits, run, data)
    if signals.requested:
        raise interrupted(run)
    return calibrated


def _top1(net: QuantizedNet, mode: Mode, splits: Splits, device: torch.device, on_bad: OnBad, bad: BadImages) -> float:
    """In percent, on the validation images."""
    net.to(device).set_mode(mode)
    return top1_percent(net, splits.val, device=device, on_bad=on_bad, bad=bad)


def begin_run(run: RunFolder) -> Calibrated:
    """A calibrated run to go on with, under the recipe that its training has reached.

    Raises:
        InputError: the folder holds no calibrated run, or its files were changed.
    """
    stored = load_net(run.require("calibrate", "float.pt"))
    if corrects(stored.recipe.calibration):
        stored = load_net(run.require("calibrate", _CORRECTED))
    if checkpoint.has_checkpoint(run):  # it may have been asked for more epochs since
        recipe = parse_recipe(checkpoint.load_state(run).recipe_toml, f"The recipe in {run / checkpoint.CHECKPOINT}")
        stored = stored.model_copy(update={"recipe": recipe})
    facts = run.manifest().steps["calibrate"].facts
    float_top1, top1 = facts.get("float_top1"), facts.get("top1")
    if not isinstance(float_top1, float) or not isinstance(top1, float):
        raise InputError(
            f"{run / 'manifest.json'} is damaged: it doesn't say how good the calibrated net is.",
            "make the run again with `faq-deploy quantize --force`.",
        )
    return Calibrated(stored, float_top1, top1, [])


def is_random(facts: NetFacts) -> bool:
    """Whether the run starts from random weights: then guessing is all that its float net can do."""
    return facts.weights.startswith("random weights")


def interrupted(run: RunFolder, what: str = "") -> Interrupted:
    """The error for Ctrl-C while a run is made that can be resumed."""
    return Interrupted(
        what or f"Stopped; {run.path} is not finished.",
        f"continue with `faq-deploy quantize --resume -o {run.path}`.",
    )


def _write_calibrated(
    calibrated: Calibrated, floating: QuantizedNet, splits: Splits, run: RunFolder, data: DataFacts
) -> None:
    stored, seed = calibrated.stored, calibrated.stored.recipe.training.seed
    remove_leftovers(run)
    with ExitStack() as files:  # all are written before one gets its name: a full disk leaves an earlier run as it was
        files.enter_context(atomic_path(run / "recipe.toml")).write_text(dump_toml(stored.recipe), "utf-8")
        samples = files.enter_context(atomic_path(run / "samples.npz"))
        write_samples(samples, splits.val, calibration_indices(splits.val.labels, COUNT, seed))
        write_net(files.enter_context(atomic_path(run / "float.pt")), floating, stored.recipe, stored.facts)
        if floating is not stored.net:
            write_net(files.enter_context(atomic_path(run / _CORRECTED)), stored.net, stored.recipe, stored.facts)
        clear_output(run)
    try:
        _record_calibrated(calibrated, splits, run, data)
    except InputError:  # a full disk again: without a manifest this is no run, and would only be in the way
        clear_output(run)
        raise


def _record_calibrated(calibrated: Calibrated, splits: Splits, run: RunFolder, data: DataFacts) -> None:
    recipe = calibrated.stored.recipe
    section, seed = recipe.calibration, recipe.training.seed
    calibration = calibration_indices(splits.train.labels, section.batches * section.batch_size, seed)
    run.record(
        "calibrate",
        version=__version__,
        outputs=["float.pt", "samples.npz", "recipe.toml", *([_CORRECTED] if corrects(section) else [])],
        versions=torch_versions(),
        facts={
            "data": data.model_dump(),
            "calibration_images": [splits.train.identity(int(i)) for i in calibration[:8]],
            "calibration_images_sha256": images_sha256(
                [splits.train.identity(int(i)) for i in calibration], splits.train.labels[calibration]
            ),
            "float_top1": calibrated.float_top1,
            "top1": calibrated.top1,
            "warnings": calibrated.warnings,
        },
        after=["quantize", "export", "build", "eval", "analyze"],
    )


def _named(source: Iterable[Batch], images: ImageSet, seen: list[str]) -> Iterator[torch.Tensor]:
    """The batches as tensors; the names of their images are added to `seen`."""
    for batch in source:
        seen += [images.identity(int(index)) for index in batch.indices]
        yield torch.from_numpy(batch.images)


def _chance_warnings(float_top1: float, classes: int) -> list[str]:
    if classes == 1 or float_top1 > 1.2 * 100 / classes:
        return []
    return [
        f"the float net is right on {float_top1:.2f} % of the validation images, about what guessing gives: check "
        "its weights, and that images are prepared as it was trained (--resize, --crop, --mean, --std)."
    ]


def _waste_warnings(ranges: list[ActivationRange], limit: float) -> list[str]:
    wasteful = [r for r in ranges if r.waste > limit]
    dead = [r.name for r in ranges if r.y == 0]
    sentences = []
    if wasteful:
        worst = max(wasteful, key=lambda r: r.waste)
        sentences.append(
            f"{len(wasteful)} of {len(ranges)} activations lose more than {limit:.0%} of their range to rounding up to "
            f"a power of two (most: {worst.name}, {worst.waste:.0%} of {worst.ymax:g})."
        )
    if dead:
        sentences.append(f"{len(dead)} activations were always 0 in calibration: {', '.join(dead[:3])}.")
    return sentences
