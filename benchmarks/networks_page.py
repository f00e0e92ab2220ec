"""docs/networks.md, from the results of networks.py and sweep.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.trial import Outcome, Trial
from engines.files import write_atomic

__all__ = ["PAGE", "RESULTS", "SMS", "Measured", "read_measured", "read_trials", "write_page"]

RESULTS: Final = Path(__file__).parent / "results"
PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
_MB: Final = 1e6
SMS: Final = (75, 89)


@dataclass(frozen=True)
class Measured:
    """One network of the paper's Table 1 through all four verbs.

    Attributes:
        network, bits, size: what was quantized; image size in pixels.
        parameters, macs: of the float model, for one image.
        int8_macs: those with 8-bit (or narrower) operands.
        nodes, quantizers: of the quantized graph.
        adds_int8, adds: residual adds whose operands are all codes or one fused accumulator, and all of them.
        concats_int8, concats: concats of codes, and all of them.
        onnx_bytes: of model.onnx.
        engine_bytes: by GPU architecture.
        seconds: of each step.
        peak_mib: resident memory of all steps but the engines'.
        images, codes, differing: compared with the reference and with onnxruntime, both together.
        layers, proven, worst: of the certificate; the worst layer's sum over 2^24.
        engine_notes: why an engine could not be built.
        passed, verdict: of `eval`, whose engines can't run without a GPU.
        load: busy processes on the machine when the run began.
    """

    network: str
    bits: int
    size: int
    parameters: int
    macs: int
    int8_macs: int
    nodes: int
    quantizers: int
    adds_int8: int
    adds: int
    concats_int8: int
    concats: int
    onnx_bytes: int
    engine_bytes: Mapping[str, int | None]
    engine_notes: Sequence[str]
    seconds: Mapping[str, float]
    peak_mib: int
    images: int
    codes: int
    differing: int
    layers: int
    proven: int
    worst: float
    passed: bool
    verdict: str
    load: float


def read_measured() -> list[Measured]:
    """Results of networks.py, in the order of the paper's table."""
    order = ("resnet18", "resnet34", "resnet50", "resnet152", "inception_v3", "densenet161", "vgg16_bn")
    found = [Measured(**json.loads(path.read_text("utf-8"))) for path in (RESULTS / "networks").glob("*.json")]
    return sorted(found, key=lambda m: (-m.bits, order.index(m.network)))


def read_trials() -> list[Trial]:
    """Results of sweep.py; of each model the last one."""
    path = RESULTS / "sweep.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return list({trial.model: trial for trial in map(Trial.from_json, lines)}.values())


def write_page() -> str:
    """Write docs/networks.md; returns a line that sums the sweep up."""
    trials = read_trials()
    torchvision = sorted((t for t in trials if t.model.startswith("torchvision:")), key=lambda t: t.model)
    timm = sorted((t for t in trials if t.model.startswith("timm:")), key=lambda t: t.family)
    parts = [_HEAD, _table(_MEASURED, read_measured()), _BETWEEN]
    for title, group in (("torchvision's classifiers", torchvision), ("timm, the smallest of each family", timm)):
        nets = [t for t in group if not t.is_transformer]
        exact = [t for t in nets if t.status == "exact"]
        parts += [f"### {title}\n\n{_counts(group)}\n", _table(_TRIED, exact)]
        refused = [t for t in nets if t.status != "exact"]
        if refused:
            parts.append(
                "Not exact in both targets:\n\n" + "\n".join(f"- `{t.model}`: {_why(t)}" for t in refused) + "\n"
            )
        named = [f"`{t.model.partition(':')[2]}`" for t in group if t.is_transformer]
        if named:
            parts.append(f"Refused by name, because they hold attention: {', '.join(named)}.\n")
    write_atomic(PAGE, "\n".join(parts).rstrip() + "\n")
    return "; ".join(f"{name}: {_counts(group)}" for name, group in (("torchvision", torchvision), ("timm", timm)))


def _counts(trials: Sequence[Trial]) -> str:
    nets = [t for t in trials if not t.is_transformer]
    exact = sum(t.status == "exact" for t in nets)
    share = 100 * exact / len(nets) if nets else 0
    return (
        f"{exact} of {len(nets)} convolutional or MLP architectures ({share:.0f} %) are exact in both deployment "
        f"targets; {len(trials) - len(nets)} are refused for their attention."
    )


def _why(trial: Trial) -> str:
    said: dict[str, list[str]] = {}
    for target, outcome in trial.outcomes.items():
        if outcome.status != "exact":
            said.setdefault(outcome.reason or outcome.status, []).append(target)
    return " ".join(": ".join(filter(None, (", ".join(targets), reason))) for reason, targets in said.items())


def _both(trial: Trial, read: Callable[[Outcome], int]) -> str:
    return " / ".join(f"{read(o):,}" for o in trial.outcomes.values())


_Columns = Mapping[str, Callable[..., str]]

_TRIED: Final[_Columns] = {
    "architecture": lambda t: f"`{t.model.partition(':')[2]}`",
    "pixels": lambda t: str(t.size or ""),
    "parameters, M": lambda t: f"{t.parameters / 1e6:.1f}",
    "nodes": lambda t: _both(t, lambda o: o.nodes),
    "quantizers": lambda t: _both(t, lambda o: o.quantizers),
    "layers proven": lambda t: " / ".join(f"{o.proven} of {o.layers}" for o in t.outcomes.values()),
    "codes compared": lambda t: _both(t, lambda o: o.codes),
}


def _engine(sm: int) -> Callable[[Measured], str]:
    def cell(m: Measured) -> str:
        size = m.engine_bytes.get(str(sm))
        return "" if size is None else f"{size / _MB:.1f}"

    return cell


_MEASURED: Final[_Columns] = {
    "network": lambda m: f"{m.network}, {m.bits} bits",
    "nodes": lambda m: str(m.nodes),
    "quantizers": lambda m: str(m.quantizers),
    "parameters, M": lambda m: f"{m.parameters / 1e6:.1f}",
    "MACs, G": lambda m: f"{m.macs / 1e9:.2f}",
    "MACs in INT8": lambda m: f"{100 * m.int8_macs / m.macs:.2f} %",
    "adds in INT8": lambda m: f"{m.adds_int8} of {m.adds}",
    "concats in INT8": lambda m: f"{m.concats_int8} of {m.concats}",
    "ONNX, MB": lambda m: f"{m.onnx_bytes / _MB:.1f}",
    **{f"engine SM{sm}, MB": _engine(sm) for sm in SMS},
    "rewrite and calibrate, s": lambda m: f"{m.seconds['quantize']:.0f}",
    "export with checks, s": lambda m: f"{m.seconds['export']:.0f}",
    "peak memory, GiB": lambda m: f"{m.peak_mib / 1024:.1f}",
    "codes that differ": lambda m: f"{m.differing} of {m.codes:,}",
    "layers proven": lambda m: f"{m.proven} of {m.layers} (worst {m.worst:.2f} x)",
}


def _table(columns: _Columns, rows: Iterable[object]) -> str:
    lines = [list(columns), ["---"] * len(columns), *[[cell(row) for cell in columns.values()] for row in rows]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


_HEAD: Final = """\
# Networks

Written by `benchmarks/networks.py` and `benchmarks/sweep.py`; edit those, not this page.

## The paper's Table 1

The seven networks of the paper, through `quantize` (without training), `export`, `build` and `eval`, for target
`tensorrt`. The weights are random (seeded), with batch norms that were given the statistics of photos: the arithmetic
is what is tested here, accuracy is in [accuracy.md](accuracy.md). Images are 224 pixels, 299 for Inception-v3, whose
auxiliary head is dropped.

- *Codes that differ*: of all integer codes of 32 photos, PyTorch against the NumPy integer reference and against
  onnxruntime without optimizations, both together.
- *MACs in INT8*: multiply-adds whose two operands are integer codes; in a 4-bit net they are 4-bit values in INT8
  kernels, since TensorRT has no INT4 convolution.
- *Adds in INT8*: one side is quantized, the other is the accumulator of the convolution that it fuses with.
- *Layers proven*: no input whatsoever can make a sum pass 2^24, so fp32 is exact in any order; the worst sum as a
  multiple of 2^24.
- *Engines* are built ahead of time with TensorRT-RTX on a machine without a GPU. Seconds and memory are those of a
  shared machine with two CPU cores, building engines left out.
"""

_BETWEEN: Final = """\
## The sweep

Architectures with random weights, calibrated on 8 noise images, exported at 8 bits, and compared on 4 images: exact
means that all codes and logits are identical in PyTorch, the NumPy integer reference and onnxruntime without
optimizations. Images have 64 pixels where the architecture takes them, else 96, 160 or its own size. Figures are for
target `tensorrt` / `onnxruntime`.
"""
