"""What `build --bench` prints: measured latency, and what the data sheets would allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from rich.table import Table
from rich.text import Text

from engines.bench import Bench, Measured
from engines.gpu_limits import GPUS
from engines.roofline import Bound
from engines.stdout import to_stdout

__all__ = ["as_dict", "show"]

_FEW: Final = 100  # calls, of which the 99th is not the slowest


def as_dict(found: Bench) -> dict[str, object]:
    """The same as plain data, with every kernel and the sources of the peaks."""
    return {
        "batches": found.subject.batches,
        "image": found.subject.image,
        "kernels": [asdict(cost) for cost in found.subject.costs],
        "measured": [asdict(row) for row in found.measured],
        "bounds": [asdict(row) for row in found.bounds],
        "gpus": [asdict(gpu) for gpu in GPUS if gpu.name in {row.gpu for row in found.bounds}],
    }


def show(found: Bench) -> None:
    """Print both tables of what `bench` gave."""
    rows = [row for row in found.measured if row.latencies]
    if rows:
        to_stdout("Measured on noise, from host memory to host memory: milliseconds a batch, p50 / p99")
        to_stdout(_measured(rows, found))
        fewest = min(one.calls for row in rows for one in row.latencies)
        if fewest < _FEW:
            to_stdout(f"From {fewest} calls on: where there are fewer than {_FEW}, p99 is the slowest.")
    for row in found.measured:
        if row.reason:
            to_stdout(f"{row.engine}, {_how(row)}: not measured. {row.reason}")
        elif row.clocks is not None:
            clocks = ", ".join(f"{name} {mhz} MHz" for name, mhz in row.clocks.items())
            to_stdout(f"{row.engine}, {_how(row)}: {clocks}")
    macs = sum(cost.macs for cost in found.subject.costs)
    in_int8 = sum(cost.macs for cost in found.subject.costs if cost.int8)
    weights = sum(cost.weight_bytes for cost in found.subject.costs)
    moved = sum(cost.bytes("int8", 1) for cost in found.subject.costs) - weights
    to_stdout("")
    to_stdout(
        f"Roofline, a prediction from the graph and NVIDIA's data sheets: {macs:,} multiply-adds an image, "
        f"{100 * in_int8 / macs if macs else 0:.2f} % in INT8; {weights / 1e6:.1f} MB of weights a batch and "
        f"{moved / 1e6:.1f} MB of activations an image."
    )
    to_stdout("Least milliseconds a batch: every tensor through memory (products alone)")
    to_stdout(_bounds(found.bounds, found.subject.batches))
    to_stdout("A GPU whose cache holds the tensors can come below the first figure, none below the second.")


def _measured(rows: Sequence[Measured], found: Bench) -> Table:
    names = [f"batch {batch}" for batch in found.subject.batches]
    table = _table("engine", "precision", *names)
    for row in rows:
        cells = [f"{one.p50_ms:.4g} / {one.p99_ms:.4g}" for one in row.latencies]
        table.add_row(*map(Text, (row.engine, _how(row), *cells)))
    return table


def _how(row: Measured) -> str:
    return f"{row.precision}, CUDA graph" if row.graphs else row.precision


def _bounds(bounds: Sequence[Bound], batches: Sequence[int]) -> Table:
    table = _table("GPU", "precision", *(f"batch {batch}" for batch in batches))
    rows: dict[tuple[str, str], list[str]] = {}
    for one in bounds:
        rows.setdefault((one.gpu, one.precision), []).append(f"{one.ms:.3g} ({one.products_ms:.3g})")
    for (gpu, precision), cells in rows.items():
        table.add_row(*map(Text, (gpu, precision, *cells)))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right")
    return table
