"""The verbs that need torch, each one function from options to a result; `cli.py` only parses and prints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engines.errors import CannotRunHere, InputError
from engines.files import sha256_of
from engines.image_batches import BadImages, OnBad
from engines.image_files import ClassOrder
from engines.preprocess import Preprocessing
from engines.run_folder import RunFolder
from faq_deploy import __version__
from faq_deploy.checkpoint import recipe_differences
from faq_deploy.data import Splits, default_preprocessing, open_data
from faq_deploy.evaluate import EvalOptions, evaluate, load_run
from faq_deploy.export import ExportResult, export_onnx
from faq_deploy.models import LoadedModel, load_model
from faq_deploy.progress import TrainingReporter
from faq_deploy.quantize import QuantizeResult, begin_run, calibrate_run, finetune_run, prepare_folder
from faq_deploy.recipe import Recipe, dump_toml, load_recipe, override, resolved
from faq_deploy.report import write_html, write_json
from faq_deploy.report_model import Report
from faq_deploy.samples import load_samples
from faq_deploy.stored_net import NetFacts, load_net
from faq_deploy.versions import engine_versions

__all__ = ["DataOptions", "QuantizeOptions", "evaluate_verb", "export_verb", "open_training", "quantize_verb"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class DataOptions:
    """Where images come from and how they are prepared; None leaves a choice to the model's weights or the data."""

    data: str | None = None
    train_fraction: float | None = None
    class_order: ClassOrder | None = None
    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    color: str | None = None
    orientation: str | None = None
    on_bad: OnBad = "error"


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
    if options.resume:
        run = RunFolder(options.output)
        stored, facts = begin_run(run)
        recipe = _resumed_recipe(stored.recipe, options)
        stored = stored.model_copy(update={"recipe": recipe})
        splits = reopen_data(facts, stored.facts, options.data.data)
        warnings: list[str] = []
    else:
        loaded, splits, recipe, data_facts = open_training(options)
        run = prepare_folder(options.output, force=options.force)
        net_facts = NetFacts(
            model=str(options.model),
            weights_sha256=loaded.weights_sha256,
            classes=splits.train.classes,
            preprocessing=splits.train.preprocessing,
            ranges=[],
        )
        stored, warnings = calibrate_run(
            loaded.module,
            splits,
            recipe,
            net_facts,
            run,
            data_facts=data_facts,
            on_bad=options.data.on_bad,
            bad=bad,
            on_stage=say,
        )
    result = finetune_run(
        stored,
        splits,
        run,
        device=device,
        workers=options.workers,
        keep=options.keep,
        resume=options.resume,
        reporter=reporter,
        on_bad=options.data.on_bad,
        bad=bad,
        on_stage=say,
    )
    if len(bad):
        warnings.append(f"{len(bad)} bad images were skipped: {', '.join(list(bad.reasons)[:3])}")
    return result, warnings


def open_training(options: QuantizeOptions) -> tuple[LoadedModel, Splits, Recipe, dict[str, object]]:
    """The float model, the data and the resolved recipe of a new run.

    Raises:
        InputError: an argument is missing or wrong.
    """
    if options.model is None:
        raise InputError("no MODEL was named.", "name one, such as torchvision:resnet18 or my_net.py:build.")
    spec = options.data.data
    if spec is None:
        raise InputError("no images were named.", "pass --data DIR, --data cifar10:DIR or --data digits.")
    recipe = make_recipe(options)
    classes = options.num_classes
    loaded = load_model(
        options.model, options.weights, num_classes=classes, prefer_ema=options.prefer_ema, seed=recipe.training.seed
    )
    preprocessing = _preprocessing(options.data, loaded.preprocessing, spec)
    splits = open_data(
        spec,
        preprocessing=preprocessing,
        train_fraction=options.data.train_fraction,
        seed=recipe.training.seed,
        class_order=options.data.class_order,
    )
    if options.weights == "random" and options.num_classes is None:  # a new head takes the data's class count
        loaded = load_model(options.model, "random", num_classes=len(splits.train.classes), seed=recipe.training.seed)
    facts: dict[str, object] = {
        "data": spec if spec == "digits" else _absolute(spec),
        "train_fraction": options.data.train_fraction,
        "class_order": options.data.class_order,
        "seed": recipe.training.seed,
    }
    return loaded, splits, resolved(recipe, options.model), facts


def make_recipe(options: QuantizeOptions) -> Recipe:
    """The named recipe (or the one that --bits stands for) with the command line's values in it."""
    name = options.recipe or f"faq-{options.bits or 8}bit"
    recipe = load_recipe(name)
    return override(recipe, _assignments(options))


def reopen_data(facts: dict[str, object], net: NetFacts, instead: str | None = None) -> Splits:
    """The data of a run, opened again with its own preprocessing and class order.

    Args:
        facts: as `open_training` returned them.
        net: of the run.
        instead: another place of the same data.

    Raises:
        InputError: it is gone, or doesn't fit.
    """
    fraction, order, seed = facts["train_fraction"], facts["class_order"], facts["seed"]
    return open_data(
        instead or str(facts["data"]),
        preprocessing=net.preprocessing,
        train_fraction=fraction if isinstance(fraction, float) else None,
        seed=seed if isinstance(seed, int) else 0,
        class_order=order if order in ("numeric", "lexical") else None,
        classes=net.classes,
    )


def export_verb(run: RunFolder, check_images: int, say: Say) -> ExportResult:
    """Write and check `model.onnx`; see `faq-deploy export --help`.

    Raises:
        InputError: no quantized net, or a stale one.
        FaqError: codes differ without an arithmetic reason.
    """
    path = run.require_fresh("quantize", "quantized.pt", {"float.pt": "calibrate"})
    stored = load_net(path)
    images = load_samples(run.require("calibrate", "samples.npz"), stored.facts.preprocessing, check_images)
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
    splits = reopen_data(loaded.data, loaded.quantized.facts, data)
    total = len(splits.val)
    report = evaluate(loaded, splits.val, splits.description, options, on_images=lambda count: on_images(count, total))
    write_json(report, run / "report.json")
    write_html(report, run / "report.html")
    run.record(
        "eval", version=__version__, inputs=["model.onnx", "quantized.pt"], outputs=["report.json", "report.html"]
    )
    return report


def pick_device(name: str) -> torch.device:
    """The device that trains: `auto` takes a GPU where torch finds one.

    Raises:
        CannotRunHere: a GPU was asked for and there is none.
    """
    found = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if found else "cpu"
    if name.startswith("cuda") and not found:
        raise CannotRunHere("torch finds no CUDA GPU here.", "pass --device cpu, or see `faq-deploy doctor`.")
    return torch.device(name)


def _resumed_recipe(recipe: Recipe, options: QuantizeOptions) -> Recipe:
    wanted = override(recipe, _assignments(options))
    if options.recipe is not None:
        named = load_recipe(options.recipe)
        if named.name != recipe.name:
            raise InputError(
                f"{options.output} was begun with recipe {recipe.name}, not {named.name}.",
                "leave out --recipe, or start anew with --force.",
            )
    differences = recipe_differences(dump_toml(recipe), dump_toml(wanted))
    if differences:
        raise InputError(
            f"{options.output} was begun with another recipe ({'; '.join(differences)}).",
            "resume without those options, or start anew with --force.",
        )
    return wanted


def _assignments(options: QuantizeOptions) -> list[str]:
    """All values of the command line, to be set at once: one alone may not fit the recipe."""
    given = dict(options.overrides)
    if options.bits is not None:
        given["bits"] = options.bits
    return [f"{key}={json.dumps(value)}" for key, value in given.items()] + list(options.assignments)


def _preprocessing(options: DataOptions, of_weights: Preprocessing | None, spec: str) -> Preprocessing:
    base = default_preprocessing(spec) or of_weights or Preprocessing(resize=256, crop=(224, 224))
    keys = ("resize", "crop", "mean", "std", "interpolation", "color", "orientation")
    given = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    given |= {key: None for key in ("resize", "crop") if given.get(key) == 0}
    return Preprocessing.model_validate({**base.model_dump(), **given})


def _absolute(spec: str) -> str:
    kind, colon, folder = spec.partition(":")
    return f"{kind}:{Path(folder).resolve()}" if colon and kind == "cifar10" else str(Path(spec).resolve())
