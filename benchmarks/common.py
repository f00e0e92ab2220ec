"""What the benchmarks share: nets with random weights, interleaved timing, the machine, and the table."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from engines.files import write_atomic
from engines.ort import cpu_features

if TYPE_CHECKING:
    from torch import Tensor, nn

    from faq_deploy.recipe import Recipe
    from faq_deploy.stored_net import StoredNet

__all__ = [
    "Cell",
    "Clock",
    "Machine",
    "Row",
    "add_one_core",
    "chosen_clock",
    "goal",
    "interleaved",
    "make_parser",
    "markdown",
    "median_ratio",
    "noise",
    "publish",
    "quantized",
    "random_net",
    "recipe_of",
    "settle",
    "this_machine",
]

Cell = str | int | float | None
Row = Mapping[str, Cell]
Clock = Callable[[], float]

_ROOT: Final = Path(__file__).resolve().parents[1]
_SEED: Final = 0
_TOO_NOISY: Final = 10.0  # percent: more than what the goals leave room for

_NOISE: Final = "+-, %"  # the column of `noise`


@dataclass(frozen=True)
class Machine:
    """What a figure depends on.

    Attributes:
        cpu: its name.
        vnni: whether it has 8-bit dot products: "yes", "no" or "unknown".
        cores: that this process may use.
        load: average number of busy processes in the last minute, before the run; over 0.3 or so, figures are noisy.
        torch, onnxruntime: versions.
        commit: of this repository, with "+" if files were changed since.
    """

    cpu: str
    vnni: str
    cores: int
    load: float
    torch: str
    onnxruntime: str
    commit: str


def this_machine() -> Machine:
    """The machine as it is now; call before the work starts."""
    features = cpu_features()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    changed = "+" if _git("status", "--porcelain") else ""
    load = round(os.getloadavg()[0], 1)
    return Machine(
        features.model, features.vnni, cores, load, version("torch"), version("onnxruntime"), commit + changed
    )


def make_parser(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has.

    Args:
        description: of the benchmark.
        rounds: default number of rounds.

    Returns:
        A parser to which a benchmark adds its own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each case, after one that warms up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as well")
    return parser


def add_one_core(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark of torch the option that `chosen_clock` reads."""
    text = "torch on one thread, and its CPU time instead of wall time: figures that a busy machine spoils less"
    parser.add_argument("--one-core", action="store_true", help=text)


def chosen_clock(arguments: argparse.Namespace) -> Clock:
    """Seconds by wall time; with --one-core, CPU time of this process, and torch gets one thread."""
    if not arguments.one_core:
        return time.perf_counter
    import torch

    torch.set_num_threads(1)
    return time.process_time


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each case, once a round, so that a busy machine hits all of them alike.

    Args:
        cases: what to call, by name. Each is called once before the first round.
        rounds: how many; every other one runs in reverse order.
        clock: seconds.

    Returns:
        `rounds` figures for each name.
    """
    for run in cases.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        order = list(cases) if number % 2 == 0 else list(cases)[::-1]
        for name in order:
            start = clock()
            cases[name]()
            seconds[name].append(clock() - start)
    return seconds


def median_ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of one case's time by another's in the same round."""
    return statistics.median(mine / other for mine, other in zip(seconds, base, strict=True))


def noise(seconds: Sequence[float]) -> dict[str, Cell]:
    """The cell that says how noisy a median is: half the spread of the rounds in percent of it."""
    return {_NOISE: 100 * (max(seconds) - min(seconds)) / 2 / statistics.median(seconds)}


def goal(value: float, *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Cell]:
    """The cells `wanted` and `met` of a row; empty where nothing is wanted."""
    if at_most is not None:
        return {"wanted": f"<= {at_most:g}", "met": "yes" if value <= at_most else "NO"}
    if at_least is not None:
        return {"wanted": f">= {at_least:g}", "met": "yes" if value >= at_least else "NO"}
    return {"wanted": None, "met": None}


def publish(title: str, machine: Machine, rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Print the machine and one Markdown table; write both as JSON if `--json` was given.

    Args:
        title: says what was measured.
        machine: where.
        rows: cells by column; the first row has all columns, in order.
        arguments: parsed with `make_parser`.

    Raises:
        InputError: the JSON file can't be written.
    """
    print(f"{title}\n")
    print(
        f"{machine.cpu}, {machine.cores} cores, VNNI {machine.vnni}, load before {machine.load:g}; "
        f"torch {machine.torch}, onnxruntime {machine.onnxruntime}; commit {machine.commit}\n"
    )
    print(markdown(rows), end="")
    if any(isinstance(spread := row.get(_NOISE), float) and spread > _TOO_NOISY for row in rows):
        print(f"\nSome rounds differ by over {_TOO_NOISY:g} % from their median: repeat on a quiet machine.")
    if arguments.json is not None:
        options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        record = {"title": title, "machine": asdict(machine), "arguments": options, "rows": list(rows)}
        write_atomic(arguments.json, json.dumps(record, indent=1) + "\n")


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table; the first row has all columns, in order."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *[[_text(row.get(column)) for column in columns] for row in rows]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def random_net(name: str, images: Tensor) -> nn.Module:
    """A net of torchvision's or timm's in eval mode, its weights random, its batch norms' statistics those of `images`.

    With torchvision's own statistics (mean 0, variance 1) activations would grow from layer to layer.

    Args:
        name: such as `resnet18`; `timm:` or `builtin:` and a name of timm's or ours.
        images: float32, shape (N, 3, H, W).

    Returns:
        The net, in fp32.
    """
    import torch
    import torchvision

    torch.manual_seed(_SEED)
    net: torch.nn.Module
    if name.startswith("timm:"):
        import timm

        net = timm.create_model(name.removeprefix("timm:"))
    elif name.startswith("builtin:"):
        from faq_deploy.models import load_model

        net = load_model(name, "random").module
    elif name == "inception_v3":
        net = torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=True)
    else:
        net = torchvision.models.get_model(name, weights=None)
    settle(net, images)
    return net


def settle(net: nn.Module, images: Tensor) -> None:
    """Give all batch norms the statistics of `images`, and put the net into eval mode.

    Args:
        net: changed in place.
        images: float32, shape (N, C, H, W).
    """
    import torch

    norms = [m for m in net.eval().modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    own = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = None  # a plain average over the one batch
    with torch.no_grad():
        net(images)
    for norm, momentum in zip(norms, own, strict=True):
        norm.momentum = momentum
    net.eval()


def recipe_of(
    bits: Literal[8, 4] = 8, target: str = "tensorrt", batch_norm: str = "fold", cpu: Literal["any", "vnni"] = "any"
) -> Recipe:
    """The paper's recipe for `bits`, with these choices."""
    from faq_deploy.recipe import load_recipe, override

    choices = {"target": target, "quantizer.batch_norm": batch_norm, "cpu": cpu}
    return override(load_recipe(f"faq-{bits}bit"), choices)


def quantized(model: nn.Module, images: Tensor, recipe: Recipe) -> StoredNet:
    """Rewrite `model` and calibrate it on one batch.

    Args:
        model: in float.
        images: float32, shape (N, 3, H, W).
        recipe: as `recipe_of` makes it.

    Returns:
        The net in quantized mode, with the facts that export needs.
    """
    from engines.preprocess import Preprocessing
    from faq_deploy.activation_exponents import calibrate
    from faq_deploy.rewrite import rewrite
    from faq_deploy.stored_net import NetFacts, StoredNet

    net = rewrite(model, images[:2], recipe)
    ranges = calibrate(net, [images], recipe.calibration, recipe.target)
    facts = NetFacts(
        model="benchmark",
        weights_sha256=None,
        classes=(),
        preprocessing=Preprocessing(),
        ranges=[found.as_dict() for found in ranges],
    )
    return StoredNet(net=net.eval(), recipe=recipe, facts=facts)


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return result.stdout.strip()


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return str(cell)
