"""What every runtime offers: a batch of preprocessed images in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["CodeRunner", "FloatArray", "OutputRunner", "Runner"]

FloatArray = npt.NDArray[np.float32]


class Runner(Protocol):
    """A loaded engine. Use as `logits = runner(batch)`, then `runner.close()`."""

    name: str

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Run one batch.

        Args:
            batch: float32, shape (N, C, H, W), any memory layout, N >= 0.

        Returns:
            float32 logits, shape (N, classes); of several outputs the one named `logits`, or else the first.
        """
        ...

    def close(self) -> None:
        """Release what the runner holds; calling it twice is harmless."""
        ...


class OutputRunner(Runner, Protocol):
    """A runner of nets with one output or several."""

    def outputs(self, batch: FloatArray) -> dict[str, FloatArray]:
        """Run one batch.

        Args:
            batch: as for a call.

        Returns:
            Every output by name, float32, shape (N, ...).
        """
        ...


class CodeRunner(Runner, Protocol):
    """A runner that can also show the integer codes inside the net."""

    code_names: Sequence[str]

    def codes(self, batch: FloatArray) -> dict[str, npt.NDArray[np.int64]]:
        """Run one batch and return every quantized tensor's codes by name, and `logits` as float32 bits.

        Where there are several outputs, each one's bits are there under its name, too.

        Zero points are subtracted, so that the codes of all runtimes and storage types are comparable.
        """
        ...
