"""What `analyze` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from engines.stdout import to_stdout
from faq_deploy.analysis_facts import ExponentFacts, NoiseFacts, SimilarityFacts
from faq_deploy.code_occupancy import Occupancy

__all__ = ["exponents", "noise", "similarity"]


def noise(facts: NoiseFacts, path: Path, *, as_json: bool) -> None:
    """Print both measures, a line a layer and a column a width."""
    if as_json:
        print(json.dumps(asdict(facts), indent=1))
        return
    _cosines(
        f"gradient, quantized against float weights, cosine (mean of {_counted(facts.batches, 'batch', 'batches')})",
        facts.gradient_cosine,
        ("float, another batch", facts.batch_cosine),
        facts.inner_layers,
    )
    if facts.step_cosine:
        to_stdout("")
        _cosines(
            f"step called for against steps taken, cosine (paper, Fig. 1; {_counted(facts.steps, 'step', 'steps')} at "
            f"learning rate {facts.lr:g})",
            facts.step_cosine,
            ("float", facts.float_step_cosine),
            facts.inner_layers,
        )
    to_stdout("* its weights have the same bits in every column. The mean is that of the other layers.")
    _written(path)


def similarity(facts: SimilarityFacts, path: Path, *, as_json: bool) -> None:
    """Print the cosine of each layer's and of all neurons."""
    if as_json:
        print(json.dumps(asdict(facts), indent=1))
        return
    _warn(facts.warnings)
    table = Table(box=None, pad_edge=False)
    table.add_column("fine-tuned against float weights, mean cosine of neurons")
    table.add_column("float copies", justify="right")
    table.add_column("quantized", justify="right")
    for layer, cosine in facts.layers.items():
        quantized = facts.quantized_layers.get(layer)
        table.add_row(layer, f"{cosine:.4f}", "" if quantized is None else f"{quantized:.4f}")
    table.add_row("all neurons", f"{facts.network:.4f}", f"{facts.quantized_network:.4f}", style="bold")
    to_stdout(table)
    if facts.epochs:
        to_stdout(f"After each epoch: {', '.join(f'{cosine:.4f}' for cosine in facts.epochs.values())}")
    to_stdout(
        "The paper's ResNet-18 has 0.994 after 110 epochs at 4 bits, and 0.023 where it began from random weights."
    )
    _written(path)


def exponents(facts: ExponentFacts, path: Path, *, as_json: bool) -> None:
    """Print the exponents and how tensors fill their codes."""
    if as_json:
        print(json.dumps(asdict(facts), indent=1))
        return
    _warn(facts.warnings)
    _counts("weight exponents", facts.weight_exponents)
    _counts("activation exponents", facts.activation_exponents)
    to_stdout("")
    _occupancies("weights", facts.weights)
    to_stdout("")
    _occupancies(f"activations of {_counted(facts.images, 'validation image', 'validation images')}", facts.activations)
    if facts.flips:
        to_stdout("")
        total = sum(facts.weight_exponents.values())
        table = Table(box=None, pad_edge=False)
        for column in ("epoch", "steps", "weight exponents that changed", f"of {total:,} a step"):
            table.add_column(column, justify="right")
        for epoch, flips in facts.flips.items():
            steps = facts.steps[epoch]
            table.add_row(str(epoch), f"{steps:,}", f"{flips:,}", f"{flips / (steps * total):.3%}")
        to_stdout(table)
    _written(path)


def _cosines(
    title: str,
    widths: Mapping[int, Mapping[str, float]],
    reference: tuple[str, Mapping[str, float]],
    inner: Sequence[str],
) -> None:
    name, values = reference
    columns = [(f"{bits} bits", column) for bits, column in widths.items()] + ([(name, values)] if values else [])
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for label, _ in columns:
        table.add_column(label, justify="right")
    for layer in columns[0][1]:
        table.add_row(f"{layer}{'' if layer in inner else ' *'}", *(f"{column[layer]:.4f}" for _, column in columns))
    means = (sum(column[layer] for layer in inner) / len(inner) for _, column in columns)
    table.add_row("mean", *(f"{mean:.4f}" for mean in means), style="bold")
    to_stdout(f"{title}:")
    to_stdout(table)


def _counts(title: str, counts: Mapping[int, int]) -> None:
    most = max(counts.values())
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    table.add_column("count", justify="right")
    table.add_column("")
    for exponent, count in counts.items():
        table.add_row(f"{exponent}", f"{count:,}", "#" * max(1, round(40 * count / most)))
    to_stdout(table)


def _occupancies(title: str, records: Sequence[Occupancy]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    for column in ("bits", "exponent", "codes used", "entropy", "at the ends", "zero"):
        table.add_column(column, justify="right")
    for record in records:
        low, high = record.lowest_exponent, record.highest_exponent
        table.add_row(
            record.name,
            str(record.bits),
            str(low) if low == high else f"{low} to {high}",
            f"{record.used:.0%}",
            f"{record.entropy:.2f} bits",
            f"{record.clipped:.2%}",
            f"{record.zero:.1%}",
        )
    to_stdout(table)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _written(path: Path) -> None:
    to_stdout(f"Written: {path} and {path.with_suffix('.svg').name}")


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)
