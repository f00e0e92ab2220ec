"""What `snap` prints: what moved, what did not and why, what it costs, and what the linter says of the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from engines.images import ImageSet
from engines.lint_view import grid_text
from engines.show_lint import print_findings
from engines.snap import Moved, Snapped, SnapTarget, snap_file
from engines.stdout import to_stdout
from faq_deploy.run_data import DataOptions, preprocessing_in_words
from faq_deploy.snap_accuracy import SnapAccuracy, images_for, measure

__all__ = ["snap"]

_SHOWN: Final = 3


def snap(
    path: Path,
    output: Path,
    target: SnapTarget,
    most_clipped: float,
    data: DataOptions,
    *,
    batch_size: int,
    max_drop: float | None,
    as_json: bool,
) -> int:
    """Snap a file, measure it where there are images, print the result, and return the exit code.

    Args:
        path: the file.
        output: the snapped one.
        target: for which engine.
        most_clipped: share of an activation's range that may be cut off.
        data: images and their preprocessing; without `data` nothing is measured.
        batch_size: images a batch.
        max_drop: points of top-1 that may be lost; None for no such gate.
        as_json: machine output.

    Returns:
        0; 1 where the linter finds an error in the result, or more than `max_drop` is lost.

    Raises:
        InputError: as `snap_file`, `images_for` and `measure`.
        CannotRunHere: --data, and onnxruntime or scipy is not installed.
    """
    images = images_for(path, data) if data.data is not None else None
    snapped = snap_file(path, output, target, most_clipped)
    accuracy = None if images is None else _measured(path, output, images, data, batch_size)
    broken = accuracy is not None and max_drop is not None and accuracy.pairs.drop > max_drop + 1e-9
    code = 1 if broken or any(finding.level == "error" for finding in snapped.findings) else 0
    if as_json:
        print(json.dumps(_facts(path, output, snapped, accuracy, code), indent=2))
        return code
    for line in _lines(snapped):
        _say(line)
    _say(f"Wrote {output}.")
    if accuracy is not None and images is not None:
        _say(f"images: {accuracy.data}, {preprocessing_in_words(images.preprocessing)}")
        for line in (*accuracy.warnings, *_cost(accuracy)):
            _say(line)
    if broken:
        _say(f"The limit is {max_drop:g} points.")
    print_findings(output, target, snapped.findings)
    return code


def _measured(path: Path, output: Path, images: ImageSet, data: DataOptions, batch_size: int) -> SnapAccuracy:
    console = Console(stderr=True)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("images", total=len(images))
        return measure(
            path,
            output,
            images,
            batch_size=batch_size,
            on_bad=data.on_bad,
            on_images=lambda count: progress.advance(task, count),
        )


def _lines(snapped: Snapped) -> list[str]:
    parts = [(snapped.activations, "activation"), (snapped.weights, "weight"), (snapped.biases, "bias")]
    counts = ", ".join(_count(len(moved), name) for moved, name in parts)
    lines = [f"moved to powers of two: {counts}; {snapped.kept} quantized tensors lay there already"]
    if snapped.weights:
        floats = sum(weight.source == "floats" for weight in snapped.weights)
        if floats == len(snapped.weights):
            lines.append("weights: rounded from the floats that the file holds")
        elif not floats:
            lines.append("weights: rounded a second time, since the file holds codes alone")
        else:
            lines.append(f"weights: {floats} rounded from the floats that the file holds, the rest a second time")
    steps = [max(moved.exponents) for moved in snapped.activations]
    if steps:
        wide = sorted(snapped.activations, key=_growth, reverse=True)[:_SHOWN]
        named = ", ".join(f"{m.node} {grid_text(max(m.scales))} -> 2^{max(m.exponents)}" for m in wide)
        lines.append(f"steps that grew most: {named}")
    for kind in sorted(set(snapped.clips.values())):
        nodes = [node for node, written in snapped.clips.items() if written == kind]
        said = "Relu" if kind == "Relu" else "Clip to 0..6"
        lines.append(f"written out, {said} before {_named(nodes)}: the end of the old codes stood for it")
    if snapped.coarser:
        lines.append(f"larger weight steps, since the bias is many times the products: {_named(snapped.coarser)}")
    for why in dict.fromkeys(snapped.left.values()):
        nodes = [node for node, reason in snapped.left.items() if reason == why]
        lines.append(f"left as it is, {_named(nodes)}: {why}")
    lines += [f"repaired {rule}: {_named(nodes)}" for rule, nodes in snapped.repaired.items()]
    return lines


def _cost(accuracy: SnapAccuracy) -> list[str]:
    before, after, points = accuracy.before_interval, accuracy.after_interval, accuracy.drop_interval
    pairs = accuracy.pairs
    verb = "loses" if pairs.drop >= 0 else "gains"
    certain = accuracy.p_value < 0.05
    chance = f"the exact McNemar test gives p = {accuracy.p_value:.2g}: {'no chance' if certain else 'may be chance'}"
    return [
        f"top-1 before {accuracy.before:.2f} % ({before.low:.2f} to {before.high:.2f}), "
        f"after {accuracy.after:.2f} % ({after.low:.2f} to {after.high:.2f}), {accuracy.images:,} images",
        f"{verb} {abs(pairs.drop):.2f} points (a loss of {points.low:.2f} to {points.high:.2f} at 95 %); "
        f"{pairs.flips:,} images get another class, {pairs.lost:,} lost and {pairs.gained:,} gained; {chance}",
    ]


def _growth(moved: Moved) -> float:
    return float(2.0 ** max(moved.exponents) / max(moved.scales))


def _count(number: int, name: str) -> str:
    several = "biases" if name == "bias" else f"{name}s"
    return f"{number:,} {name if number == 1 else several}"


def _named(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return f"{', '.join(nodes[:_SHOWN])}{more}"


def _facts(path: Path, output: Path, snapped: Snapped, accuracy: SnapAccuracy | None, code: int) -> dict[str, object]:
    return {
        "exit_code": code,
        "file": str(path),
        "snapped_file": str(output),
        "target": snapped.target,
        "kept": snapped.kept,
        "activations": [asdict(moved) for moved in snapped.activations],
        "weights": [asdict(moved) for moved in snapped.weights],
        "biases": dict(snapped.biases),
        "written_out": dict(snapped.clips),
        "coarser": list(snapped.coarser),
        "left": dict(snapped.left),
        "repaired": {rule: list(nodes) for rule, nodes in snapped.repaired.items()},
        "accuracy": None if accuracy is None else {**asdict(accuracy), "drop": accuracy.pairs.drop},
        "findings": [{**asdict(finding), "page": finding.page} for finding in snapped.findings],
    }


def _say(line: str) -> None:
    to_stdout(line)
