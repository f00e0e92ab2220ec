"""JSON from files that may hold anything."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["read_json"]


def read_json(text: str | bytes | bytearray) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is none, or nests so deeply that Python's reader ends in a RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError:  # one way to attack a reader
        raise ValueError("it is nested too deeply") from None
