"""report.json for machines and report.html for people: one file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from engines.errors import InputError
from engines.files import write_atomic
from faq_deploy import plots
from faq_deploy.class_table import class_table
from faq_deploy.headline import headline
from faq_deploy.report_model import Layer, Report
from faq_deploy.report_parts import Flip
from faq_deploy.sparkline import sparkline

__all__ = ["page_environment", "write_html", "write_json"]

_MISSING = "–"
_OUTCOMES = {
    0: "Passed.",
    1: "Not passed: a gate failed (exit code 1).",
    2: "Not passed: the input could not be used (exit code 2).",
    3: "Not passed: not every engine was built and run (exit code 3).",
}


def write_json(report: Report | Mapping[str, object], path: Path) -> None:
    """Write report.json, whole or not at all.

    Args:
        report: what `eval` found.
        path: the file.

    Raises:
        InputError: `report` doesn't follow the schema, or the file can't be written.
    """
    write_atomic(path, _checked(report).model_dump_json(indent=2, by_alias=True) + "\n")


def write_html(report: Report | Mapping[str, object], path: Path) -> None:
    """Write report.html, whole or not at all: one page with its style and pictures inside.

    Args:
        report: what `eval` found, such as the content of report.json.
        path: the file.

    Raises:
        InputError: `report` doesn't follow the schema, or the file can't be written.
    """
    checked = _checked(report)
    rounded_up = [layer for layer in checked.layers if layer.kind == "activation" and layer.y and layer.ymax]
    # Where not all fit into the picture, those that waste most matter most.
    drawn = rounded_up if len(rounded_up) <= plots.MOST_RANGES else _most_wasteful(rounded_up, plots.MOST_RANGES)
    page = (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=checked,
            outcome=_OUTCOMES[checked.verdict.exit_code],
            headline=headline(checked),
            ladder=Markup(plots.accuracy_ladder(checked.stages)) if checked.stages else "",
            curves=Markup(plots.training_curves(checked.training)) if checked.training else "",
            ranges=Markup(plots.ranges(drawn)) if drawn else "",
            ranges_left_out=len(rounded_up) - len(drawn),
            latency=Markup(plots.latency(checked.stages)) if any(s.latency_ms for s in checked.stages) else "",
            classes=class_table(checked),
        )
    )
    write_atomic(path, page)


def _checked(report: Report | Mapping[str, object]) -> Report:
    if isinstance(report, Report):
        return report
    try:
        return Report.model_validate(dict(report))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"the report can't be written: {where}: {first['msg']}.", "run `faq-deploy eval` again with this version."
        ) from error


def _most_wasteful(layers: Sequence[Layer], count: int) -> list[Layer]:
    """The `count` layers with the largest waste, in the order of the graph."""
    kept = {id(layer) for layer in sorted(layers, key=lambda layer: -(layer.waste or 0.0))[:count]}
    return [layer for layer in layers if id(layer) in kept]


def page_environment() -> Environment:
    """The templates, with the filters that they use."""
    environment = Environment(
        loader=PackageLoader("faq_deploy"),
        autoescape=True,  # names of layers, classes and files come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fixed": _fixed, "short": _short, "count": _count, "plain": _plain}
    environment.filters |= {"answers": _answers, "sparkline": _sparkline}
    return environment


def _sparkline(counts: Sequence[int]) -> Markup:
    return Markup(sparkline(counts))


def _answers(flip: Flip) -> list[tuple[str, list[str]]]:
    """What was answered, each with the stages that did."""
    answers = dict.fromkeys(flip.answers.values())
    return [(answer, [name for name, found in flip.answers.items() if found == answer]) for answer in answers]


def _fixed(value: float | None, digits: int = 2, unit: str = "") -> str:
    """`97.50`, with the unit after it; a dash where nothing was measured."""
    return _MISSING if value is None else f"{value:,.{digits}f}{unit}"


def _short(value: float | None) -> str:
    """Three significant digits, whatever the magnitude."""
    return _MISSING if value is None else f"{value:.3g}"


def _count(value: int | None) -> str:
    return _MISSING if value is None else f"{value:,}"


def _plain(value: object) -> str:
    """A recipe's value as a person would type it."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or _MISSING
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) or _MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _MISSING if value in (None, "") else str(value)
