"""The stages of an evaluation: each runs the same preprocessed images and keeps running totals."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from engines.invariance import BatchDependence, batch_dependence
from engines.parity import compare_logits, logits_of_bits, top1, topk
from engines.runner import CodeRunner, FloatArray, Runner
from faq_deploy.agreement import CodeCount, images_at_once, torch_codes
from faq_deploy.code_histograms import CodeHistograms
from faq_deploy.metrics import Total
from faq_deploy.report_model import Stage
from faq_deploy.statistics import Pairs, mcnemar, wilson
from faq_deploy.stored_net import StoredNet

__all__ = ["Example", "StageKind", "Tally", "TorchRunner", "compare_codes", "is_code_runner"]

IntArray = npt.NDArray[np.int64]
_IMAGES_IN_BATCHES: Final = 4
StageKind = Literal["float", "quantized", "reference", "onnxruntime", "engine"]


class TorchRunner:
    """A stored net as a runner on the CPU, where fp32 sums of codes are exact.

    Args:
        stored: the net.
        quantized: whether quantizers are on.
    """

    def __init__(self, stored: StoredNet, *, quantized: bool) -> None:
        self.name = "PyTorch quantized" if quantized else "PyTorch float"
        self._net = stored.net.eval()
        self._net.set_mode("quantize" if quantized else "float")

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Logits, float32, shape (N, classes)."""
        with torch.inference_mode():
            logits: FloatArray = self._net(torch.from_numpy(batch)).numpy()
        return logits

    def close(self) -> None:
        """Let go of the net."""
        del self._net


@dataclass(frozen=True)
class Example:
    """An image that a stage answers otherwise than PyTorch quantized.

    Attributes:
        position: among the images that were run.
        image: float32, shape (1, C, H, W).
        flipped: whether its top-1 is another one.
    """

    position: int
    image: FloatArray
    flipped: bool


def is_code_runner(runner: Runner) -> bool:
    """Whether a runner can show its codes."""
    return hasattr(runner, "codes")


@dataclass
class Tally:
    """Running totals of one stage; of each image only its answer is kept, four bytes."""

    name: str
    kind: StageKind
    runner: Runner | None
    limit: int | None = None  # images that this stage runs at most
    one_pass: bool = False  # codes come with the logits of a call, so that images are run once for both
    batches: Sequence[int] = ()  # sizes in which an image must get the logits that it gets alone
    skipped: str | None = None
    images: int = 0
    right: int = 0
    right5: int = 0
    has_top5: bool = True
    flips: int = 0
    lost: int = 0  # right in PyTorch quantized, wrong here
    gained: int = 0
    largest: float = 0.0
    seconds: float = 0.0
    answers: list[npt.NDArray[np.int32]] = field(default_factory=list)  # top-1 of each batch
    milliseconds: list[float] = field(default_factory=list)  # an image, of each batch
    largest_batch: int = 0
    codes: CodeCount = field(default_factory=CodeCount)
    batch_dependence: BatchDependence | None = None
    batches_tried: bool = False
    batches_judged: bool = False  # a difference breaks a gate
    metric: Total | None = None
    example: Example | None = None  # that differs; one with another top-1, if there is one
    coded: int = 0  # images whose codes were compared
    ready: list[tuple[FloatArray, float]] = field(default_factory=list)  # with `one_pass`: logits, and seconds for them

    def run(self, images: FloatArray, labels: IntArray, wanted: FloatArray | None) -> FloatArray:
        """Run a batch (cut to the limit) and count.

        Args:
            images: float32, shape (N, C, H, W).
            labels: int64, shape (N,).
            wanted: logits of PyTorch quantized on the same images, or None if this is that stage.

        Returns:
            This stage's logits.
        """
        assert self.runner is not None
        count = self.share(len(images))
        if count == 0:
            return np.zeros((0, 0), np.float32)
        logits, seconds = self._logits(images[:count])
        self.seconds += seconds
        self.milliseconds.append(1000 * seconds / count)
        self.largest_batch = max(self.largest_batch, count)
        self.images += count
        answers = top1(logits)
        self.answers.append(answers.astype(np.int32))
        if self.metric is not None:
            self.metric.update(logits, labels[:count])
        right = answers == labels[:count]
        self.right += int(np.count_nonzero(right))
        best = topk(logits, 5)
        self.has_top5 = best is not None
        if best is not None:
            self.right5 += int(np.count_nonzero((best == labels[:count, None]).any(1)))
        if wanted is not None:
            close = compare_logits(wanted[:count], logits)
            self.flips += close.flips
            wanted_right = top1(wanted[:count]) == labels[:count]
            self.lost += int(np.count_nonzero(wanted_right & ~right))
            self.gained += int(np.count_nonzero(right & ~wanted_right))
            self.largest = max(self.largest, close.largest_difference)
            if not close.equal:
                self._keep(images[:count], logits, wanted[:count])
        return logits

    def share(self, images: int) -> int:
        """How many of so many more images this stage runs."""
        return images if self.limit is None else max(0, min(images, self.limit - self.images))

    def _logits(self, images: FloatArray) -> tuple[FloatArray, float]:
        """Logits, and seconds; of the first images they may be there already, since their codes were compared."""
        assert self.runner is not None
        parts, self.ready = self.ready, []
        done = sum(len(part) for part, _ in parts)
        seconds = sum(taken for _, taken in parts)
        if done < len(images):
            start = time.perf_counter()
            parts = [*parts, (self.runner(images[done:]), 0.0)]
            seconds += time.perf_counter() - start
        return np.concatenate([part for part, _ in parts]), seconds

    def answered(self) -> IntArray:
        """The class that each image was given, in the order of the run; int64, shape (images,)."""
        return np.concatenate([np.zeros(0, np.int64), *self.answers])

    def compare_codes(self, images: FloatArray, wanted: Mapping[str, IntArray]) -> None:
        """Compare this stage's codes on some images with PyTorch quantized's."""
        if self.runner is None or not is_code_runner(self.runner):
            return
        runner: CodeRunner = self.runner  # type: ignore[assignment]
        start = time.perf_counter()
        found, before = runner.codes(images), self.codes.differing
        if self.one_pass:
            self.ready.append((logits_of_bits(found["logits"]), time.perf_counter() - start))
        self.codes.add(wanted, found)
        if self.codes.differing > before and self.example is None:
            row = next(i for i in range(len(images)) if _differ(wanted, found, i))
            self.example = Example(self.coded + row, images[row : row + 1].copy(), flipped=False)
        self.coded += len(images)

    def _keep(self, images: FloatArray, logits: FloatArray, wanted: FloatArray) -> None:
        """Remember an image that shows a difference."""
        flipped = top1(logits) != top1(wanted)
        if self.example is None or (flipped.any() and not self.example.flipped):
            row = int(flipped.argmax() if flipped.any() else (logits != wanted).any(axis=1).argmax())
            position = self.images - len(images) + row
            self.example = Example(position, images[row : row + 1].copy(), bool(flipped.any()))

    def try_batches(self, images: FloatArray, *, judged: bool = True) -> None:
        """See, on a few images, whether an image's logits depend on the batch that it comes in.

        Args:
            images: float32, shape (N, C, H, W); the first few are taken, and only the first time.
            judged: whether they must not; else a difference is for the eye alone.
        """
        if self.runner is None or not self.batches or self.batches_tried or not len(images):
            return
        self.batch_dependence = batch_dependence(self.runner, images[:_IMAGES_IN_BATCHES], self.batches)
        self.batches_tried, self.batches_judged = True, judged

    def stage(self) -> Stage:
        """The totals as a row of the report."""
        if self.skipped is not None or self.images == 0:
            return Stage(name=self.name, kind=self.kind, skipped=self.skipped or "there were no images for it")
        against = self.kind not in {"float", "quantized"}
        return Stage(
            name=self.name,
            kind=self.kind,
            images=self.images,
            top1=100 * self.right / self.images,
            top1_interval=wilson(self.right, self.images),
            top5=100 * self.right5 / self.images if self.has_top5 else None,
            metric=None if self.metric is None else self.metric.compute(),
            agreement_with_quantized=100 * (self.images - self.flips) / self.images,
            flips=self.flips,
            lost=None if self.kind == "quantized" else self.lost,
            gained=None if self.kind == "quantized" else self.gained,
            p_value=None
            if self.kind == "quantized"
            else mcnemar(Pairs(self.images, self.lost, self.gained, self.flips)),
            differing_codes=self.codes.differing if self.codes.compared else None,
            codes_compared=self.codes.compared or None,
            max_logit_difference=self.largest if against or self.kind == "float" else 0.0,
            images_per_second=self.images / self.seconds if self.seconds else None,
            latency_ms=float(np.median(self.milliseconds)),
            latency_p90_ms=float(np.quantile(self.milliseconds, 0.9)),
            largest_batch=self.largest_batch,
            batch_dependent_logits=_dependent(self.batch_dependence) if self.batches_judged else None,
        )


def _differ(wanted: Mapping[str, IntArray], found: Mapping[str, IntArray], row: int) -> bool:
    return any((codes[row].ravel() != found[name][row].ravel()).any() for name, codes in wanted.items())


def _dependent(found: BatchDependence | None) -> int:
    return 0 if found is None else found.values


def compare_codes(
    stored: StoredNet, images: FloatArray, shares: Sequence[tuple[Tally, int]], histograms: CodeHistograms | None = None
) -> None:
    """Compare stages' codes with PyTorch quantized's, a few images at a time: all their codes would fill the memory.

    Args:
        stored: the quantized net.
        images: float32, shape (N, C, H, W).
        shares: each stage, and how many of the images, from the first on, it compares.
        histograms: PyTorch quantized's codes are counted here.
    """
    images = images[: max((count for _, count in shares), default=0)]
    step = images_at_once(stored.net, images[:1]) if len(images) else 1
    for start in range(0, len(images), step):
        wanted, _ = torch_codes(stored.net, images[start : start + step])
        if histograms is not None:
            histograms.add(wanted)
        for tally, count in shares:
            left = min(count - start, step)
            if left > 0:
                tally.compare_codes(
                    images[start : start + left], {name: value[:left] for name, value in wanted.items()}
                )
