"""The second half of `quantize`: a calibrated run is fine-tuned and its weights are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engines.files import sha256_of, write_atomic
from engines.image_batches import BadImages, OnBad
from engines.images import ImageSet
from engines.run_folder import RunFolder
from faq_deploy import __version__, checkpoint
from faq_deploy.augment import TrainingData, batch_sizes, epoch_order, require_shares, training_batches
from faq_deploy.batch_statistics import synchronize
from faq_deploy.calibrated_run import Calibrated, interrupted, is_random
from faq_deploy.data import Splits
from faq_deploy.fast_path import why_not
from faq_deploy.finetune import FinetuneResult, Interrupted, finetune
from faq_deploy.net import QuantizedNet
from faq_deploy.pixel_cache import keeps_pixels
from faq_deploy.progress import TrainingReporter
from faq_deploy.ranks import Ranks
from faq_deploy.recipe import Recipe, dump_toml
from faq_deploy.stored_net import StoredNet, load_net, save_net
from faq_deploy.torch_eval import top1_percent
from faq_deploy.versions import torch_versions

__all__ = ["Batches", "QuantizeResult", "finetune_run", "float_teacher"]


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
    """Training batches of one recipe, for `finetune`: of each, the part of this process."""

    images: ImageSet
    recipe: Recipe
    augment: str
    workers: int
    on_bad: OnBad
    bad: BadImages
    ranks: Ranks

    def __post_init__(self) -> None:
        if self.ranks.count > 1 and self.recipe.training.epochs > 0:
            require_shares(len(self.images), self.recipe.training.batch_size, self.ranks.count)

    @cached_property
    def _sizes(self) -> list[int]:
        return batch_sizes(len(self.images), self.recipe.training.batch_size)

    @property
    def useful_workers(self) -> int:
        """Processes that load: none where they would only take time from a CPU that trains, since pixels are kept."""
        kept = keeps_pixels(self.images) and self.augment != "imagenet"
        return 0 if kept and self.ranks.device.type == "cpu" else self.workers

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before training, a sentence each."""
        if self.useful_workers == self.workers:
            return ()
        return ("No loading processes are started: the images are kept decoded, and the CPU has the training to do.",)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return len(self._sizes)

    def images_in(self, step: int) -> int:
        """Images in a step's batch, of all processes together."""
        return self._sizes[step]

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
            workers=self.useful_workers,
            rank=self.ranks.rank,
            ranks=self.ranks.count,
            on_bad=self.on_bad,
            bad=self.bad,
        )


def _slower(device: torch.device) -> list[str]:
    """A sentence where a CPU trains without the compiled passes."""
    reason = why_not() if device.type == "cpu" else ""
    return [f"Steps take a few percent longer than they could, with the same results: {reason}."] if reason else []


def finetune_run(
    calibrated: Calibrated,
    splits: Splits,
    run: RunFolder,
    *,
    ranks: Ranks,
    workers: int,
    keep: str,
    resume: bool,
    changed: bool,
    reporter: TrainingReporter,
    on_bad: OnBad,
    bad: BadImages,
    on_stage: Callable[[str], None],
) -> QuantizeResult:
    """Fine-tune a calibrated net and write `quantized.pt`.

    Args:
        calibrated: as `calibrate_run` left it.
        splits: images to train on and to validate with.
        run: holds `float.pt`.
        ranks: the processes that train; the first one writes.
        workers: processes that load images, for each rank.
        keep: `best` (validation top-1, calibration alone included) or `last` weights go into `quantized.pt`.
        resume: go on from the run's checkpoint.
        changed: even if its recipe was another one.
        reporter: told about training.
        on_bad: what to do about an image that can't be read.
        bad: collects skipped images.
        on_stage: told what is being done.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    net, recipe = calibrated.stored.net, calibrated.stored.recipe
    trains = recipe.training.epochs > 0
    if recipe.training.sync_batch_norm and ranks.count > 1:
        synchronize(net)

    def validate() -> float:
        if not trains:
            return calibrated.top1
        return top1_percent(net, splits.val, device=ranks.device, on_bad=on_bad, bad=bad, ranks=ranks)

    augment = splits.augment if recipe.training.augment == "auto" else recipe.training.augment
    train = Batches(splits.train, recipe, augment, workers, on_bad, bad, ranks)
    try:
        if trains:
            count = len(splits.train)
            on_stage(f"fine-tuning on {count} image{'s' if count != 1 else ''}")
            for note in (*train.notes, *_slower(ranks.device)):
                reporter.note(note)
        result = finetune(
            net,
            train=train,
            val=validate,
            training=recipe.training,
            weight_decay=recipe.training.weight_decay,
            run=run,
            recipe_toml=dump_toml(recipe),
            device=ranks.device,
            ranks=ranks,
            reporter=reporter,
            before_step=net.before_step,
            teacher=float_teacher(run, ranks.device) if trains and recipe.training.distill > 0 else None,
            start_top1=calibrated.top1,
            resume=resume and checkpoint.has_checkpoint(run),
            changed=changed,
            pretrained=not is_random(calibrated.stored.facts),
        )
        if keep == "best":
            net.load_state_dict(result.best_state)
        epoch = result.best_epoch if keep == "best" else result.epochs_done
        final = result.best_top1 if keep == "best" else result.last_top1
        done = QuantizeResult(calibrated.float_top1, calibrated.top1, final, keep, epoch, result)
        ranks.first_does(lambda: _write_result(calibrated.stored, done, run, reporter, resume=resume))
    except Interrupted as error:
        raise interrupted(run, error.what) from None
    except KeyboardInterrupt:
        raise interrupted(run) from None
    return done


def float_teacher(run: RunFolder, device: torch.device) -> QuantizedNet:
    """The run's own float net on a device, for distillation.

    Raises:
        InputError: its file is missing or was changed.
    """
    teacher = load_net(run.require("calibrate", "float.pt")).net
    teacher.to(device).set_mode("float")
    return teacher.eval().requires_grad_(False)


def _write_result(
    stored: StoredNet, done: QuantizeResult, run: RunFolder, reporter: TrainingReporter, *, resume: bool
) -> None:
    if not resume or not _is_written(run, done):
        _write_quantized(stored, done, run)
    elif stored.recipe.training.epochs == 0:
        reporter.note(f"nothing to do: {run.path} is calibrated, and no epochs are asked for")


def _is_written(run: RunFolder, done: QuantizeResult) -> bool:
    """Whether `quantized.pt` holds the wanted weights already."""
    step, file = run.manifest().steps.get("quantize"), run / "quantized.pt"
    if step is None or not file.is_file() or sha256_of(file) != step.outputs.get("quantized.pt"):
        return False
    found = [step.facts.get(key) for key in ("kept", "epoch", "epochs")]
    return found == [done.kept, done.epoch, done.training.epochs_done]


def _write_quantized(stored: StoredNet, done: QuantizeResult, run: RunFolder) -> None:
    facts = stored.facts.model_copy(update={"epoch": done.epoch, "kept": done.kept})
    save_net(run / "quantized.pt", stored.net.cpu(), stored.recipe, facts)
    write_atomic(run / "recipe.toml", dump_toml(stored.recipe))
    run.record(
        "quantize",
        version=__version__,
        inputs=["float.pt", *[name for name in ("corrected.pt",) if (run / name).is_file()]],
        outputs=["quantized.pt", *[name for name in ("metrics.jsonl",) if (run / name).is_file()]],
        versions=torch_versions(),
        facts={
            "float_top1": done.float_top1,
            "calibrated_top1": done.calibrated_top1,
            "top1": done.final_top1,
            "kept": done.kept,
            "epoch": done.epoch,
            "epochs": done.training.epochs_done,
            "steps": done.training.steps,
            "seconds": round(done.training.seconds, 3),
        },
        after=["export", "build", "eval", "analyze/similarity", "analyze/exponents"],
    )
