"""The verb `train`: a float network for data that has no pretrained one."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from engines.errors import InputError
from engines.files import atomic_path
from engines.image_batches import BadImages
from engines.preprocess import Preprocessing
from engines.run_folder import RunFolder
from faq_deploy import __version__, checkpoint
from faq_deploy.architecture import RANDOM
from faq_deploy.data import Splits
from faq_deploy.finetune import FinetuneResult, Interrupted, finetune
from faq_deploy.model_fit import example_of, require_fit, require_trainable
from faq_deploy.models import LoadedModel, load_model
from faq_deploy.new_run import Note, QuantizeOptions, open_training, pick_device
from faq_deploy.output_folder import check_output, clear_output, remove_leftovers
from faq_deploy.output_lock import output_of
from faq_deploy.progress import TrainingReporter
from faq_deploy.quantize import Batches
from faq_deploy.ranks import Ranks, open_ranks
from faq_deploy.recipe import Recipe, dump_toml, parse_recipe
from faq_deploy.resumed import Begun, continued_recipe
from faq_deploy.run_data import DataFacts, preprocessing_in_words, reopen_data
from faq_deploy.torch_eval import top1_percent
from faq_deploy.torch_file import write_torch_file
from faq_deploy.verbs import Say, heard
from faq_deploy.versions import torch_versions

__all__ = ["train_verb"]

_DEFAULT_RECIPE: Final = "float"
_WEIGHTS: Final = "float.pth"


class _Start(BaseModel):
    """What the manifest says of a training that was begun, enough to open model and images again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verb: str = "train"
    model: str
    weights: str
    weights_sha256: str | None
    num_classes: int | None
    ema: bool
    classes: tuple[str, ...]
    data: DataFacts
    preprocessing: Preprocessing
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Opened:
    """A training before its first step; `changes` are what --force changed in its recipe."""

    folder: RunFolder
    loaded: LoadedModel
    splits: Splits
    recipe: Recipe
    start: _Start
    changes: list[str]


def train_verb(options: QuantizeOptions, reporter: TrainingReporter, say: Say) -> tuple[FinetuneResult, Path]:
    """Train a float network and write `OUTPUT/float.pth`, a plain state dict; see `faq-deploy train --help`.

    Raises:
        InputError: bad input of any kind, one sentence.
        Interrupted: Ctrl-C or SIGTERM; the training can be resumed.
    """
    with open_ranks(pick_device(options.device)) as ranks, output_of(options, ranks, "train"):
        return _train(options, ranks, *heard(ranks, reporter, say))


def _train(options: QuantizeOptions, ranks: Ranks, reporter: TrainingReporter, say: Say) -> tuple[FinetuneResult, Path]:
    bad = BadImages()
    opened = ranks.first_then_all(lambda: _opened(options, ranks, reporter.note, bad))
    folder, splits, recipe = opened.folder, opened.splits, opened.recipe
    augment = splits.augment if recipe.training.augment == "auto" else recipe.training.augment
    train = Batches(splits.train, recipe, augment, options.workers, options.data.on_bad, bad, ranks)
    net = opened.loaded.module.to(ranks.device)
    if recipe.training.sync_batch_norm and ranks.count > 1:
        net = _synchronized(net, ranks.device)
    ranks.first_does(lambda: _begin(folder, opened, resume=options.resume))
    count = len(splits.train)
    say(f"training {opened.loaded.name} on {count} image{'s' if count != 1 else ''}")
    for note in train.notes:
        reporter.note(note)
    try:
        result = finetune(
            net,
            train=train,
            val=lambda: top1_percent(
                net, splits.val, device=ranks.device, on_bad=options.data.on_bad, bad=bad, ranks=ranks
            ),
            training=recipe.training,
            weight_decay=recipe.training.weight_decay,
            run=folder,
            recipe_toml=dump_toml(recipe),
            device=ranks.device,
            ranks=ranks,
            reporter=reporter,
            resume=options.resume,
            changed=bool(opened.changes),
        )
    except Interrupted as error:
        remedy = f"continue with `faq-deploy train --resume -o {shlex.quote(str(folder.path))}`."
        raise Interrupted(error.what, remedy) from None
    ranks.first_does(lambda: _write(folder, opened, result))
    return result, folder / _WEIGHTS


def _opened(options: QuantizeOptions, ranks: Ranks, note: Note, bad: BadImages) -> _Opened:
    """What a training needs, once model, images and folder are found to fit; nothing is written."""
    folder = RunFolder(options.output) if options.resume else check_output(options.output, force=options.force)
    opened = _open_again(folder, options, note) if options.resume else _open_new(folder, options, note)
    module, model, splits = opened.loaded.module, opened.start.model, opened.splits
    if opened.recipe.training.distill > 0:
        raise InputError(
            "training.distill needs a float net to learn from, and `train` makes one.",
            "leave it out here, and pass --distill to `faq-deploy quantize`.",
        )
    example = example_of(splits.train, on_bad=options.data.on_bad, bad=bad)
    require_fit(module, example, model, len(splits.train.classes))
    size = opened.recipe.training.batch_size // ranks.count
    require_trainable(module, example, model, min(2, max(size, 1), len(splits.train)))
    return opened


def _synchronized(net: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    if device.type != "cuda":
        raise InputError(
            "training.sync_batch_norm of a float net needs GPUs: torch's synchronized batch norm has no CPU kernels.",
            "leave it out to train float nets on CPUs.",
        )
    synchronized: torch.nn.Module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    return synchronized


def _begin(folder: RunFolder, opened: _Opened, *, resume: bool) -> None:
    facts: dict[str, object] = opened.start.model_dump(mode="json")
    if not resume:
        remove_leftovers(folder)
        clear_output(folder, also=[_WEIGHTS])
        folder.path.mkdir(parents=True, exist_ok=True)
    elif not opened.changes:
        return
    folder.record("begin", version=__version__, facts=facts)


def _write(folder: RunFolder, opened: _Opened, result: FinetuneResult) -> None:
    with atomic_path(folder / _WEIGHTS) as temporary:
        write_torch_file(temporary, result.best_state)
    folder.record(
        "train",
        version=__version__,
        outputs=[_WEIGHTS, "metrics.jsonl"] if (folder / "metrics.jsonl").is_file() else [_WEIGHTS],
        versions=torch_versions(),
        facts={
            "model": opened.loaded.name,
            "data": opened.start.data.model_dump(),
            "preprocessing": opened.start.preprocessing.model_dump(mode="json"),
            "top1": result.best_top1,
            "epoch": result.best_epoch,
        },
    )


def _open_new(folder: RunFolder, options: QuantizeOptions, note: Note) -> _Opened:
    wanted = dataclasses.replace(options, weights=options.weights or RANDOM, recipe=options.recipe or _DEFAULT_RECIPE)
    loaded, splits, recipe, data = open_training(wanted, note)
    weights = str(wanted.weights)
    start = _Start(
        model=str(options.model),
        weights=str(Path(weights).expanduser().resolve()) if loaded.weights_sha256 is not None else weights,
        weights_sha256=loaded.weights_sha256,
        num_classes=options.num_classes,
        ema=options.prefer_ema,
        classes=splits.train.classes,
        data=data,
        preprocessing=splits.train.preprocessing,
    )
    return _Opened(folder, loaded, splits, recipe, start, [])


def _open_again(folder: RunFolder, options: QuantizeOptions, note: Note) -> _Opened:
    """Model, images and recipe of a training that was begun, once the command line asks for no other."""
    step = folder.manifest().steps.get("begin")
    try:
        start = _Start.model_validate(step.facts if step is not None else {})
    except ValidationError as error:
        raise InputError(
            f"{folder.path} holds no float training that can be resumed.",
            "`train --resume` goes on with what `faq-deploy train` began; `quantize --resume` with quantized runs.",
        ) from error
    toml = checkpoint.load_state(folder).recipe_toml
    reached = parse_recipe(toml, f"The recipe in {folder / checkpoint.CHECKPOINT}")
    begun = Begun(start.model, reached, start.weights_sha256, len(start.classes), start.data, start.preprocessing)
    recipe, changes = continued_recipe(begun, options)
    start = start.model_copy(update={"changes": (*start.changes, *changes)})
    seed = recipe.training.seed
    loaded = load_model(start.model, start.weights, num_classes=start.num_classes, prefer_ema=start.ema, seed=seed)
    if start.weights == RANDOM and start.num_classes is None and loaded.takes_num_classes:
        loaded = load_model(start.model, RANDOM, num_classes=len(start.classes), seed=seed)
    note(f"preprocessing: {preprocessing_in_words(start.preprocessing)}")
    splits = reopen_data(start.data, start.preprocessing, start.classes, options.data.data)
    return _Opened(folder, loaded, splits, recipe, start, changes)
