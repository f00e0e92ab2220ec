"""What `init` prints, and how its command line becomes options."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any, Final

from faq_deploy import parsed_options
from faq_deploy.new_run import QuantizeOptions
from faq_deploy.starter import Starter, findings

__all__ = ["init_options", "started"]

# `quantize` has these options and `init` has not
_NOT_ASKED: Final[dict[str, Any]] = {"recipe": None, "assignments": (), "device": "cpu", "workers": 0, "resume": False}


def init_options(model: str, options: dict[str, Any]) -> QuantizeOptions:
    """The options of `init` from what Click parsed.

    Raises:
        InputError: --mean or --std isn't a list of numbers.
    """
    return parsed_options.training_options(model, {**_NOT_ASKED, **options, "bits": (options["bits"],)})


def started(starter: Starter, *, as_json: bool) -> None:
    """Print what was found and chosen, and what to type next."""
    if as_json:
        facts = dataclasses.asdict(starter) | {"path": str(starter.path)}
        print(json.dumps(facts, indent=2))
        return
    for sentence in findings(starter):
        print(sentence)
    print()
    width = max(len(choice.key) for choice in starter.choices)
    for choice in starter.choices:
        print(f"{choice.key:<{width}}  {json.dumps(choice.value):<14}  {choice.reason}")
    print(f"\n{starter.path} says all this in its comments; change what you know better. Next:")
    for words in starter.commands:
        print(f"  {shlex.join(words)}")
