"""What `inspect` prints: a table of the layers, what stays in float, and the warnings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from engines.errors import InputError
from engines.stdout import to_stdout
from faq_deploy import parsed_options
from faq_deploy.inspect import FloatRow, Inspection, Share
from faq_deploy.new_run import QuantizeOptions

__all__ = ["inspect_options", "inspected"]


# `quantize` has these options and `inspect` has not: it reads no data and makes no run.
_NOT_ASKED: Final[dict[str, Any]] = {
    **dict.fromkeys(("data", "train_fraction", "class_order", "resize", "crop", "interpolation", "orientation")),
    "pixel_scale": None,
    "on_bad_image": "error",
    "output": Path(),
    "device": "cpu",
    "workers": 0,
    "resume": False,
    "force": False,
}


def inspect_options(model: str, options: dict[str, Any]) -> tuple[QuantizeOptions, tuple[int, int] | None]:
    """The options of `inspect` from what Click parsed, and its --input-size.

    Raises:
        InputError: --input-size, --mean or --std can't be read.
    """
    options = dict(options)
    size = _size(options.pop("input_size"))
    return parsed_options.training_options(model, {**_NOT_ASKED, **options}), size


def inspected(found: Inspection, *, as_json: bool) -> None:
    """Print what would be quantized: tables on stdout, warnings on stderr."""
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
        return
    to_stdout(_layers(found))
    if found.floats:
        to_stdout("")
        to_stdout(_floats(found.floats))
    to_stdout("")
    for line in _summary(found):
        to_stdout(line)
    for sentence in found.warnings:
        print(f"warning: {sentence}", file=sys.stderr)


def _layers(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("layer", "kind", "weight", "bits", "reads", "writes", "MACs", "where"):
        right = column in {"bits", "MACs"}
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=column == "weight")
    for row in found.layers:
        bits = "float" if row.weight_bits is None else str(row.weight_bits)
        where = "; ".join(filter(None, (row.source.rpartition(", ")[2], row.why_float)))
        shape = "x".join(map(str, row.weight_shape))
        table.add_row(row.name, row.kind, shape, bits, row.inputs, row.outputs, f"{row.macs:,}", where)
    return table


def _floats(rows: Iterable[FloatRow]) -> Table:
    """One line a kind and reason: a net has the same block many times."""
    groups: dict[tuple[str, str], list[FloatRow]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.why), []).append(row)
    table = Table(box=None, pad_edge=False)
    for column in ("not in INT8 kernels", "nodes", "why", "the first"):
        table.add_column(column, justify="right" if column == "nodes" else "left", overflow="fold")
    for (kind, why), members in groups.items():
        table.add_row(kind, str(len(members)), why, members[0].source or members[0].name)
    return table


def _summary(found: Inspection) -> list[str]:
    size = "x".join(map(str, found.input_shape))
    on = {"tensorrt": "TensorRT", "onnxruntime": f"onnxruntime (cpu {found.cpu})", "paper": "the paper's grids"}
    kernels = "INT8" if found.bits == 8 or found.target != "tensorrt" else "INT8 (4-bit values in INT8 kernels)"
    share = 100 * found.macs.int8 / found.macs.all if found.macs.all else 0.0
    return [
        f"{found.model} at {size}, {found.bits} bits, for {on[found.target]}",
        f"MACs an image: {found.macs.all:,}, of which {share:.2f} % in {kernels}",
        f"adds in INT8: {_of(found.adds)}; concats in INT8: {_of(found.concats)}",
        f"{found.nodes} nodes, {found.quantizers} activation quantizers",
        "s8: signed 8 bits, u7: unsigned 7 bits; accumulator: the sum goes into an add as it is",
    ]


def _of(share: Share) -> str:
    return f"{share.int8} of {share.all}"


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not (height and width):
        raise InputError(f"--input-size {text} is not a size.", "write --input-size 224, or 192x256 (height x width).")
    return height, width
