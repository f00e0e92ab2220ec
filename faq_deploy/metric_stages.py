"""A metric of the same images in the float model, PyTorch quantized and onnxruntime as `check` compares it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from engines.ort import OrtRunner
from engines.runner import FloatArray
from faq_deploy.agreement import answers_of
from faq_deploy.capture import choose_outputs
from faq_deploy.metrics import NamedMetric, Outputs, outputs_for_metric
from faq_deploy.net import QuantizedNet
from faq_deploy.tracing import evaluating, labelled

__all__ = ["MetricStages"]

_FLOAT: Final = "PyTorch float"
_QUANTIZED: Final = "PyTorch quantized"
_ENGINE: Final = "onnxruntime"


class MetricStages:
    """Running totals of a metric.

    Args:
        metric: each stage gets a total of its own.
        net: on the CPU, calibrated, in eval mode.
        path: the ONNX file that was made of it.
        float_model: that the net was made of; None leaves it out.
        output: which of its outputs the net keeps, as `choose_outputs` takes it.
    """

    def __init__(
        self,
        metric: NamedMetric,
        net: QuantizedNet,
        path: Path,
        float_model: nn.Module | None = None,
        output: str | None = None,
    ) -> None:
        self._net, self._float, self._output = net, float_model, output
        self._runner = OrtRunner(path, oracle=True)  # whose outputs `check` compares
        stages = [*([_FLOAT] if float_model is not None else []), _QUANTIZED, _ENGINE]
        self._totals = {name: metric.total() for name in stages}

    def add(self, images: FloatArray, targets: object) -> None:
        """Run a batch in every stage.

        Args:
            images: float32, shape (N, C, H, W).
            targets: of them.
        """
        for name, total in self._totals.items():
            total.update(self._outputs(name, images), targets)

    def values(self) -> dict[str, float]:
        """The metric by stage, over all batches."""
        return {name: total.compute() for name, total in self._totals.items()}

    def close(self) -> None:
        """Release onnxruntime's session."""
        self._runner.close()

    def _outputs(self, name: str, images: FloatArray) -> Outputs:
        if name == _ENGINE:
            return outputs_for_metric(self._runner.outputs(images))
        if name == _QUANTIZED:
            with torch.inference_mode():
                return outputs_for_metric(answers_of(self._net, self._net(torch.from_numpy(images))))
        assert self._float is not None
        device = next((parameter.device for parameter in self._float.parameters()), torch.device("cpu"))
        with evaluating(self._float), torch.inference_mode():
            found = labelled(self._float(torch.from_numpy(images).to(device)))
        tensors = {label: value.cpu() for label, value in found.items() if isinstance(value, Tensor)}
        kept = choose_outputs(tensors, self._output)
        return outputs_for_metric(answers_of(self._net, tuple(tensors[label] for label in kept)))
