"""The verb `quantize`: load, rewrite, calibrate, fine-tune; leaves a run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from engines.errors import InputError
from engines.files import sha256_of, write_atomic
from engines.image_batches import BadImages, OnBad, batches
from engines.images import ImageSet
from engines.run_folder import RunFolder
from faq_deploy import __version__, checkpoint
from faq_deploy.augment import TrainingData, epoch_order, steps_per_epoch, training_batches
from faq_deploy.calibrate import ActivationRange, calibrate
from faq_deploy.data import Splits, calibration_indices
from faq_deploy.finetune import FinetuneResult, finetune
from faq_deploy.progress import TrainingReporter
from faq_deploy.recipe import Recipe, dump_toml
from faq_deploy.rewrite import rewrite
from faq_deploy.samples import COUNT, save_samples
from faq_deploy.stored_net import NetFacts, StoredNet, load_net, save_net
from faq_deploy.torch_eval import top1_percent
from faq_deploy.versions import torch_versions

__all__ = ["Batches", "QuantizeResult", "begin_run", "calibrate_run", "finetune_run", "prepare_folder"]

@dataclass(frozen=True)
class QuantizeResult:
    """Top-1 in percent along the way, on the validation images."""

    float_top1: float
    calibrated_top1: float
    final_top1: float
    kept: str
    epoch: int
    training: FinetuneResult


@dataclass(frozen=True)
class Batches:
    """Training batches of one recipe, for `finetune`."""

    images: ImageSet
    recipe: Recipe
    augment: str
    workers: int
    on_bad: OnBad
    bad: BadImages

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return steps_per_epoch(len(self.images), self.recipe.training.batch_size)

    def batches(self, epoch: int, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of one epoch, from a step on."""
        seed = self.recipe.training.seed
        data = TrainingData(self.images, self.augment, seed, epoch)  # type: ignore[arg-type]
        order = epoch_order(len(self.images), seed, epoch)
        return training_batches(
            data,
            order,
            self.recipe.training.batch_size,
            start_step=start_step,
            workers=self.workers,
            on_bad=self.on_bad,
            bad=self.bad,
        )


def calibrate_run(
    module: torch.nn.Module,
    splits: Splits,
    recipe: Recipe,
    facts: NetFacts,
    run: RunFolder,
    *,
    data_facts: dict[str, object],
    on_bad: OnBad,
    bad: BadImages,
    on_stage: Callable[[str], None],
) -> tuple[StoredNet, list[str]]:
    """Rewrite and calibrate, and write `float.pt`, `samples.npz`, `recipe.toml`: from here on a run can be resumed.

    Args:
        module: the float model.
        splits: images to calibrate on and to draw samples from.
        recipe: resolved.
        facts: what the run knows of the model; its `ranges` are filled in.
        run: a prepared folder.
        data_facts: how to open the same data again; kept in the manifest.
        on_bad: what to do about an image that can't be read.
        bad: collects skipped images.
        on_stage: told what is being done.

    Returns:
        The calibrated net and warnings.
    """
    section, seed = recipe.calibration, recipe.training.seed
    wanted = section.batches * section.batch_size
    indices = calibration_indices(splits.train.labels, wanted, seed)
    warnings = []
    if len(indices) < wanted:
        possible = -(-len(indices) // section.batch_size)
        warnings.append(
            f"only {len(indices)} training images for calibration: {possible} of {section.batches} batches of "
            f"{section.batch_size}, the last one smaller."
        )
    on_stage("tracing and rewriting the model")
    first = next(batches(splits.train, indices, 2, on_bad=on_bad, bad=bad), None)
    if first is None:
        raise InputError(f"no image of {splits.train.name} can be read.", "give a data folder with images.")
    example = torch.from_numpy(first.images).expand(2, -1, -1, -1).contiguous()
    _require_classes(module, example, facts)
    net = rewrite(module, example, recipe)
    on_stage(f"calibrating on {len(indices)} images")
    source = batches(splits.train, indices, section.batch_size, on_bad=on_bad, bad=bad)
    ranges = calibrate(net, (torch.from_numpy(b.images) for b in source), section, recipe.target)
    warnings += _waste_warnings(ranges, section.waste_warning)
    facts = facts.model_copy(update={"ranges": [r.as_dict() for r in ranges]})
    write_atomic(run / "recipe.toml", dump_toml(recipe))
    samples = calibration_indices(splits.val.labels, COUNT, seed)
    save_samples(run / "samples.npz", splits.val, samples)
    save_net(run / "float.pt", net, recipe, facts)
    run.record(
        "calibrate",
        version=__version__,
        outputs=["float.pt", "samples.npz", "recipe.toml"],
        versions=torch_versions(),
        facts={
            "data": data_facts,
            "calibration_images": [splits.train.identity(int(i)) for i in indices[:8]],
            "warnings": warnings,
        },
        after=["quantize", "export", "build", "eval"],
    )
    return StoredNet(net=net, recipe=recipe, facts=facts), warnings


def finetune_run(
    stored: StoredNet,
    splits: Splits,
    run: RunFolder,
    *,
    device: torch.device,
    workers: int,
    keep: str,
    resume: bool,
    reporter: TrainingReporter,
    on_bad: OnBad,
    bad: BadImages,
    on_stage: Callable[[str], None],
) -> QuantizeResult:
    """Fine-tune a calibrated net and write `quantized.pt`.

    Args:
        stored: as `calibrate_run` left it.
        splits: images to train on and to validate with.
        run: holds `float.pt`.
        device: where to train.
        workers: processes that load images.
        keep: `best` (validation top-1, the earlier of equals) or `last` weights go into `quantized.pt`.
        resume: go on from the run's checkpoint.
        reporter: told about training.
        on_bad: what to do about an image that can't be read.
        bad: collects skipped images.
        on_stage: told what is being done.
    """
    net, recipe = stored.net, stored.recipe

    def validate() -> float:
        return top1_percent(net, splits.val, device=device, on_bad=on_bad, bad=bad)

    augment = splits.augment if recipe.training.augment == "auto" else recipe.training.augment
    source = Batches(splits.train, recipe, augment, workers, on_bad, bad)
    on_stage("measuring the float and the calibrated net")
    net.to(device)
    net.set_mode("float")
    float_top1 = validate()
    net.set_mode("quantize")
    calibrated = validate()
    resumable = resume and checkpoint.has_checkpoint(run)
    result = finetune(
        net,
        train=source,
        val=validate,
        training=recipe.training,
        weight_decay=recipe.training.weight_decay,
        run=run,
        recipe_toml=dump_toml(recipe),
        device=device,
        reporter=reporter,
        before_step=net.refresh,
        resume=resumable,
    )
    if keep == "best":
        net.load_state_dict(result.best_state)
    epoch = result.best_epoch if keep == "best" else result.epochs_done
    final = result.best_top1 if keep == "best" else result.last_top1
    facts = stored.facts.model_copy(update={"epoch": epoch, "kept": keep})
    quantized = run / "quantized.pt"
    if result.nothing_to_do and quantized.is_file():
        kept = load_net(quantized).facts
        if (kept.epoch, kept.kept) == (epoch, keep):
            return QuantizeResult(float_top1, calibrated, final, keep, epoch, result)
    save_net(quantized, net.cpu(), recipe, facts)
    write_atomic(run / "recipe.toml", dump_toml(recipe))
    outputs = ["quantized.pt", *[name for name in ("metrics.jsonl",) if (run / name).is_file()]]
    run.record(
        "quantize",
        version=__version__,
        inputs=["float.pt"],
        outputs=outputs,
        versions=torch_versions(),
        facts={
            "float_top1": float_top1,
            "calibrated_top1": calibrated,
            "top1": final,
            "kept": keep,
            "epoch": epoch,
            "epochs": result.epochs_done,
            "steps": result.steps,
            "seconds": round(result.seconds, 3),
        },
        after=["export", "build", "eval"],
    )
    return QuantizeResult(float_top1, calibrated, final, keep, epoch, result)


def begin_run(run: RunFolder) -> tuple[StoredNet, dict[str, object]]:
    """A calibrated run to go on with, and how its data was opened.

    Raises:
        InputError: the folder holds no calibrated run, or its files were changed.
    """
    stored = load_net(run.require("calibrate", "float.pt"))
    facts = run.manifest().steps["calibrate"].facts["data"]
    assert isinstance(facts, dict)
    return stored, facts


def _require_classes(module: torch.nn.Module, example: Tensor, facts: NetFacts) -> None:
    with torch.inference_mode():
        try:
            logits = module.eval()(example)
        except RuntimeError as error:
            raise InputError(
                f"{facts.model} can't take images of shape {tuple(example.shape[1:])}: {str(error).splitlines()[0]}.",
                "set the size with --resize and --crop, and --color L for a net that takes grey images.",
            ) from error
    found = logits.shape[-1] if isinstance(logits, Tensor) else None
    if found is not None and found != len(facts.classes):
        raise InputError(
            f"{facts.model} has {found} classes but the data has {len(facts.classes)}.",
            "pass --num-classes, weights with that head, or another data folder.",
        )


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
