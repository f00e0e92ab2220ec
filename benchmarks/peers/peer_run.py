"""What the peers' scripts share: options, our images and schedule, the training loop, and the record."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from benchmarks.common import this_machine
from benchmarks.peers.record import RESULTS, Record, write_record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engines.images import ImageSet
    from faq_deploy.data import Splits
    from faq_deploy.recipe import Recipe

__all__ = ["Method", "Outcome", "Setup", "keep_record", "make_parser", "open_setup", "train", "written_command"]

_CALIBRATION: Final = (5, 256)  # batches and images in each, as our recipes take


@dataclass(frozen=True)
class Method:
    """What a script measures, in the words of the results page.

    Attributes:
        name: of the record's file.
        method: a short phrase.
        library, version: what quantizes the net.
        scales: powers of two, or any float.
        script: that runs it.
        options: of the script, beyond those that all have.
        granularity: of weight scales.
        notes: what differs from ours.
    """

    name: str
    method: str
    library: str
    version: str
    scales: Literal["po2", "float"]
    script: str
    options: tuple[str, ...] = ()
    granularity: Literal["channel", "tensor"] = "channel"
    notes: str = ""


@dataclass(frozen=True)
class Outcome:
    """Top-1 in percent, and what it took.

    Attributes:
        floating: of the float net.
        calibrated: before training.
        last: after the last epoch; post-training methods have none and say `calibrated` again.
        seconds: wall time.
    """

    floating: float
    calibrated: float
    last: float
    seconds: float


@dataclass(frozen=True)
class Setup:
    """Float net and images of a run, as `faq-deploy quantize` would have them.

    Attributes:
        net: in float, in eval mode.
        splits: images to train on and to validate with.
        recipe: its training section says how long, how fast and from which seed.
        steps: an epoch ends after so many; 0 means all.
        scale_lr: learning rate of learned scales, as a multiple of the weights'.
    """

    net: nn.Module
    splits: Splits
    recipe: Recipe
    steps: int
    scale_lr: float

    def calibration(self) -> Iterator[Tensor]:
        """The batches that our calibration looks at: float32 images (N, C, H, W)."""
        import torch

        from engines.image_batches import batches
        from faq_deploy.data import calibration_indices

        number, size = _CALIBRATION
        indices = calibration_indices(self.splits.train.labels, number * size, self.recipe.training.seed)
        for batch in batches(self.splits.train, indices, size):
            yield torch.from_numpy(batch.images)

    def top1(self, net: nn.Module) -> float:
        """Of a net, in percent of the validation images."""
        from faq_deploy.torch_eval import top1_percent

        return top1_percent(net, self.validation())

    def validation(self) -> ImageSet:
        """All validation images; every tenth where `steps` cuts epochs short."""
        import numpy as np

        from engines.images import ImageSubset

        images = self.splits.val
        return images if not self.steps else ImageSubset(images, np.arange(0, len(images), 10), "each tenth image")


def make_parser(description: str, *, trains: bool) -> argparse.ArgumentParser:
    """A parser with the options that every peer's script has.

    Args:
        description: of the script.
        trains: whether it has options of a training.

    Returns:
        A parser to which a script adds its own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="float.pth of `faq-deploy train`")
    parser.add_argument("--data", required=True, help="images, as for faq-deploy")
    parser.add_argument("--model", default="builtin:resnet14-cifar", help="it, or a resnet18-cifar")
    parser.add_argument("--bits", type=int, default=4 if trains else 8, help="of weights and activations")
    parser.add_argument("--seed", type=int, default=0, help="of image order, augmentation and calibration images")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the record goes; benchmarks/peers/results")
    parser.add_argument("--steps", type=int, default=0, help="stop each epoch early and write nothing: to try a script")
    if trains:
        parser.add_argument("--epochs", type=int, default=8)
        parser.add_argument("--lr", type=float, default=0.02, help="of the first epoch")
        parser.add_argument("--gamma", type=float, default=0.5, help="the learning rate's factor after each epoch")
        parser.add_argument("--scale-lr", type=float, default=1.0, help="learned scales' rate, as a multiple of it")
    return parser


def open_setup(arguments: argparse.Namespace) -> Setup:
    """Float net, images and recipe that the options name; torch gets one thread.

    Args:
        arguments: parsed with `make_parser`.
    """
    import torch

    from faq_deploy.data import default_preprocessing, open_data
    from faq_deploy.models import load_model
    from faq_deploy.recipe import load_recipe, override
    from faq_deploy.run_data import trained_preprocessing

    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    cifar = default_preprocessing("cifar10:")
    assert cifar is not None
    splits = open_data(arguments.data, preprocessing=trained_preprocessing(str(arguments.weights)) or cifar)
    classes = len(splits.train.classes)
    loaded = load_model(arguments.model, str(arguments.weights), num_classes=classes, seed=arguments.seed)
    gamma = getattr(arguments, "gamma", 1.0)
    choices: dict[str, object] = {
        "training.epochs": getattr(arguments, "epochs", 0),
        "training.batch_size": 128,
        "training.lr": getattr(arguments, "lr", 1.0),
        "training.weight_decay": 5e-4,
        "training.schedule": "constant" if gamma == 1 else "exponential",
        "training.gamma": gamma,
        "training.augment": "cifar",
        "training.seed": arguments.seed,
    }
    recipe = override(load_recipe("quick"), choices)
    return Setup(loaded.module.eval(), splits, recipe, arguments.steps, getattr(arguments, "scale_lr", 1.0))


def train(
    net: nn.Module,
    setup: Setup,
    scales: Sequence[nn.Parameter],
    floating: float,
    before_step: Callable[[], None] | None = None,
) -> Outcome:
    """Train as our fine-tuning does: SGD with momentum, cross entropy, the same images in the same order.

    Args:
        net: in any mode; left in eval mode with the last weights.
        setup: how.
        scales: learned scales among the parameters, which get no weight decay.
        floating: top-1 of the float net in percent.
        before_step: called before each step.

    Returns:
        How it went; progress goes to stderr.
    """
    import torch
    import torch.nn.functional as F

    from faq_deploy.augment import TrainingData, epoch_order, training_batches
    from faq_deploy.schedule import learning_rate

    calibrated = setup.top1(net)
    print(f"float {floating:.2f} %, calibrated {calibrated:.2f} %", file=sys.stderr, flush=True)
    training = setup.recipe.training
    learned = {id(scale) for scale in scales}
    rest = [weight for weight in net.parameters() if weight.requires_grad and id(weight) not in learned]
    groups = [{"params": rest, "weight_decay": training.weight_decay}, {"params": list(scales), "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, training.lr, training.momentum)
    images_of = TrainingData(setup.splits.train, "cifar", training.seed)
    net.to(memory_format=torch.channels_last)  # as ours trains: a tenth faster
    begin = time.perf_counter()
    for epoch in range(training.epochs):
        net.train()
        for group, factor in zip(optimizer.param_groups, (1.0, setup.scale_lr), strict=True):
            group["lr"] = factor * learning_rate(training, epoch)
        total = seen = 0.0
        order = epoch_order(len(images_of), training.seed, epoch)
        batches = training_batches(images_of.at_epoch(epoch), order, training.batch_size)
        for step, (images, labels) in enumerate(batches):
            if step == setup.steps > 0:
                break
            if before_step is not None:
                before_step()
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(labels)
            seen += len(labels)
        seconds = time.perf_counter() - begin
        line = f"epoch {epoch + 1}/{training.epochs}: loss {total / seen:.4f}, {seconds:.0f} s"
        print(line, file=sys.stderr, flush=True)
    net.eval()
    seconds = time.perf_counter() - begin
    return Outcome(floating, calibrated, setup.top1(net), seconds)


def keep_record(arguments: argparse.Namespace, setup: Setup, method: Method, outcome: Outcome) -> None:
    """Write what a run gave, and print the file; after `--steps`, which only tries a script, do nothing.

    Args:
        arguments: parsed with `make_parser`.
        setup: of the run.
        method: that was run.
        outcome: what it gave.
    """
    if arguments.steps:
        return
    machine, training = this_machine(), setup.recipe.training
    trained = training.epochs > 0
    seed = str(arguments.seed)
    record = Record(
        name=method.name,
        method=method.method,
        library=method.library,
        version=method.version,
        weight_bits=arguments.bits,
        activation_bits=arguments.bits,
        scales=method.scales,
        granularity=method.granularity,
        start="float",
        images="train" if trained else "calibration",
        epochs=training.epochs,
        lr=training.lr if trained else None,
        schedule=training.schedule if trained else None,
        float_top1=outcome.floating,
        calibrated_top1={seed: outcome.calibrated},
        top1={seed: outcome.last},
        seconds=round(outcome.seconds, 1),
        threads=1,
        hardware=f"{machine.cpu}, {machine.cores} cores, no GPU",
        torch=machine.torch,
        commit=machine.commit,
        command=written_command(arguments, method.script, method.options),
        notes=method.notes,
    )
    print(write_record(record, arguments.output or RESULTS))


def written_command(arguments: argparse.Namespace, script: str, extra: Sequence[str] = ()) -> str:
    """The command that repeats a run, with placeholders for what lies elsewhere on another machine."""
    words = ["python", f"benchmarks/peers/{script}", "--weights", "float.pth", "--data", "DIR", *extra]
    for key in ("bits", "epochs", "lr", "gamma", "scale_lr", "seed"):
        if hasattr(arguments, key):
            words += [f"--{key.replace('_', '-')}", f"{getattr(arguments, key):g}"]
    return shlex.join(words)
