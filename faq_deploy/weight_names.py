"""Names of a state dict that are not those of the model: which they are, and why that probably is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Misfit", "essential", "misfit", "some"]

Source = Literal["file", "state dict"]

_EXAMPLES: Final = 3
_PREPARED: Final = "signature"  # the buffer that every prepared model has


@dataclass(frozen=True)
class Misfit:
    """What is wrong with the names, the likely cause with it, and what to do."""

    what: str
    remedy: str


def misfit(
    wanted: Collection[str],
    given: Collection[str],
    missing: Sequence[str],
    unknown: Sequence[str],
    source: Source = "file",
) -> Misfit:
    """Say how the names of a state dict differ from a model's.

    Args:
        wanted: all names of the model.
        given: all names of the state dict.
        missing: those of the model that the state dict lacks and must have.
        unknown: those of the state dict that the model lacks.
        source: what holds the names, for the sentence.

    Returns:
        Half a sentence, which begins with how many are missing, and a remedy.
    """
    found = []
    if missing:
        found.append(f"{len(missing)} of the model's {len(wanted)} entries are missing ({some(missing)})")
    if unknown:
        found.append(f"{len(unknown)} of the {source}'s {len(given)} are unknown to it ({some(unknown)})")
    cause, remedy = _likely(missing, unknown, len(given) - len(unknown), source)
    return Misfit(" and ".join(found) + (f"; {cause}" if cause else ""), remedy)


def essential(keys: Iterable[str]) -> list[str]:
    """Without the counters of batch norms, which decide nothing where momentum is a number."""
    return [key for key in keys if not key.endswith("num_batches_tracked")]


def some(names: Iterable[str]) -> str:
    """The first few."""
    listed = list(names)
    return ", ".join(listed[:_EXAMPLES]) + (", ..." if len(listed) > _EXAMPLES else "")


def _likely(missing: Sequence[str], unknown: Sequence[str], common: int, source: Source) -> tuple[str, str]:
    """The cause, or "", and the remedy."""
    before = _prefix(unknown, missing)
    if before:
        strip = f"{{k.removeprefix({before!r}): v for k, v in state.items()}}"
        return (
            f"in the {source} {before!r} stands before the model's names",
            f"save the state dict of that part alone, or take the prefix off: {strip}.",
        )
    within = _prefix(missing, unknown)
    if within:
        return (
            f"in the model {within!r} stands before the {source}'s names",
            f"name the model that was saved, or put the prefix before its names: {{{within!r} + k: v for k, v in "
            "state.items()}.",
        )
    if source == "state dict":
        return "", "pass the state dict of a model that was prepared alike, all of it."
    if _PREPARED in unknown:
        return "it is the state of a prepared model, not of a float one", "pass the weights of the float model."
    if not common:
        return "no name is the same in both", "name the model that the weights were trained with."
    layers = {key.rpartition(".")[0] for key in missing}
    if len(layers) == 1 and not unknown:
        return (
            f"a whole layer or a part of it, {layers.pop()}, was not saved",
            "pass weights that are whole; or load these in a function of your own (path/file.py:factory) and train "
            "the rest with `faq-deploy train`.",
        )
    return "", "pass weights of the same architecture, or name another model."


def _prefix(longer: Sequence[str], shorter: Sequence[str]) -> str:
    """What stands before at least half of the shorter names in the longer ones; "" where nothing does."""
    names, found = set(shorter), Counter[str]()
    for name in longer:
        parts = name.split(".")
        for place in range(1, len(parts)):
            if ".".join(parts[place:]) in names:
                found[".".join(parts[:place]) + "."] += 1
    ((prefix, count),) = found.most_common(1) or [("", 0)]
    return prefix if 2 * count >= len(shorter) else ""
