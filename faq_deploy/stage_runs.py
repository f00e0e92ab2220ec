"""The stages of a run, from PyTorch float to each engine, over the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engines.errors import InputError
from engines.image_batches import BadImages, OnBad, batches
from engines.images import ImageSet
from engines.ort import OrtRunner
from engines.reference import ReferenceRunner
from engines.run_folder import RunFolder
from faq_deploy.code_histograms import CodeHistograms
from faq_deploy.engine_stages import engine_stages
from faq_deploy.limits import Limits
from faq_deploy.metrics import NamedMetric
from faq_deploy.report_model import Engine
from faq_deploy.run_data import DataFacts, data_of_run
from faq_deploy.stages import Tally, TorchRunner, compare_codes
from faq_deploy.stored_net import StoredNet, load_net

__all__ = ["EvalOptions", "LoadedRun", "StageRuns", "load_run", "run_stages"]


@dataclass(frozen=True)
class EvalOptions:
    """How to evaluate.

    Attributes:
        batch_size: images a batch.
        code_images: images whose integer codes are compared, tensor by tensor.
        reference_images: images that the NumPy integer reference runs (about a second each at ResNet-18's size).
        engines: names under `engines/` to run; None takes all.
        limits: the gates.
        baseline: a report to compare with, or its run folder.
        on_bad: what to do about an image that can't be read.
        metric: what stages are judged by besides top-1.
    """

    batch_size: int = 32
    code_images: int = 64
    reference_images: int = 64
    engines: Sequence[str] | None = None
    limits: Limits = field(default_factory=Limits)
    baseline: Path | None = None
    on_bad: OnBad = "error"
    metric: NamedMetric | None = None


@dataclass(frozen=True)
class LoadedRun:
    """The files of a run, checked against its manifest."""

    run: RunFolder
    floating: StoredNet
    quantized: StoredNet
    onnx_path: Path
    data: DataFacts


def load_run(run: RunFolder) -> LoadedRun:
    """Open what `quantize` and `export` left.

    Raises:
        InputError: something is missing, was changed, or is stale.
    """
    quantized = run.require("quantize", "quantized.pt")
    path = run.require_fresh("export", "model.onnx", {"quantized.pt": "quantize"})
    floating = run.require("calibrate", "float.pt")
    return LoadedRun(run, load_net(floating), load_net(quantized), path, data_of_run(run))


@dataclass(frozen=True)
class StageRuns:
    """What the stages did.

    Attributes:
        tallies: PyTorch float, PyTorch quantized, then the others; one a stage.
        engines: what lies under `engines/`.
        indices: int64 [images], of those that could be read, in the order they ran.
        histograms: of the codes that were compared.
        in_float: whether parts of the net are kept in float.
        bad: images that could not be read.
    """

    tallies: list[Tally]
    engines: list[Engine]
    indices: np.ndarray
    histograms: CodeHistograms
    in_float: bool
    bad: BadImages

    @property
    def others(self) -> list[Tally]:
        """All stages besides PyTorch's."""
        return self.tallies[2:]


def run_stages(
    loaded: LoadedRun, images: ImageSet, options: EvalOptions, on_images: Callable[[int], None]
) -> StageRuns:
    """Run every stage over all images, each image decoded once.

    Args:
        loaded: the run.
        images: labelled, in the order of the run's classes.
        options: see `EvalOptions`.
        told: how many more images are done.

    Raises:
        InputError: no image can be read, a stale engine, NaN logits.
    """
    path = loaded.onnx_path
    floating = Tally("PyTorch float", "float", TorchRunner(loaded.floating, quantized=False))
    quantized = Tally("PyTorch quantized", "quantized", TorchRunner(loaded.quantized, quantized=True))
    others = [
        Tally("integer reference (NumPy)", "reference", ReferenceRunner(path), options.reference_images, one_pass=True),
        Tally("onnxruntime, optimizations off", "onnxruntime", OrtRunner(path, oracle=True)),
    ]
    in_float = any(node.is_float for node in loaded.quantized.net.graph)
    runs, engines = engine_stages(loaded.run, path, options.engines)
    others += runs
    for tally in (floating, quantized, *others):
        tally.metric = None if options.metric is None else options.metric.total()
    grids = {f"{name}.codes": layer.grid for name, layer in loaded.quantized.net.quantizers().items()}
    histograms, bad, indices = CodeHistograms(grids), BadImages(), list[np.ndarray]()
    try:
        for batch in batches(images, None, options.batch_size, on_bad=options.on_bad, bad=bad):
            count = max(0, options.code_images - quantized.images)
            shown = [tally for tally in others if tally.runner is not None]
            compared = [(tally, min(tally.share(len(batch.labels)), count)) for tally in shown]
            compare_codes(loaded.quantized, batch.images, compared, histograms)
            _run_batch(batch.images, batch.labels, quantized, [floating, *others], in_float)
            indices.append(batch.indices)
            on_images(len(batch.labels))
    finally:
        for tally in others:
            if tally.runner is not None:
                tally.runner.close()
    if not quantized.images:
        raise InputError(f"No image of {images.name} can be read.", "give a data folder with images.")
    return StageRuns([floating, quantized, *others], engines, np.concatenate(indices), histograms, in_float, bad)


def _run_batch(
    images: np.ndarray, labels: np.ndarray, quantized: Tally, others: Sequence[Tally], in_float: bool
) -> None:
    """Run every stage."""
    wanted = quantized.run(images, labels, None)
    for tally in others:
        if tally.runner is None:
            continue
        tally.run(images, labels, wanted)
        tally.try_batches(images, judged=not in_float)  # nobody promises that a float sum is the same in every batch
