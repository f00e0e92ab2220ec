"""The stages of an evaluation: each runs the same preprocessed images and keeps running totals."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from engines.parity import compare_codes, compare_logits, top1, topk
from engines.runner import CodeRunner, FloatArray, Runner
from faq_deploy.report_model import Stage
from faq_deploy.stored_net import StoredNet

__all__ = ["StageKind", "Tally", "TorchRunner", "is_code_runner"]

IntArray = npt.NDArray[np.int64]
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
        self.code_names = [f"{name}.codes" for name in self._net.quantizers()]

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Logits, float32, shape (N, classes)."""
        with torch.inference_mode():
            logits: FloatArray = self._net(torch.from_numpy(batch)).numpy()
        return logits

    def codes(self, batch: FloatArray) -> dict[str, IntArray]:
        """Codes by tensor name."""
        with torch.inference_mode():
            codes, _ = self._net.codes(torch.from_numpy(batch))
        return {f"{name}.codes": value.numpy() for name, value in codes.items()}

    def close(self) -> None:
        """Let go of the net."""
        del self._net


def is_code_runner(runner: Runner) -> bool:
    """Whether a runner can show its codes."""
    return hasattr(runner, "codes")


@dataclass
class Tally:
    """Running totals of one stage; memory does not grow with the number of images."""

    name: str
    kind: StageKind
    runner: Runner | None
    limit: int | None = None  # images that this stage runs at most
    skipped: str | None = None
    images: int = 0
    right: int = 0
    right5: int = 0
    has_top5: bool = True
    flips: int = 0
    largest: float = 0.0
    differing: int | None = None
    compared: int = 0
    seconds: float = 0.0
    first: str | None = field(default=None)

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
        count = len(images) if self.limit is None else max(0, min(len(images), self.limit - self.images))
        if count == 0:
            return np.zeros((0, 0), np.float32)
        start = time.perf_counter()
        logits = self.runner(images[:count])
        self.seconds += time.perf_counter() - start
        self.images += count
        self.right += int(np.count_nonzero(top1(logits) == labels[:count]))
        best = topk(logits, 5)
        self.has_top5 = best is not None
        if best is not None:
            self.right5 += int(np.count_nonzero((best == labels[:count, None]).any(1)))
        if wanted is not None:
            close = compare_logits(wanted[:count], logits)
            self.flips += close.flips
            self.largest = max(self.largest, close.largest_difference)
        return logits

    def compare_codes(self, images: FloatArray, wanted: dict[str, IntArray]) -> None:
        """Compare this stage's codes on some images with PyTorch quantized's."""
        if self.runner is None or not is_code_runner(self.runner):
            return
        runner: CodeRunner = self.runner  # type: ignore[assignment]
        found = runner.codes(images)
        expected = {name: value.reshape(found[name].shape) for name, value in wanted.items()}
        parity = compare_codes(expected, found, list(wanted))
        self.differing = (self.differing or 0) + parity.differing
        self.compared += parity.compared
        if parity.first is not None and self.first is None:
            self.first = parity.first.tensor.removesuffix(".codes")

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
            top5=100 * self.right5 / self.images if self.has_top5 else None,
            agreement_with_quantized=100 * (self.images - self.flips) / self.images,
            flips=self.flips,
            differing_codes=self.differing,
            codes_compared=self.compared if self.differing is not None else None,
            max_logit_difference=self.largest if against or self.kind == "float" else 0.0,
            images_per_second=self.images / self.seconds if self.seconds else None,
        )
