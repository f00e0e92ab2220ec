"""The batch sizes that an engine is built for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engines.errors import InputError

__all__ = ["DEFAULT_PROFILE", "Profile", "Shapes", "parse_profile"]

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # one input's smallest, best and largest shape


@dataclass(frozen=True)
class Profile:
    """Batch sizes that an engine takes: it is fastest at `best`."""

    smallest: int = 1
    best: int = 8
    largest: int = 32

    def __str__(self) -> str:
        return f"{self.smallest}:{self.best}:{self.largest}"

    def shapes(self, shape: tuple[int, ...]) -> Shapes:
        """An input's three shapes; -1 as its first size means that the batch is dynamic."""
        if shape[:1] != (-1,):
            return shape, shape, shape
        rest = shape[1:]
        return (self.smallest, *rest), (self.best, *rest), (self.largest, *rest)


DEFAULT_PROFILE: Final = Profile()


def parse_profile(text: str) -> Profile:
    """Read "MIN:OPT:MAX" batch sizes, such as "1:8:32".

    Args:
        text: what the user wrote.

    Returns:
        The three sizes.

    Raises:
        InputError: not three whole numbers from 1 in rising order.
    """
    parts = text.split(":")
    sizes = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if len(parts) != 3 or len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise InputError(
            f"--batch {text} is not MIN:OPT:MAX batch sizes in rising order.", "pass for example --batch 1:8:32."
        )
    return Profile(*sizes)
