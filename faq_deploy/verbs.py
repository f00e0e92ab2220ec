"""The verbs that need torch, each one function from options to a result; `cli.py` only parses and prints."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engines.errors import CannotRunHere, InputError
from engines.files import sha256_of
from engines.image_batches import BadImages
from engines.run_folder import RunFolder
from faq_deploy import __version__
from faq_deploy.calibrated_run import Calibrated, begin_run, calibrate_run
from faq_deploy.checkpoint import recipe_differences
from faq_deploy.data import Splits, default_preprocessing, open_data
from faq_deploy.evaluate import EvalOptions, evaluate, load_run
from faq_deploy.export import ExportResult, export_onnx
from faq_deploy.models import LoadedModel, load_model
from faq_deploy.output_folder import check_output, remove_leftovers
from faq_deploy.progress import TrainingReporter
from faq_deploy.quantize import QuantizeResult, finetune_run
from faq_deploy.recipe import Recipe, dump_toml, load_recipe, override, resolved
from faq_deploy.report import write_html, write_json
from faq_deploy.report_model import Report
from faq_deploy.run_data import (
    DataFacts,
    DataOptions,
    data_facts,
    data_of_run,
    preprocessing_for,
    reopen_data,
    reopen_validation,
)
from faq_deploy.samples import load_samples
from faq_deploy.stored_net import NetFacts, load_net
from faq_deploy.versions import engine_versions

__all__ = ["QuantizeOptions", "evaluate_verb", "export_verb", "open_training", "quantize_verb"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class QuantizeOptions:
    """What the command line of `quantize` (and `train`) says."""

    model: str | None
    output: Path
    data: DataOptions
    weights: str | None = None
    num_classes: int | None = None
    prefer_ema: bool = False
    recipe: str | None = None
    bits: int | None = None
    assignments: Sequence[str] = ()
    overrides: dict[str, object] = dataclasses.field(default_factory=dict)
    device: str = "auto"
    workers: int = 0
    keep: str = "best"
    resume: bool = False
    force: bool = False


def quantize_verb(options: QuantizeOptions, reporter: TrainingReporter, say: Say) -> tuple[QuantizeResult, list[str]]:
    """Calibrate and fine-tune; see `faq-deploy quantize --help`.

    Returns:
        The result and warnings for the user.

    Raises:
        InputError: bad input of any kind, one sentence.
    """
    bad = BadImages()
    device = pick_device(options.device)
    on_bad = options.data.on_bad
    if options.resume:
        run = RunFolder(options.output)
        facts = data_of_run(run)
        calibrated = _with_options(begin_run(run), facts, options)
        net = calibrated.stored.facts
        splits = reopen_data(facts, net.preprocessing, net.classes, options.data.data)
    else:
        run = check_output(options.output, force=options.force)
        loaded, splits, recipe, facts = open_training(options)
        net = NetFacts(
            model=str(options.model),
            weights_sha256=loaded.weights_sha256,
            classes=splits.train.classes,
            preprocessing=splits.train.preprocessing,
            ranges=[],
        )
        calibrated = calibrate_run(
            *(loaded.module, splits, recipe, net, run),
            data=facts,
            device=device,
            on_bad=on_bad,
            bad=bad,
            on_stage=say,
        )
    result = finetune_run(
        calibrated,
        splits,
        run,
        device=device,
        workers=options.workers,
        keep=options.keep,
        resume=options.resume,
        reporter=reporter,
        on_bad=on_bad,
        bad=bad,
        on_stage=say,
    )
    return result, [*calibrated.warnings, *bad.warnings()]


def open_training(options: QuantizeOptions) -> tuple[LoadedModel, Splits, Recipe, DataFacts]:
    """The float model, the data and the resolved recipe of a new run.

    Raises:
        InputError: an argument is missing or wrong.
    """
    if not options.model:
        raise InputError("No MODEL was named.", "name one, such as torchvision:resnet18 or my_net.py:build.")
    recipe = make_recipe(options)
    seed = recipe.training.seed
    facts = data_facts(options.data, seed)
    loaded = load_model(
        options.model, options.weights, num_classes=options.num_classes, prefer_ema=options.prefer_ema, seed=seed
    )
    splits = open_data(
        facts.data,
        preprocessing=preprocessing_for(options.data, default_preprocessing(facts.data) or loaded.preprocessing),
        train_fraction=facts.train_fraction,
        seed=seed,
        class_order=facts.class_order,
    )
    random = options.weights == "random" and options.num_classes is None
    if random and loaded.takes_num_classes:  # a new head takes the data's class count
        loaded = load_model(options.model, "random", num_classes=len(splits.train.classes), seed=seed)
    return loaded, splits, resolved(recipe, options.model), facts


def make_recipe(options: QuantizeOptions) -> Recipe:
    """The named recipe (or the one that --bits stands for) with the command line's values in it."""
    name = options.recipe or f"faq-{options.bits or 8}bit"
    recipe = load_recipe(name)
    return override(recipe, _assignments(options))


def export_verb(run: RunFolder, check_images: int, say: Say) -> ExportResult:
    """Write and check `model.onnx`; see `faq-deploy export --help`.

    Raises:
        InputError: no quantized net, or a stale one.
        FaqError: codes differ without an arithmetic reason.
    """
    path = run.require_fresh("quantize", "quantized.pt", {"float.pt": "calibrate"})
    stored = load_net(path)
    images = load_samples(run.require("calibrate", "samples.npz"), stored.facts.preprocessing, check_images)
    remove_leftovers(run)
    result = export_onnx(
        stored,
        run / "model.onnx",
        images,
        versions=engine_versions(),
        checkpoint_sha256=sha256_of(path),
        on_stage=say,
    )
    run.record(
        "export",
        version=__version__,
        inputs=["quantized.pt"],
        outputs=["model.onnx"],
        versions=engine_versions(),
        facts={
            "bytes": result.bytes,
            "agreement": [dataclasses.asdict(a) for a in result.agreements],
            "proven_layers": sum(b.proven for b in result.bounds),
            "layers": len(result.bounds),
            "warnings": result.warnings,
        },
        after=["eval"],
    )
    return result


def evaluate_verb(
    run: RunFolder, options: EvalOptions, data: str | None, on_images: Callable[[int, int], None]
) -> Report:
    """Evaluate a run, write `report.json` and `report.html`; see `faq-deploy eval --help`.

    Args:
        run: after `export`.
        options: gates and sizes.
        data: another place of the run's data, or None.
        on_images: told how many more of how many images are done.

    Raises:
        InputError: something is missing, stale or unreadable.
    """
    loaded = load_run(run)
    net = loaded.quantized.facts
    images, description = reopen_validation(loaded.data, net.preprocessing, net.classes, data)
    report = evaluate(loaded, images, description, options, on_images=lambda count: on_images(count, len(images)))
    write_json(report, run / "report.json")
    write_html(report, run / "report.html")
    run.record(
        "eval", version=__version__, inputs=["model.onnx", "quantized.pt"], outputs=["report.json", "report.html"]
    )
    return report


def pick_device(name: str) -> torch.device:
    """The device that trains: `auto` takes a GPU where torch finds one.

    Raises:
        InputError: no such kind of device.
        CannotRunHere: a GPU was asked for and there is none, or fewer.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name} is not known.", "pass auto, cpu, cuda, or cuda:1 for the second GPU.")
    device = torch.device(name)
    if device.type == "cuda" and not count:
        raise CannotRunHere("torch finds no CUDA GPU here.", "pass --device cpu, or see `faq-deploy doctor`.")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise CannotRunHere(f"There is no GPU {device.index} here, only {count}.", f"pass up to cuda:{count - 1}.")
    return device


def _with_options(calibrated: Calibrated, data: DataFacts, options: QuantizeOptions) -> Calibrated:
    """The run to go on with, once nothing on the command line asks for another one; --epochs may differ."""
    stored = calibrated.stored
    recipe, net = stored.recipe, stored.facts
    wanted = override(recipe, _assignments(options))
    differences = recipe_differences(dump_toml(recipe), dump_toml(wanted))
    named = load_recipe(options.recipe).name if options.recipe is not None else recipe.name
    given = options.weights
    sha256 = sha256_of(Path(given)) if given is not None and Path(given).is_file() else net.weights_sha256
    choices: list[tuple[str, object, object]] = [
        ("model", net.model, options.model),
        ("recipe", recipe.name, named),
        ("sha256 of the weights", net.weights_sha256, sha256),
        ("number of classes", len(net.classes), options.num_classes),
        ("training fraction", data.train_fraction, options.data.train_fraction),
        ("class order", data.class_order, options.data.class_order),
    ]
    prepared = preprocessing_for(options.data, net.preprocessing)
    choices += [(key, getattr(net.preprocessing, key), getattr(prepared, key)) for key in type(prepared).model_fields]
    differences += [f"{name}: {was} became {now}" for name, was, now in choices if now is not None and was != now]
    if differences:
        raise InputError(
            f"{options.output} was begun in another way ({'; '.join(differences)}).",
            "resume without those options, or start anew with --force.",
        )
    return dataclasses.replace(calibrated, stored=stored.model_copy(update={"recipe": wanted}))


def _assignments(options: QuantizeOptions) -> list[str]:
    """All values of the command line, to be set at once: one alone may not fit the recipe."""
    given = dict(options.overrides)
    if options.bits is not None:
        given["bits"] = options.bits
    return [f"{key}={json.dumps(value)}" for key, value in given.items()] + list(options.assignments)
