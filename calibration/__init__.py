"""Range estimators for activations: how far a layer's grid must reach. Needs torch and NumPy, nothing else."""

from __future__ import annotations

from calibration.entropy import EntropyRange
from calibration.errors import CalibrationError
from calibration.estimators import ESTIMATORS, Method, RangeEstimator, make_estimator
from calibration.percentile import PercentileRange
from calibration.power_of_two import power_of_two_ceiling, waste
from calibration.squared_error import MseRange

__all__ = [
    "ESTIMATORS",
    "CalibrationError",
    "EntropyRange",
    "Method",
    "MseRange",
    "PercentileRange",
    "RangeEstimator",
    "make_estimator",
    "power_of_two_ceiling",
    "waste",
]
