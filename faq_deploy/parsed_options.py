"""What Click parsed, as the options of the verbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from engines.errors import InputError
from faq_deploy.evaluate import EvalOptions
from faq_deploy.limits import Limits, limits_from, read_limits
from faq_deploy.metrics import named_metric
from faq_deploy.new_run import QuantizeOptions
from faq_deploy.number_list import numbers
from faq_deploy.report_files import ReportFiles
from faq_deploy.run_data import DataOptions

__all__ = ["eval_options", "precisions", "report_files", "training_options"]

_RECIPE_KEYS: Final = {
    "target": "target",
    "cpu": "cpu",
    "epochs": "training.epochs",
    "lr": "training.lr",
    "batch_size": "training.batch_size",
    "seed": "training.seed",
    "precision": "training.precision",
    "distill": "training.distill",
    "leaf": "layers.leaf",
    "skip": "layers.skip",
    "model_output": "layers.output",
    "certify": "quantizer.certify",
}


def precisions(texts: Sequence[str]) -> tuple[int | None, dict[str, object]]:
    """What --bits asks for: the precision of all, and `layers.bits` by pattern.

    Raises:
        InputError: neither 8, 4 nor PATTERN=N.
    """
    everywhere: int | None = None
    patterns: dict[str, int] = {}
    for text in texts:
        pattern, equals, number = text.rpartition("=")
        if not number.isdigit() or (not equals and number not in {"8", "4"}) or (equals and not pattern):
            raise InputError(f"--bits {text} is not a precision.", "pass 8, 4, or PATTERN=N such as 'layer4.*=8'.")
        if equals:
            patterns[pattern] = int(number)
        else:
            everywhere = int(number)
    return everywhere, {"layers.bits": patterns} if patterns else {}


def training_options(model: str | None, options: dict[str, Any]) -> QuantizeOptions:
    """The options of `quantize` and `train` from what Click parsed.

    Raises:
        InputError: --mean or --std isn't a list of numbers.
    """
    data = DataOptions(
        data=options["data"],
        train_fraction=options["train_fraction"],
        class_order=options["class_order"],
        resize=options["resize"],
        crop=options["crop"],
        mean=numbers("--mean", options["mean"]),
        std=numbers("--std", options["std"]),
        scale=options["pixel_scale"],
        interpolation=options["interpolation"],
        color=options["color"],
        orientation=options["orientation"],
        on_bad=options["on_bad_image"],
    )
    bits, of_layers = precisions(options.get("bits") or ())
    if options.get("int4_linear"):  # left out, it leaves a recipe as it is
        of_layers["layers.int4_linear"] = True
    return QuantizeOptions(
        model=model,
        output=options["output"],
        data=data,
        weights=options["weights"],
        num_classes=options["num_classes"],
        prefer_ema=options["ema"],
        recipe=options["recipe"],
        bits=bits,
        assignments=options["assignments"],
        overrides=of_layers
        | {key: options[name] for name, key in _RECIPE_KEYS.items() if options.get(name) not in (None, ())},
        device=options["device"],
        workers=options["workers"],
        keep=options.get("keep"),
        resume=options["resume"],
        force=options["force"],
    )


def eval_options(options: dict[str, Any]) -> tuple[EvalOptions, str | None]:
    """The options of `eval` from what Click parsed, and its --data.

    Raises:
        InputError: a gate file that can't be read, a limit that can't be, or no such metric.
    """
    # a flag that was not given leaves the file's word; 0 is a limit
    given = {k: options[k] for k in Limits.model_fields if options[k] not in (None, ()) and options[k] is not False}
    gates = options["gates"]
    limits = limits_from(given, "the command line") if gates is None else read_limits(gates, given)
    metric = options["metric"]
    for name in ("samples", "float_model", "html"):
        if options[name] is not None:
            raise InputError(f"--{name.replace('_', '-')} goes with an ONNX file, not with a run.", "leave it out.")
    if limits.max_metric_drop is not None and metric is None:
        raise InputError("--max-metric-drop has no metric to judge.", "name one: --metric top-3, say.")
    wanted = EvalOptions(
        batch_size=options["batch_size"],
        code_images=options["code_images"],
        reference_images=options["reference_images"],
        engines=options["engines"] or None,
        limits=limits,
        baseline=options["baseline"],
        on_bad=options["on_bad_image"],
        metric=None if metric is None else named_metric(metric),
    )
    return wanted, options["data"]


def report_files(options: dict[str, Any]) -> ReportFiles:
    """What `eval` writes for CI systems, from what Click parsed."""
    return ReportFiles(junit=options["junit"], markdown=options["markdown"])
