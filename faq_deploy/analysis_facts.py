"""What `analyze` found, as data: what its JSON files hold."""

from __future__ import annotations

from dataclasses import dataclass

from faq_deploy.code_occupancy import Occupancy

__all__ = ["ExponentFacts", "NoiseFacts", "SimilarityFacts"]


@dataclass(frozen=True)
class NoiseFacts:
    """Gradient noise of a run's net by weight width and layer; see `GradientNoise` and `StepNoise`.

    Attributes:
        inner_layers: those that have the width; the others keep their own at every width.
        rules: how the exponents of weights of each width were found.
        batch_size: images in a batch.
        batches: that gradients were compared on.
        steps: taken at each width.
        lr: of the steps.
        gradient_cosine: by width and layer.
        batch_cosine: by layer, between float gradients of two batches; empty where there was one.
        step_cosine: by width and layer; empty without steps.
        float_step_cosine: by layer, at the widest width.
    """

    inner_layers: list[str]
    rules: dict[int, str]
    batch_size: int
    batches: int
    steps: int
    lr: float
    gradient_cosine: dict[int, dict[str, float]]
    batch_cosine: dict[str, float]
    step_cosine: dict[int, dict[str, float]]
    float_step_cosine: dict[str, float]


@dataclass(frozen=True)
class SimilarityFacts:
    """How close the fine-tuned weights are to the float ones: mean cosines of neurons.

    Attributes:
        network: over all neurons, of the float copies that training keeps.
        quantized_network: of the weights as the net multiplies with them.
        layers, quantized_layers: the same over each layer's neurons; the latter of quantized layers only.
        epochs: `network` after each epoch from 1, where the training noted it.
        warnings: for the user.
    """

    network: float
    quantized_network: float
    layers: dict[str, float]
    quantized_layers: dict[str, float]
    epochs: dict[int, float]
    warnings: list[str]


@dataclass(frozen=True)
class ExponentFacts:
    """Exponents of a run's net and how its tensors fill their codes.

    Attributes:
        weight_exponents, activation_exponents: how many there are of each value.
        weights, activations: one record a tensor.
        images: validation images that the activations were looked at on.
        flips: weight exponents that changed, by epoch from 1, where the training noted it.
        steps: of the optimizer or micro batches, in the same epochs.
        warnings: for the user.
    """

    weight_exponents: dict[int, int]
    activation_exponents: dict[int, int]
    weights: list[Occupancy]
    activations: list[Occupancy]
    images: int
    flips: dict[int, int]
    steps: dict[int, int]
    warnings: list[str]
