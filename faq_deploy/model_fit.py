"""Whether a model and the data belong together: size, colours and classes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engines.errors import InputError
from engines.image_batches import BadImages, OnBad, batches
from engines.images import ImageSet
from faq_deploy.capture import choose_outputs
from faq_deploy.tracing import labelled, reason

__all__ = ["KeptOutput", "example_of", "require_batches", "require_fit", "require_trainable"]


def example_of(images: ImageSet, *, on_bad: OnBad, bad: BadImages) -> Tensor:
    """The first image that can be used, twice: float32, shape (2, C, H, W).

    Args:
        images: to train on.
        on_bad: what to do about an image that can't be read.
        bad: collects skipped images.

    Raises:
        InputError: an image can't be read, or none can.
    """
    first = next(batches(images, None, 1, on_bad=on_bad, bad=bad), None)
    if first is None:
        raise InputError(f"No image of {images.name} can be read.", "give a data folder with images.")
    return torch.from_numpy(first.images).expand(2, -1, -1, -1).contiguous()


@dataclass(frozen=True)
class KeptOutput:
    """Which output is quantized of a model that returns several.

    Attributes:
        label: its name.
        sentence: for the user.
    """

    label: str
    sentence: str


def require_fit(module: nn.Module, example: Tensor, model: str, classes: int, output: str = "") -> KeptOutput | None:
    """Run a model on an example, before anything costly starts.

    Args:
        module: put into eval mode.
        example: float32, shape (N, C, H, W).
        model: as named on the command line.
        classes: of the data.
        output: label of the output to judge; empty takes the usual one.

    Returns:
        What was chosen where the model returns several tensors; else None.

    Raises:
        InputError: it can't take such images, or doesn't give one logit a class.
    """
    shape = "x".join(map(str, example.shape[1:]))
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"{model} is a TorchScript module, which can't be rewritten.",
            "return the nn.Module that it was scripted or traced from.",
        )
    with torch.inference_mode():
        try:
            result = module.eval()(example)
        except RuntimeError as error:  # what torch raises where shapes don't fit
            other = "L for a net that takes grey" if example.shape[1] == 3 else "RGB for a net that takes colour"
            remedy = f"set the size with --resize and --crop, and --color {other} images."
            raise InputError(f"{model} fails on images of shape {shape}: {reason(error)}.", remedy) from error
        except Exception as error:
            what = f"{model} fails: {reason(error)} ({type(error).__name__})."
            raise InputError(
                what, f"correct the model: model.eval()(images) must run, with images of {shape}."
            ) from error
    named = labelled(result)
    chosen = choose_outputs([name for name, value in named.items() if isinstance(value, Tensor)], output or None)
    if len(chosen) > 1:
        raise InputError(
            f"--model-output {output} keeps {len(chosen)} outputs, and a run is judged by one.",
            f"name one of {', '.join(chosen)}, or quantize the model from Python, as docs/tasks.md shows.",
        )
    (label,) = chosen
    logits = named[label]
    assert isinstance(logits, Tensor)
    if logits.dim() != 2 or len(logits) != len(example):  # a detector's boxes are no row an image
        raise InputError(
            f"{model} gives an output of shape {'x'.join(map(str, logits.shape[1:]))} per image, not logits.",
            "give a classifier: one number per class and image"
            + (f", or name another output of {', '.join(named)} with --model-output" if len(named) > 1 else "")
            + "; other tasks are quantized from Python, as docs/tasks.md shows.",
        )
    if logits.shape[1] != classes:
        remedy = f"pass --num-classes {classes}, weights with that head, or another data folder."
        if ".py:" in model:
            outputs = f"{classes} output{'' if classes == 1 else 's'}"
            remedy = (
                f"let {model} make {outputs} (--num-classes {classes} where it has a parameter num_classes), "
                "and pass weights with that head; or another data folder."
            )
        raise InputError(f"{model} has {logits.shape[1]} classes but the data has {classes}.", remedy)
    if len(named) == 1:
        return None
    names = ", ".join(map(str, named))
    return KeptOutput(label, f"{model} returns {names}: {label} is quantized, the rest is left out (--model-output)")


def require_batches(module: nn.Module, example: Tensor, model: str, smallest_batch: int) -> None:
    """Refuse a model whose batch norms get a single value per channel from the smallest batch of its training.

    Args:
        module: the float model, left as it is; what else it may raise in train mode doesn't count.
        example: float32, shape (N, C, H, W), N at least 1.
        model: as named on the command line.
        smallest_batch: images in it.

    Raises:
        InputError: it can't be trained so.
    """
    if smallest_batch > 1:
        return
    try:
        require_trainable(module, example, model, smallest_batch)
    except InputError as error:
        if isinstance(error.__cause__, ValueError):
            raise
    except Exception:  # such as a loss inside the model that wants labels
        return


def require_trainable(module: nn.Module, example: Tensor, model: str, smallest_batch: int) -> None:
    """Run a model in train mode on a batch as small as the smallest of its training.

    Args:
        module: left as it is.
        example: float32, shape (N, C, H, W), N at least 2.
        model: as named on the command line.
        smallest_batch: images in it.

    Raises:
        InputError: batch norm gets a single value per channel, or the model gives more than logits in train mode.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            logits = copy.deepcopy(module).train()(example[:smallest_batch])
        except ValueError as error:  # torch's own check
            raise InputError(
                f"{model} can't be trained on {smallest_batch} image at a time: {reason(error)}.",
                "give more training images, and a --batch-size of at least 2.",
            ) from error
    if not isinstance(logits, Tensor):
        raise InputError(
            f"{model} gives {type(logits).__name__} in train mode, not logits.",
            "wrap it in a module that returns the logits alone.",
        )
