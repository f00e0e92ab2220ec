"""docs/results.md, from the results of experiments and peers and from the recipes of the paper's rows.

python experiments/results_page.py
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers.record import RESULTS as PEERS
from benchmarks.peers.record import Record as Peer
from benchmarks.peers.record import read_record as read_peer
from engines.files import write_atomic
from experiments import page_texts as texts
from experiments import paper
from experiments.plan import EXPERIMENTS, FLOAT, Experiment, Group, command
from experiments.record import RESULTS, Record, read_records
from experiments.summary import best, calibrated, difference, last, points, summary
from faq_deploy.recipe import Recipe, list_recipes, load_recipe
from faq_deploy.recipe_command import run_command

__all__ = ["NOT_RUN", "PAGE", "committed_page", "page"]

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "results.md"
NOT_RUN: Final = "not run"
_WIDTH: Final = 110  # of a command's lines

_ALLOWED: Final = {"8bit-fold": -0.1, "8bit-paper": -0.1, "4bit-fold": -0.3, "4bit-paper": -0.3}

Results = Mapping[str, Sequence[Record]]


def committed_page() -> str:
    """The page of the results and recipes in this checkout."""
    peers = sorted(map(read_peer, PEERS.glob("*.json")), key=lambda p: (p.activation_bits, p.epochs > 0, p.name))
    return page(read_records(RESULTS), [load_recipe(name) for name in list_recipes()], peers)


def page(results: Results, recipes: Sequence[Recipe], peers: Sequence[Peer]) -> str:
    """The text of docs/results.md.

    Args:
        results: by experiment, each by seed.
        recipes: all that come with the tool; those with a row of the paper are shown.
        peers: other libraries' results.

    Returns:
        Markdown.
    """
    parts = [
        texts.HEAD,
        _net(results),
        texts.MAIN,
        _experiments(results, "8bit", "4bit", "control"),
        texts.GRID,
        _experiments(results, "grid"),
        texts.RATES,
        _experiments(results, "lr"),
        texts.CHANGES,
        _changes(results),
        texts.PEERS,
        _peers(peers, results),
        texts.ROWS,
        _rows(recipes),
        texts.QUOTED,
        _quoted(),
        texts.FIGURES,
        _figures(),
        texts.COMMANDS,
        _commands(),
    ]
    return "\n".join(parts)


def _net(results: Results) -> str:
    records = results.get(FLOAT)
    if not records:
        return f"The float net: {NOT_RUN}.\n"
    found = records[0]
    return (
        f"The float net: **{found.best_top1:.2f} %** (epoch {found.best_epoch} of {len(found.epochs)}, which is kept; "
        f"{found.last_top1:.2f} % after the last), {_speed(records)} images/s. "
        f"{_places(results.values())}\n"
    )


def _places(results: Iterable[Sequence[Record]]) -> str:
    """One sentence on where all of it ran."""
    records = [record for records in results for record in records]
    machines = sorted({f"{r.hardware}, torch {r.torch}" for r in records})
    commits = sorted({r.commit for r in records})
    beside = max(r.beside for r in records)
    others = f", at most {beside + 1} runs at a time" if beside else ""
    return f"All ran on {'; '.join(machines)}, one thread each{others}; commits {', '.join(commits)} (+: with changes)."


def _experiments(results: Results, *groups: Group) -> str:
    """One row an experiment: top-1 along the way, and what it is above or below the float net and the control."""
    head = ("experiment", "epochs", "seeds", "float", "calibrated", "last epoch", "min to max", "best epoch")
    rows = []
    for experiment in (e for e in EXPERIMENTS if e.group in groups):
        records = results.get(experiment.name)
        if not records:
            rows.append([f"`{experiment.name}`", "", "", "", "", NOT_RUN, *[""] * 6])
            continue
        rows.append([f"`{experiment.name}`", *_figures_of(records), *_against(experiment, records, results)])
    names = (*head, "last − float", "last − trained-on float", "images/s", "wanted")
    used = [i for i in range(len(names)) if any(row[i] for row in rows)]
    return _table([names[i] for i in used], [[row[i] for i in used] for row in rows])


def _figures_of(records: Sequence[Record]) -> list[str]:
    floats, start, end = [r.float_top1 for r in records if r.float_top1 is not None], calibrated(records), last(records)
    return [
        str(len(records[0].epochs)),
        ", ".join(str(r.seed) for r in records),
        f"{floats[0]:.2f}" if floats else "",
        str(start) if start else "",
        f"**{end}**",
        f"{end.low:.2f} to {end.high:.2f}" if end.count > 1 else "",
        str(best(records)),
    ]


def _against(experiment: Experiment, records: Sequence[Record], results: Results) -> list[str]:
    floating, control = _float_top1(results), _control(experiment, results)
    above = difference(records, floating) if floating is not None else None
    wanted = _ALLOWED.get(experiment.name)
    verdict = ""
    if wanted is not None and above is not None:
        verdict = f"at least {wanted:+.1f}: {'met' if above >= wanted - 1e-9 else 'NOT MET'}"
    beyond = difference(records, control) if control is not None else None
    return [points(above), points(beyond), _speed(records), verdict]


def _float_top1(results: Results) -> float | None:
    records = results.get(FLOAT)
    return records[0].best_top1 if records else None


def _control(experiment: Experiment, results: Results) -> float | None:
    """Mean top-1 of the float net after the same schedule; None where it had another one."""
    name = {"8bit": "float-8bit-schedule", "4bit": "float-4bit-schedule"}.get(experiment.group)
    records = results.get(name) if name else None
    return last(records).mean if records else None


def _changes(results: Results) -> str:
    rows = []
    for change in paper.CHANGES:
        records, base = results.get(change.experiment), results.get(change.base)
        ours = str(last(records)) if records else NOT_RUN if change.experiment else ""
        moved = difference(records, last(base).mean) if records and base else None
        names = [f"`{name}`" if name else "" for name in (change.experiment, change.base)]
        rows.append([change.row, _percent(change.top1), points(change.change), *names, ours, points(moved)])
        rows[-1].append(_seeds(records))
    head = ("what is changed", "paper, ImageNet", "its change", "ours", "against", "top-1, CIFAR-10", "our change")
    return _table((*head, "seeds"), rows)


def _peers(peers: Sequence[Peer], results: Results) -> str:
    head = ("bits (w,a)", "library", "method", "scales", "epochs", "seeds", "calibrated", "last epoch", "last − float")
    rows = []
    for name, bits in (("8bit-fold", "8,8"), ("8bit-paper", "8,8"), ("4bit-fold", "4,4"), ("4bit-paper", "4,4")):
        records = results.get(name)
        if records:
            end, start = last(records), calibrated(records)
            scales = "po2, per channel" if name.endswith("fold") else "po2, per tensor"
            above = points(end.mean - records[0].float_top1) if records[0].float_top1 is not None else ""
            epochs = str(len(records[0].epochs))
            cells = [bits, "faq-deploy", f"`{name}`", scales, epochs, str(end.count), str(start or ""), f"**{end}**"]
            rows.append([*cells, above, ""])
    for peer in peers:
        end = summary(list(peer.top1.values()))
        start = summary(list(peer.calibrated_top1.values())) if peer.calibrated_top1 else None
        cells = [f"{peer.weight_bits},{peer.activation_bits}", f"{peer.library} {peer.version}", peer.method]
        cells += [f"{peer.scales}, per {peer.granularity}", str(peer.epochs), str(end.count)]
        rows.append([*cells, str(start or ""), f"**{end}**", points(end.mean - peer.float_top1), peer.notes])
    rows.sort(key=lambda row: -int(row[0].split(",")[0]))
    lines = "".join(f"{peer.command}\n" for peer in peers)
    return _table((*head, "notes"), rows) + (f"\n```\n{lines}```\n" if lines else "")


def _rows(recipes: Sequence[Recipe]) -> str:
    tables_first = sorted(recipes, key=lambda r: (not r.paper.row.startswith("Table"), r.paper.row))
    rows = [
        [
            r.paper.row,
            f"`{r.name}`",
            _percent(r.paper.float_top1),
            _percent(r.paper.top1),
            NOT_RUN,
            f"`{shlex.join(run_command(r))}`",
        ]
        for r in tables_first
        if r.paper.row
    ]
    return _table(("row of the paper", "recipe", "paper, float", "paper", "ours", "command"), rows)


def _quoted() -> str:
    rows = [
        [q.network, q.method, q.bits, f"{q.top1:.2f}", "" if q.top5 is None else f"{q.top5:.2f}"]
        for q in (*paper.BASELINES, *paper.COMPARED)
    ]
    return _table(("network", "method", "bits (w,a)", "top-1", "top-5"), rows)


def _figures() -> str:
    rows = [[f.name, f.shows, f"`faq-deploy analyze {f.verb} RUN`"] for f in paper.FIGURES]
    return _table(("figure", "the paper's", "ours"), rows)


def _commands() -> str:
    """Of every experiment, with its first seed."""
    lines = []
    for experiment in EXPERIMENTS:
        words = _wrapped(["faq-deploy", *command(experiment, experiment.seeds[0])])
        seeds = f"; seeds {', '.join(map(str, experiment.seeds))}" if len(experiment.seeds) > 1 else ""
        row = f"; the paper's {experiment.row}" if experiment.row else ""
        lines.append(f"# {experiment.name}: {experiment.question}{row}{seeds}\n{words}\n")
    return "```\n" + "\n".join(lines) + "```\n"


def _wrapped(words: Sequence[str]) -> str:
    """A command over several lines, each option on one line with its value."""
    lines = [""]
    for number, word in enumerate(words):
        following = words[number + 1] if word.startswith("-") and number + 1 < len(words) else ""
        if word.startswith("-") and len(f"{lines[-1]} {word} {following}") > _WIDTH:
            lines.append("   ")
        lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines).strip()


def _seeds(records: Sequence[Record] | None) -> str:
    return ", ".join(str(r.seed) for r in records) if records else ""


def _speed(records: Sequence[Record]) -> str:
    return f"{summary([e.images_per_second for r in records for e in r.epochs]).mean:.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *[[*row, *[""] * (len(head) - len(row))] for row in rows]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    write_atomic(PAGE, committed_page())
