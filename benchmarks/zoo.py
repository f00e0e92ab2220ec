"""Which architectures the sweep takes: all of torchvision's classifiers, and the smallest of each timm family."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from engines.files import write_atomic

__all__ = ["Entry", "smallest_of_timm", "torchvision_entries"]

Entry = tuple[str, str]  # family, and the model as the command line names it


def torchvision_entries() -> list[Entry]:
    """Every classification model of torchvision, the smallest first; the family is its name."""
    from torchvision import models

    from faq_deploy.torchvision_zoo import torchvision_names

    sizes = {name: models.get_model_weights(name)["DEFAULT"].meta["num_params"] for name in torchvision_names()}
    return [(name, f"torchvision:{name}") for name in sorted(sizes, key=lambda name: sizes[name])]


def smallest_of_timm(cache: Path) -> list[Entry]:
    """The model with the fewest parameters of each of timm's modules; its models for tests don't count.

    Args:
        cache: a JSON file with what was found before, since counting makes every model of timm once.
    """
    import timm

    found: dict[str, str] = json.loads(cache.read_text("utf-8")) if cache.is_file() else {}
    for family in timm.list_modules():
        names = [name for name in timm.list_models(module=family) if not name.startswith("test_")]
        if family not in found and names:
            counts = dict(_parameter_counts(names)) if len(names) > 1 else {names[0]: 0}
            found[family] = min(counts, key=lambda name: counts[name])
            write_atomic(cache, json.dumps(found, indent=1, sort_keys=True) + "\n")
    return [(family, f"timm:{found[family]}") for family in sorted(found)]


def _parameter_counts(names: list[str]) -> Iterator[tuple[str, float]]:
    """Parameters by name; infinitely many for a model that can't be made without memory for them."""
    import timm
    import torch

    for name in names:
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
            yield name, float(sum(p.numel() for p in model.parameters()))
        except Exception:
            yield name, float("inf")
