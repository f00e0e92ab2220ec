"""What a net is judged by besides top-1: built-in metrics, or a function or a class of the user's."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from engines.errors import InputError
from engines.parity import topk
from engines.runner import FloatArray
from faq_deploy.user_code import failures_named, named_in_file

__all__ = ["Metric", "NamedMetric", "Outputs", "Total", "given_metric", "named_metric", "outputs_for_metric"]

# One output, or several by name; one row an image.
Outputs = FloatArray | Mapping[str, FloatArray]

_IGNORED: Final = 255  # of a mask, as data sets mark what belongs to no class
_Found = TypeVar("_Found")
_WANTED: Final = "top-1, top-5 or another top-K, mean-iou, or FILE.py:NAME"
_REMEDY: Final = "correct the metric's file; it must run by itself."


def outputs_for_metric(outputs: Mapping[str, FloatArray]) -> Outputs:
    """What a metric is given of a net's outputs: the array alone where there is one."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


class Total(Protocol):
    """A metric of one stage, batch by batch, as torchmetrics has it."""

    def update(self, outputs: Outputs, targets: object) -> None:
        """Take in a batch.

        Args:
            outputs: float32, shape (N, ...); by name where the net has several.
            targets: of the same images.
        """
        ...

    def compute(self) -> float:
        """The value over all batches; higher is better."""
        ...


# A function of all outputs and targets, higher is better; or a class with `update` and `compute`.
Metric = Callable[[Outputs, object], float] | type[Total]


class NamedMetric:
    """A metric with the name that reports give it.

    Args:
        name: for reports.
        begin: makes a total for one stage.
        file: of the user's code, for messages; None where it isn't called by the command line.
    """

    def __init__(self, name: str, begin: Callable[[], Total], file: Path | None = None) -> None:
        self.name, self._begin, self._file = name, begin, file

    def total(self) -> Total:
        """A total of its own for a stage."""
        return _Checked(self.name, self._begin, self._file)


def named_metric(spec: str) -> NamedMetric:
    """The metric that a command line names.

    Args:
        spec: `top-K`, `mean-iou`, or `path/file.py:NAME` of a function or a class; that file is run.

    Raises:
        InputError: no such metric, or its file raises.
    """
    built_in = _built_in(spec)
    if built_in is not None:
        return built_in
    file_name, colon, _ = spec.rpartition(":")
    if not colon or not file_name.endswith(".py"):
        raise InputError(f"there is no metric {spec!r}.", f"choose {_WANTED}.")
    found, file = named_in_file(spec, "metrics", _REMEDY)
    return NamedMetric(spec, _begin(cast("Metric", found)), file)


def given_metric(metric: str | Metric) -> NamedMetric:
    """The metric that a call of the Python API names or gives.

    Args:
        metric: as for `named_metric`, or the function or class itself.

    Raises:
        InputError: no such metric.
    """
    if isinstance(metric, str):
        return named_metric(metric)
    if not callable(metric):
        raise InputError(f"a {type(metric).__name__} is no metric.", f"give a function or a class, or {_WANTED}.")
    return NamedMetric(getattr(metric, "__name__", type(metric).__name__), _begin(metric))


def _built_in(spec: str) -> NamedMetric | None:
    if spec == "mean-iou":
        return NamedMetric(spec, _MeanIou)
    found = re.fullmatch(r"top-([1-9]\d{0,5})", spec)
    if found is None:
        return None
    k = int(found[1])
    return NamedMetric(spec, lambda: _TopK(k))


def _begin(metric: Metric) -> Callable[[], Total]:
    if inspect.isclass(metric):
        made = cast("type[Total]", metric)
        missing = [name for name in ("update", "compute") if not callable(getattr(made, name, None))]
        if missing:
            raise InputError(
                f"the metric's class {made.__name__} has no method {missing[0]}.",
                "give it update(outputs, targets) and compute(), or pass a function (outputs, targets).",
            )
        return made
    return lambda: _Collected(metric)


class _Checked:
    """A total whose value is a number, and whose failures are told in one sentence."""

    def __init__(self, name: str, begin: Callable[[], Total], file: Path | None) -> None:
        self._name, self._file = name, file
        self._total: Total = self._run("making it", begin)

    def update(self, outputs: Outputs, targets: object) -> None:
        self._run("update", lambda: self._total.update(outputs, targets))

    def compute(self) -> float:
        value: object = self._run("the metric", self._total.compute)
        try:
            number = float(value)  # type: ignore[arg-type]  # it is the user's word that it is one
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the metric {self._name} gave a {type(value).__name__}, not a number.", "return a float."
            ) from error
        if not math.isfinite(number):
            raise InputError(f"the metric {self._name} gave {number}.", "return a finite number for these images.")
        return number

    def _run(self, what: str, call: Callable[[], _Found]) -> _Found:
        if self._file is None:
            return call()
        with failures_named(self._file, what, _REMEDY):
            return call()


class _Collected:
    """Keeps all outputs and targets for a function that wants them at once."""

    def __init__(self, function: Callable[[Outputs, object], float]) -> None:
        self._function = function
        self._outputs: list[Outputs] = []
        self._targets: list[object] = []

    def update(self, outputs: Outputs, targets: object) -> None:
        self._outputs.append(outputs)
        self._targets.append(targets)

    def compute(self) -> float:
        first = self._outputs[0]
        if isinstance(first, Mapping):
            parts = cast("list[Mapping[str, FloatArray]]", self._outputs)
            together: Outputs = {name: np.concatenate([part[name] for part in parts]) for name in first}
        else:
            together = np.concatenate(cast("list[FloatArray]", self._outputs))
        return self._function(together, _joined(self._targets))


def _joined(targets: Sequence[object]) -> object:
    """Arrays one behind the other; other targets as one list, an item an image."""
    if all(isinstance(part, np.ndarray) for part in targets):
        return np.concatenate(cast("list[npt.NDArray[np.generic]]", targets))
    return [item for part in targets for item in cast("Sequence[object]", part)]


class _TopK:
    """Percent of images whose class is among the k best."""

    def __init__(self, k: int) -> None:
        self._k, self._right, self._images = k, 0, 0

    def update(self, outputs: Outputs, targets: object) -> None:
        logits, classes = _only(outputs, f"top-{self._k}"), np.asarray(targets)
        if logits.ndim != 2:
            raise InputError(
                f"top-{self._k} got outputs of shape {logits.shape}, not one score for each image and class.",
                "take mean-iou for scores of masks, (N, classes, H, W), or else a metric of your own.",
            )
        best = topk(logits, self._k)
        if best is None:
            raise InputError(
                f"top-{self._k} of {logits.shape[1]} classes says nothing: every answer is right.", "take a smaller K."
            )
        if classes.shape != (len(logits),):
            raise InputError(
                f"top-{self._k} got targets of shape {classes.shape} for {len(logits)} images.",
                "give the index of one class an image.",
            )
        self._right += int(np.count_nonzero((best == classes[:, None]).any(1)))
        self._images += len(logits)

    def compute(self) -> float:
        return 100 * self._right / max(self._images, 1)


class _MeanIou:
    """Percent: intersection over union of predicted and true positions, the mean over classes that occur."""

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] | None = None

    def update(self, outputs: Outputs, targets: object) -> None:
        scores, masks = _only(outputs, "mean-iou"), np.asarray(targets)
        if scores.ndim < 3 or masks.shape != (len(scores), *scores.shape[2:]):
            raise InputError(
                f"mean-iou got outputs of shape {scores.shape} and masks of shape {masks.shape}.",
                "give scores (N, classes, H, W) and masks (N, H, W) of the same size, or a metric of your own.",
            )
        classes = scores.shape[1]
        known = (masks >= 0) & (masks != _IGNORED)
        true, answered = masks[known].astype(np.int64), scores.argmax(1)[known]
        if true.size and true.max() >= classes:
            raise InputError(
                f"a mask holds class {true.max()}, and the net has {classes}.", f"mark other places by {_IGNORED}."
            )
        counts = np.bincount(true * classes + answered, minlength=classes * classes).reshape(classes, classes)
        self._counts = counts if self._counts is None else self._counts + counts

    def compute(self) -> float:
        if self._counts is None or not self._counts.any():
            raise InputError("mean-iou saw no place with a class.", "give masks whose classes are not all ignored.")
        both = self._counts.diagonal()
        either = self._counts.sum(0) + self._counts.sum(1) - both
        occurs = either > 0
        return float(100 * (both[occurs] / either[occurs]).mean())


def _only(outputs: Outputs, name: str) -> FloatArray:
    """The output that built-in metrics read."""
    if not isinstance(outputs, Mapping):
        return outputs
    chosen = next((key for key in ("logits", "out") if key in outputs), None)
    if chosen is None:
        raise InputError(
            f"{name} reads one output, and the net has {', '.join(outputs)}.",
            "keep one of them, or give a metric of your own.",
        )
    return outputs[chosen]
