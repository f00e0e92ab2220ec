"""The verb `analyze`: what a run's own data and weights say about its quantization; results go into RUN/analysis."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from engines.errors import InputError
from engines.files import atomic_path
from engines.image_batches import BadImages, batches
from engines.run_folder import RunFolder, writes
from faq_deploy import __version__
from faq_deploy.analysis_facts import ExponentFacts, NoiseFacts, SimilarityFacts
from faq_deploy.analysis_plots import exponents_plot, noise_plot, similarity_plot
from faq_deploy.calibrated_run import begin_run, is_random
from faq_deploy.checkpoint import METRICS
from faq_deploy.code_occupancy import activation_occupancy, exponent_counts, weight_occupancy
from faq_deploy.gradient_noise import GradientNoise, StepNoise, gradient_noise, step_noise, with_weight_bits
from faq_deploy.net import QuantizedNet
from faq_deploy.new_run import pick_device
from faq_deploy.place import inner_layers
from faq_deploy.quantize import Batches, float_teacher
from faq_deploy.ranks import one_process
from faq_deploy.recipe import TrainingSection, override
from faq_deploy.repeatable import repeatable
from faq_deploy.run_data import data_of_run, reopen_data, reopen_validation
from faq_deploy.similarity import network_similarity, neuron_similarity, used_weight, weights_of
from faq_deploy.stored_net import StoredNet, load_net

__all__ = ["NoiseOptions", "exponents_verb", "noise_verb", "similarity_verb"]

_FOLDER: Final = "analysis"
_WIDTHS: Final = range(2, 9)


@dataclass(frozen=True)
class NoiseOptions:
    """What to measure.

    Attributes:
        widths: bits of the weights.
        batches: that gradients are compared on.
        steps: of SGD for the paper's measure; 0 leaves it out.
        batch_size: images in a batch; None is the recipe's.
        data: another place of the run's images.
        device: `auto`, `cpu`, `cuda`.
    """

    widths: Sequence[int] = (8, 6, 5, 4, 3)
    batches: int = 10
    steps: int = 300
    batch_size: int | None = None
    data: str | None = None
    device: str = "auto"


@writes("analyze noise")
def noise_verb(run: RunFolder, options: NoiseOptions, say: Callable[[str], None]) -> tuple[NoiseFacts, Path]:
    """Measure gradient noise; see `faq-deploy analyze noise --help`.

    Returns:
        What was measured, and the JSON file that has it, beside a picture.

    Raises:
        InputError: no calibrated run, its data are gone, a width that can't be, or training diverged.
    """
    widths = sorted(set(options.widths), reverse=True)
    for bits in widths:
        if bits not in _WIDTHS:
            raise InputError(f"--bits {bits} can't be measured.", "pass widths from 2 to 8.")
    stored = begin_run(run).stored
    recipe = stored.recipe
    if options.batch_size is not None:
        recipe = override(recipe, {"training.batch_size": options.batch_size})
    inner = inner_layers(stored.net.graph)
    if not inner:
        raise InputError(
            f"{run.path} has no layer whose weights follow --bits.",
            "take a net with more than a first and a last quantized layer, whose bits no --bits PATTERN=N chose.",
        )
    ranks = one_process(pick_device(options.device))
    splits = reopen_data(data_of_run(run), stored.facts.preprocessing, stored.facts.classes, options.data)
    augment = splits.augment if recipe.training.augment == "auto" else recipe.training.augment
    source = Batches(splits.train, recipe, augment, 0, "error", BadImages(), ranks)

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.chain.from_iterable(source.batches(epoch, 0) for epoch in itertools.count())

    training = recipe.training.model_copy(update={"epochs": max(recipe.training.epochs, 1)})  # 0: trained all the same
    with repeatable(ranks.device):
        say(f"comparing gradients on {options.batches} batch{'es' if options.batches != 1 else ''}")
        first = itertools.islice(stream(), options.batches)
        gradients = gradient_noise(stored.net, first, widths, training, ranks)
        walks: dict[int, StepNoise] = {}
        for bits in widths if options.steps else ():
            say(f"taking {options.steps} step{'s' if options.steps != 1 else ''} with {bits}-bit weights")
            teacher = float_teacher(run, ranks.device) if training.distill > 0 else None
            changed = with_weight_bits(stored.net, bits)
            walks[bits] = step_noise(changed, stream(), options.steps, training, ranks, teacher=teacher)
    facts = _noise_facts(stored.net, inner, gradients, walks, options, training)
    picture = noise_plot(facts.gradient_cosine, facts.batch_cosine, facts.step_cosine, facts.float_step_cosine)
    return facts, _write(run, "noise", asdict(facts), picture, ["float.pt"])


@writes("analyze similarity")
def similarity_verb(run: RunFolder) -> tuple[SimilarityFacts, Path]:
    """Compare the fine-tuned weights with the float ones; see `faq-deploy analyze similarity --help`.

    Raises:
        InputError: the run is not fine-tuned, or a file was changed.
    """
    tuned = _tuned(run)
    step = run.manifest().steps["quantize"]
    if not step.facts.get("epochs"):
        raise InputError(
            f"{run.path} was calibrated and not fine-tuned: its weights are still the float net's.",
            f"train it with `faq-deploy quantize --resume --epochs N -o {run.path}`.",
        )
    floating = load_net(run.require("calibrate", "float.pt")).net
    start, now = weights_of(floating), weights_of(tuned.net)
    used = {n: layer.product.by_channel(used_weight(layer)) for n, layer in tuned.net.weighted().items()}
    originals = {name: start[name] for name in used}
    epochs, _, warnings = _epochs(run)
    if tuned.facts.epoch == 0:
        warnings.append("every epoch of fine-tuning was worse than calibration alone: these are the weights before it.")
    if is_random(tuned.facts):
        warnings.append("training began from random weights: these are what the others are compared with.")
    facts = SimilarityFacts(
        network_similarity(start, now),
        network_similarity(originals, used),
        neuron_similarity(start, now),
        neuron_similarity(originals, used),
        {int(line["epoch"]) + 1: line["similarity"] for line in epochs if "similarity" in line},
        warnings,
    )
    picture = similarity_plot(facts.layers, facts.quantized_layers, facts.epochs)
    return facts, _write(run, "similarity", asdict(facts), picture, ["float.pt", "quantized.pt"])


@writes("analyze exponents")
def exponents_verb(
    run: RunFolder, *, images: int, data: str | None, say: Callable[[str], None]
) -> tuple[ExponentFacts, Path]:
    """Look at exponents and codes; see `faq-deploy analyze exponents --help`.

    Raises:
        InputError: no finished run, its data are gone, or a file was changed.
    """
    tuned = _tuned(run)
    pictures, _ = reopen_validation(data_of_run(run), tuned.facts.preprocessing, tuned.facts.classes, data)
    count = min(images, len(pictures))
    say(f"counting codes on {count} validation image{'s' if count != 1 else ''}")
    spread = [int(i) for i in torch.linspace(0, len(pictures) - 1, count).round().long()]  # of all classes
    source = (torch.from_numpy(b.images) for b in batches(pictures, spread, 32, on_bad="error", bad=BadImages()))
    weights, activations = exponent_counts(tuned.net)
    epochs, steps, warnings = _epochs(run)
    flips = {int(line["epoch"]) + 1: int(line["exponent_flips"]) for line in epochs if "exponent_flips" in line}
    facts = ExponentFacts(
        weights,
        activations,
        weight_occupancy(tuned.net),
        activation_occupancy(tuned.net, source),
        count,
        flips,
        {epoch: steps[epoch] for epoch in flips},
        warnings,
    )
    groups = [("weights", facts.weights), ("activations", facts.activations)]
    picture = exponents_plot(weights, activations, groups, flips)
    return facts, _write(run, "exponents", asdict(facts), picture, ["quantized.pt"])


def _noise_facts(
    net: QuantizedNet,
    inner: list[str],
    gradients: GradientNoise,
    walks: Mapping[int, StepNoise],
    options: NoiseOptions,
    training: TrainingSection,
) -> NoiseFacts:
    return NoiseFacts(
        inner_layers=inner,
        rules={bits: net.rules.of(bits) for bits in gradients.quantized},
        batch_size=training.batch_size,
        batches=options.batches,
        steps=options.steps,
        lr=training.lr,
        gradient_cosine=gradients.quantized,
        batch_cosine=gradients.batches,
        step_cosine={bits: walk.quantized for bits, walk in walks.items()},
        float_step_cosine=next(iter(walks.values())).floating if walks else {},
    )


def _tuned(run: RunFolder) -> StoredNet:
    """The net that `export` would take."""
    calibrated = run.manifest().steps.get("calibrate")
    sources = ["float.pt"] + [name for name in ("corrected.pt",) if calibrated and name in calibrated.outputs]
    return load_net(run.require_fresh("quantize", "quantized.pt", dict.fromkeys(sources, "calibrate")))


def _epochs(run: RunFolder) -> tuple[list[dict[str, float]], dict[int, int], list[str]]:
    """The epochs' lines of `metrics.jsonl`, the steps by epoch from 1, and a warning where that record was lost."""
    if METRICS not in run.manifest().steps["quantize"].outputs:
        return [], {}, []
    try:
        text = run.require("quantize", METRICS).read_text("utf-8")
    except InputError as error:
        return [], {}, [f"{error.what} There is nothing to say of the epochs."]
    lines = [json.loads(line) for line in text.splitlines()]
    steps: dict[int, int] = {}
    for line in lines:
        if line["kind"] == "step":
            steps[line["epoch"] + 1] = steps.get(line["epoch"] + 1, 0) + 1
    return [line for line in lines if line["kind"] == "epoch"], steps, []


def _write(run: RunFolder, name: str, facts: Mapping[str, object], picture: str, inputs: Sequence[str]) -> Path:
    path = run / _FOLDER / f"{name}.json"
    with ExitStack() as files:  # both or none
        text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
        files.enter_context(atomic_path(path)).write_text(text, "utf-8")
        files.enter_context(atomic_path(path.with_suffix(".svg"))).write_text(picture, "utf-8")
    outputs = [f"{_FOLDER}/{name}.json", f"{_FOLDER}/{name}.svg"]
    run.record(f"analyze/{name}", version=__version__, inputs=inputs, outputs=outputs)
    return path
