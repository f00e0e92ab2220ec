"""The verbs that need torch, each one function from options to a result; `cli.py` only parses and prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import cast

from rich.console import Console

from engines.files import sha256_of
from engines.image_batches import BadImages
from engines.run_folder import RunFolder, writes
from faq_deploy import __version__
from faq_deploy.calibrated_run import Calibrated, begin_run, calibrate_run
from faq_deploy.evaluate import EvalOptions, evaluate, load_run
from faq_deploy.new_run import QuantizeOptions, open_training, pick_device
from faq_deploy.onnx_export import ExportResult, export_onnx
from faq_deploy.output_folder import check_output, remove_leftovers
from faq_deploy.output_lock import output_of
from faq_deploy.predictions import PREDICTIONS, write_predictions
from faq_deploy.progress import LineReporter, TrainingReporter
from faq_deploy.quantize import QuantizeResult, finetune_run
from faq_deploy.ranks import Ranks, open_ranks
from faq_deploy.report import write_html, write_json
from faq_deploy.report_files import ReportFiles
from faq_deploy.report_model import Report
from faq_deploy.resumed import Begun, continued_recipe
from faq_deploy.run_data import (
    DataFacts,
    data_of_run,
    preprocessing_in_words,
    reopen_data,
    reopen_validation,
    training_images_warning,
)
from faq_deploy.samples import load_samples
from faq_deploy.stored_net import NetFacts, load_net
from faq_deploy.versions import engine_versions

__all__ = ["Say", "evaluate_verb", "export_verb", "heard", "quantize_verb"]

Say = Callable[[str], None]


def quantize_verb(options: QuantizeOptions, reporter: TrainingReporter, say: Say) -> tuple[QuantizeResult, list[str]]:
    """Calibrate and fine-tune; see `faq-deploy quantize --help`.

    Returns:
        The result and warnings for the user.

    Raises:
        InputError: bad input of any kind, one sentence.
    """
    with open_ranks(pick_device(options.device)) as ranks, output_of(options, ranks, "quantize"):
        return _quantize(options, ranks, *heard(ranks, reporter, say))


def heard(ranks: Ranks, reporter: TrainingReporter, say: Say) -> tuple[TrainingReporter, Say]:
    """Who is told how a verb goes: of several processes only the first one talks."""
    return (reporter, say) if ranks.is_first else (LineReporter(Console(quiet=True)), lambda text: None)


def _quantize(
    options: QuantizeOptions, ranks: Ranks, reporter: TrainingReporter, say: Say
) -> tuple[QuantizeResult, list[str]]:
    bad = BadImages()
    on_bad = options.data.on_bad
    changes: list[str] = []
    if options.resume:
        run = RunFolder(options.output)
        facts, (calibrated, changes) = ranks.first_then_all(lambda: _continued(run, options))
        net = calibrated.stored.facts
        reporter.note(f"preprocessing: {preprocessing_in_words(net.preprocessing)}")
        splits = ranks.first_then_all(lambda: reopen_data(facts, net.preprocessing, net.classes, options.data.data))
    else:
        run = ranks.first_then_all(lambda: check_output(options.output, force=options.force))
        loaded, splits, recipe, facts = ranks.first_then_all(lambda: open_training(options, reporter.note))
        net = NetFacts(
            model=str(options.model),
            weights=loaded.source.removeprefix(f"{options.model}, "),
            weights_sha256=loaded.weights_sha256,
            classes=splits.train.classes,
            preprocessing=splits.train.preprocessing,
            ranges=[],
        )
        first = ranks.first_does(
            lambda: calibrate_run(
                *(loaded.module, splits, recipe, net, run),
                data=facts,
                device=ranks.device,
                on_bad=on_bad,
                bad=bad,
                on_stage=say,
            )
        )
        calibrated = begin_run(run) if first is None else first
    before = run.manifest().steps
    remembered = before["begin"].facts if "begin" in before else {}
    keep = options.keep or str(remembered.get("keep", "best"))
    ranks.first_does(lambda: _record_begun(run, remembered, keep, changes))
    result = finetune_run(
        calibrated,
        splits,
        run,
        ranks=ranks,
        workers=options.workers,
        keep=keep,
        resume=options.resume,
        changed=bool(changes),
        reporter=reporter,
        on_bad=on_bad,
        bad=bad,
        on_stage=say,
    )
    for other in ranks.gathered(bad.reasons):
        bad.reasons.update(other)
    warnings = [*calibrated.warnings, *bad.warnings()]
    if result.training.epochs_done and result.epoch == 0:
        warnings.append(
            f"every epoch of fine-tuning was worse than calibration alone (the last: {result.training.last_top1:.2f} "
            "%): the calibrated weights are kept. --resume --keep last takes those of the last epoch."
        )
    if "export" in before and "export" not in run.manifest().steps:
        warnings.append(
            f"{run / 'model.onnx'}, its engines and its report are of the weights before: export, build and eval again."
        )
    return result, warnings if ranks.is_first else []


@writes("export")
def export_verb(run: RunFolder, check_images: int, say: Say, *, pack_int4: bool = False) -> ExportResult:
    """Write and check `model.onnx`; see `faq-deploy export --help`.

    Raises:
        InputError: no quantized net, or a stale one.
        FaqError: codes differ without an arithmetic reason.
    """
    calibrated = run.manifest().steps.get("calibrate")
    sources = ["float.pt"] + [name for name in ("corrected.pt",) if calibrated and name in calibrated.outputs]
    path = run.require_fresh("quantize", "quantized.pt", dict.fromkeys(sources, "calibrate"))
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
        packed=pack_int4,
    )
    run.record(
        "export",
        version=__version__,
        inputs=["quantized.pt"],
        outputs=["model.onnx"],
        versions=engine_versions(),
        facts={
            "target": stored.recipe.target,
            "bytes": result.bytes,
            "agreement": [dataclasses.asdict(a) for a in result.agreements],
            "proven_layers": sum(b.proven for b in result.bounds),
            "layers": len(result.bounds),
            "pack_int4": pack_int4,
            "warnings": result.warnings,
        },
        after=["eval"],
    )
    return result


@writes("eval")
def evaluate_verb(
    run: RunFolder,
    options: EvalOptions,
    data: str | None,
    on_images: Callable[[int, int], None],
    beside: ReportFiles | None = None,
) -> Report:
    """Evaluate a run, write `report.json`, `report.html` and `predictions.csv`; see `faq-deploy eval --help`.

    Args:
        run: after `export`.
        options: gates and sizes.
        data: another place of the run's data, or None.
        on_images: told how many more of how many images are done.
        beside: what is written for CI systems.

    Raises:
        InputError: something is missing, stale or unreadable.
    """
    loaded = load_run(run)
    net = loaded.quantized.facts
    images, description = reopen_validation(loaded.data, net.preprocessing, net.classes, data)
    found = evaluate(loaded, images, description, options, on_images=lambda count: on_images(count, len(images)))
    report = found.report
    trained_on = training_images_warning(loaded.data, images)
    if trained_on is not None:
        report = report.model_copy(update={"warnings": [trained_on, *report.warnings]})
    write_predictions(run / PREDICTIONS, found.predictions)
    write_json(report, run / "report.json")
    write_html(report, run / "report.html")
    if beside is not None:
        beside.write(report)
    outputs = ["report.json", "report.html", PREDICTIONS]
    run.record("eval", version=__version__, inputs=["model.onnx", "quantized.pt"], outputs=outputs)
    return report


def _continued(run: RunFolder, options: QuantizeOptions) -> tuple[DataFacts, tuple[Calibrated, list[str]]]:
    """The data and the run to go on with, and what --force changed in its recipe."""
    data, calibrated = data_of_run(run), begin_run(run)
    stored = calibrated.stored
    net = stored.facts
    begun = Begun(net.model, stored.recipe, net.weights_sha256, len(net.classes), data, net.preprocessing)
    recipe, changes = continued_recipe(begun, options)
    return data, (dataclasses.replace(calibrated, stored=stored.model_copy(update={"recipe": recipe})), changes)


def _record_begun(run: RunFolder, remembered: Mapping[str, object], keep: str, changes: list[str]) -> None:
    """Keep in the manifest which weights are wanted, and how the recipe was changed on the way."""
    facts = dict(remembered) | {"verb": "quantize", "keep": keep}
    if changes:
        facts["changes"] = [*cast("list[str]", remembered.get("changes", [])), *changes]
    if facts != remembered:
        run.record("begin", version=__version__, facts=facts)
