"""The one error of this package; callers add the layer's name and a remedy."""

from __future__ import annotations

__all__ = ["CalibrationError"]


class CalibrationError(ValueError):
    """A range can't be estimated from what was given: NaN, Inf, an empty batch, no batch, or a bad setting."""
