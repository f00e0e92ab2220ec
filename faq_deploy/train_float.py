"""The verb `train`: a float network for data that has no pretrained one."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

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
from faq_deploy.progress import TrainingReporter
from faq_deploy.quantize import Batches
from faq_deploy.recipe import Recipe, dump_toml, parse_recipe
from faq_deploy.resumed import Begun, continued_recipe
from faq_deploy.run_data import DataFacts, preprocessing_in_words, reopen_data
from faq_deploy.torch_eval import top1_percent
from faq_deploy.torch_file import write_torch_file
from faq_deploy.verbs import Say
from faq_deploy.versions import torch_versions

__all__ = ["train_verb"]

_DEFAULT_RECIPE = "float"


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


def train_verb(options: QuantizeOptions, reporter: TrainingReporter, say: Say) -> tuple[FinetuneResult, Path]:
    """Train a float network and write `OUTPUT/float.pth`, a plain state dict; see `faq-deploy train --help`.

    Raises:
        InputError: bad input of any kind, one sentence.
        Interrupted: Ctrl-C or SIGTERM; the training can be resumed.
    """
    folder = RunFolder(options.output) if options.resume else check_output(options.output, force=options.force)
    device, bad = pick_device(options.device), BadImages()
    opened = _open_again(folder, options, reporter.note) if options.resume else _open_new(options, reporter.note)
    loaded, splits, recipe, start = opened
    augment = splits.augment if recipe.training.augment == "auto" else recipe.training.augment
    example = example_of(splits.train, on_bad=options.data.on_bad, bad=bad)
    require_fit(loaded.module, example, start.model, len(splits.train.classes))
    size = recipe.training.batch_size
    require_trainable(loaded.module, example, start.model, min(2, size, len(splits.train)))
    net = loaded.module.to(device)
    if not options.resume:
        remove_leftovers(folder)
        clear_output(folder, also=["float.pth"])
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.record("begin", version=__version__, facts=start.model_dump(mode="json"))
    count = len(splits.train)
    say(f"training {loaded.name} on {count} image{'s' if count != 1 else ''}")
    try:
        result = finetune(
            net,
            train=Batches(splits.train, recipe, augment, options.workers, options.data.on_bad, bad),
            val=lambda: top1_percent(net, splits.val, device=device, on_bad=options.data.on_bad, bad=bad),
            training=recipe.training,
            weight_decay=recipe.training.weight_decay,
            run=folder,
            recipe_toml=dump_toml(recipe),
            device=device,
            reporter=reporter,
            resume=options.resume,
        )
    except Interrupted as error:
        remedy = f"continue with `faq-deploy train --resume -o {shlex.quote(str(folder.path))}`."
        raise Interrupted(error.what, remedy) from None
    path = folder / "float.pth"
    with atomic_path(path) as temporary:
        write_torch_file(temporary, result.best_state)
    folder.record(
        "train",
        version=__version__,
        outputs=["float.pth", "metrics.jsonl"] if (folder / "metrics.jsonl").is_file() else ["float.pth"],
        versions=torch_versions(),
        facts={
            "model": loaded.name,
            "data": start.data.model_dump(),
            "preprocessing": start.preprocessing.model_dump(mode="json"),
            "top1": result.best_top1,
            "epoch": result.best_epoch,
        },
    )
    return result, path


def _open_new(options: QuantizeOptions, note: Note) -> tuple[LoadedModel, Splits, Recipe, _Start]:
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
    return loaded, splits, recipe, start


def _open_again(folder: RunFolder, options: QuantizeOptions, note: Note) -> tuple[LoadedModel, Splits, Recipe, _Start]:
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
    recipe = continued_recipe(begun, options)
    seed = recipe.training.seed
    loaded = load_model(start.model, start.weights, num_classes=start.num_classes, prefer_ema=start.ema, seed=seed)
    if start.weights == RANDOM and start.num_classes is None and loaded.takes_num_classes:
        loaded = load_model(start.model, RANDOM, num_classes=len(start.classes), seed=seed)
    note(f"preprocessing: {preprocessing_in_words(start.preprocessing)}")
    return loaded, reopen_data(start.data, start.preprocessing, start.classes, options.data.data), recipe, start
