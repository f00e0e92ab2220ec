"""Does an ONNX file compute what the net does? Every code and logit, image by image, in memory that stays small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from engines.errors import InputError
from engines.ort import OrtRunner
from engines.parity import LogitParity, compare_codes, compare_logits, logits_of_bits
from engines.reference import ReferenceRunner
from engines.runner import CodeRunner, FloatArray
from faq_deploy.emit import output_names
from faq_deploy.net import QuantizedNet

__all__ = [
    "Agreement",
    "CodeCount",
    "OutputAgreement",
    "answers_of",
    "compare",
    "images_at_once",
    "torch_answers",
    "torch_codes",
]

IntArray = npt.NDArray[np.int64]

_LARGEST: Final = 8  # images at a time; more gain no speed
_MEMORY: Final = 512 * 2**20  # bytes for one runtime's codes


@dataclass(frozen=True)
class OutputAgreement:
    """One output of a runtime against PyTorch's.

    Attributes:
        name: in the ONNX file.
        compared, differing: values; 0.0 and -0.0 are one value.
        largest_difference: of two of them.
    """

    name: str
    compared: int = 0
    differing: int = 0
    largest_difference: float = 0.0

    def plus(self, close: LogitParity, compared: int) -> OutputAgreement:
        """With another batch.

        Args:
            close: of its values, as `compare_logits` found them.
            compared: how many they are.
        """
        largest = max(self.largest_difference, close.largest_difference)
        return OutputAgreement(self.name, self.compared + compared, self.differing + close.differing, largest)


@dataclass(frozen=True)
class Agreement:
    """One runtime against PyTorch on the check images.

    Attributes:
        runtime: `reference` or `onnxruntime (oracle)`.
        images: how many.
        codes_compared, differing: integer codes of all tensors.
        first: name of the first tensor that differs, or None.
        logits_compared, differing_logits: logits, or whatever the outputs hold; 0.0 and -0.0 are one value.
        flips: images with another top-1; of a net whose outputs are not one of (images, classes), images with any other
            value.
        largest_difference: of two logits.
        outputs: each output on its own.
    """

    runtime: str
    images: int
    codes_compared: int
    differing: int
    first: str | None
    logits_compared: int
    differing_logits: int
    flips: int
    largest_difference: float
    outputs: tuple[OutputAgreement, ...] = ()

    @property
    def equal(self) -> bool:
        """Same codes and same logits."""
        return self.differing == 0 and self.largest_difference == 0.0


def compare(net: QuantizedNet, path: Path, batches: Iterable[FloatArray]) -> list[Agreement]:
    """Run the same images through PyTorch, the integer reference and onnxruntime without optimizations.

    Args:
        net: on the CPU, calibrated, in eval mode.
        path: the ONNX file that was made of it.
        batches: float32, shape (N, C, H, W), preprocessed.

    Returns:
        The reference's and the oracle's agreement with PyTorch.

    Raises:
        InputError: the file holds other tensors than the net, or can't be run.
    """
    runners: dict[str, CodeRunner] = {
        "reference": ReferenceRunner(path),
        "onnxruntime (oracle)": OrtRunner(path, oracle=True, with_codes=True),
    }
    totals = {name: _Total() for name in runners}
    try:
        step = 0
        for images in batches:
            step = step or images_at_once(net, images[:1])
            for start in range(0, len(images), step):
                piece = images[start : start + step]
                wanted, answers = torch_answers(net, piece)
                for name, runner in runners.items():
                    totals[name].add(wanted, answers, runner.codes(piece))
    finally:
        for runner in runners.values():
            runner.close()
    return [total.agreement(name) for name, total in totals.items()]


def torch_codes(net: QuantizedNet, images: FloatArray) -> tuple[dict[str, IntArray], FloatArray]:
    """PyTorch's codes by ONNX tensor name (`NAME.codes`), and its logits.

    Args:
        net: on the CPU, calibrated, in eval mode.
        images: float32, shape (N, C, H, W).

    Returns:
        Of several outputs, the one named `logits`, or else the first.
    """
    codes, answers = torch_answers(net, images)
    return codes, answers.get("logits", next(iter(answers.values())))


def torch_answers(net: QuantizedNet, images: FloatArray) -> tuple[dict[str, IntArray], dict[str, FloatArray]]:
    """PyTorch's codes by ONNX tensor name (`NAME.codes`), and its outputs by their names in the ONNX file.

    Args:
        net: on the CPU, calibrated, in eval mode.
        images: float32, shape (N, C, H, W).
    """
    with torch.inference_mode():
        codes, output = net.codes(torch.from_numpy(images))
    return {f"{name}.codes": value.numpy() for name, value in codes.items()}, answers_of(net, output)


def answers_of(net: QuantizedNet, outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> dict[str, FloatArray]:
    """What a net returned, by the names of its outputs in the ONNX file.

    Args:
        net: the net.
        outputs: on the CPU, one tensor or several.
    """
    several = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    return {name: value.numpy() for name, value in zip(output_names(net), several, strict=True)}


def images_at_once(net: QuantizedNet, image: FloatArray) -> int:
    """How many images to compare together, so that their codes fit the memory that is set aside.

    Args:
        net: on the CPU, calibrated, in eval mode.
        image: float32, shape (1, C, H, W).
    """
    codes, _ = torch_codes(net, image)
    return int(max(1, min(_LARGEST, _MEMORY // max(1, sum(c.nbytes for c in codes.values())))))


@dataclass
class CodeCount:
    """How many of a runtime's codes differ from PyTorch's; it does not grow with the number of images.

    Attributes:
        compared, differing: integer codes of all tensors.
        first: name of the first tensor that differs, or None.
    """

    compared: int = 0
    differing: int = 0
    first: str | None = None

    def add(self, wanted: Mapping[str, IntArray], found: Mapping[str, IntArray]) -> None:
        """Count the codes of some more images.

        Args:
            wanted: PyTorch's, by ONNX tensor name.
            found: the runtime's; tensors that are flat in one may have positions in the other.

        Raises:
            InputError: the runtime's file has not these tensors.
        """
        foreign = next((n for n, v in wanted.items() if n not in found or found[n].size != v.size), None)
        if foreign is not None:
            raise InputError(
                f"the file holds another net: its tensor {foreign} is not there, or of another size.",
                "name the file that was exported from this model, or export it again.",
            )
        expected = {key: value.reshape(found[key].shape) for key, value in wanted.items()}
        parity = compare_codes(expected, found, list(wanted))
        self.compared += parity.compared
        self.differing += parity.differing
        if self.first is None and parity.first is not None:
            self.first = parity.first.tensor.removesuffix(".codes")


@dataclass
class _Total:
    """Running totals of one runtime."""

    codes: CodeCount = field(default_factory=CodeCount)
    images: int = 0
    flips: int = 0
    outputs: dict[str, OutputAgreement] = field(default_factory=dict)

    def add(
        self, wanted: Mapping[str, IntArray], answers: Mapping[str, FloatArray], found: Mapping[str, IntArray]
    ) -> None:
        self.codes.add(wanted, found)
        flips = 0
        for name, values in answers.items():
            close = compare_logits(values, logits_of_bits(found[name]))
            images, flips = close.images, max(flips, close.flips)
            self.outputs[name] = self.outputs.get(name, OutputAgreement(name)).plus(close, values.size)
        self.images += images
        self.flips += flips

    def agreement(self, name: str) -> Agreement:
        return Agreement(
            runtime=name,
            images=self.images,
            codes_compared=self.codes.compared,
            differing=self.codes.differing,
            first=self.codes.first,
            logits_compared=sum(output.compared for output in self.outputs.values()),
            differing_logits=sum(output.differing for output in self.outputs.values()),
            flips=self.flips,
            largest_difference=max((output.largest_difference for output in self.outputs.values()), default=0.0),
            outputs=tuple(self.outputs.values()),
        )
