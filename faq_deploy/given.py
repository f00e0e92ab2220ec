"""What the calls of the Python API refuse: each sentence says which call comes first, or what to give instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from engines.errors import InputError
from faq_deploy.prepared_model import PreparedModel

__all__ = [
    "Batch",
    "images_of",
    "one_input",
    "require_batches",
    "require_float_model",
    "require_image_batch",
    "require_one_device",
    "require_prepared",
    "require_sound",
    "require_statistics",
    "targets_of",
]

# Images alone, or first in a row with labels and whatever else a loader gives.
Batch = Tensor | Sequence[object]


def images_of(batch: Batch) -> Tensor:
    """The images of a batch.

    Args:
        batch: a tensor, or a tuple or list whose first item is one.

    Returns:
        That tensor.

    Raises:
        InputError: it is something else.
    """
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, Tensor):
        raise InputError(
            f"a batch is a {type(batch).__name__} without a tensor of images.",
            "give tensors of shape (N, C, H, W), or (images, labels).",
        )
    return first


def one_input(example_inputs: object) -> Tensor:
    """The images of `example_inputs`.

    Args:
        example_inputs: a tensor, or a tuple or list of one.

    Raises:
        InputError: anything else.
    """
    inputs = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    others = [item for item in inputs if not isinstance(item, Tensor)]
    if others:
        raise InputError(
            f"example_inputs holds {_kind(others[0])}.", "give a batch of images: a float32 tensor, shape (N, C, H, W)."
        )
    if len(inputs) != 1:
        raise InputError(
            f"example_inputs has {len(inputs)} tensors.", "give one batch of images: models take one input."
        )
    first: Tensor = inputs[0]
    return first


def require_batches(batches: object) -> None:
    """Refuse what no batches come from.

    Args:
        batches: a `DataLoader`, a list, a generator.

    Raises:
        InputError: it can't be iterated over.
    """
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise InputError(f"batches is {_kind(batches)}.", "give a DataLoader, or a list of batches of images.")


def require_float_model(model: object) -> None:
    """Refuse what can't be prepared.

    Args:
        model: what was given.

    Raises:
        InputError: no module, TorchScript, or prepared already.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {_kind(model)}, not a torch.nn.Module.", "give a trained network.")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "the model is a TorchScript module, which can't be rewritten.",
            "give the nn.Module that it was scripted or traced from.",
        )
    if any(isinstance(module, PreparedModel) for module in model.modules()):
        raise InputError("the model is prepared already, or a part of it is.", "prepare the float model.")


def _refuse_meta(model: nn.Module) -> None:
    name = next((n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta), None)
    if name is not None:
        raise InputError(
            f"{name} is on the meta device: it has a shape and no values.",
            "make the model on a real device and load its weights; what was moved to meta has lost them.",
        )


def _kind(thing: object) -> str:
    """`a str`, `an int`, `None`."""
    if thing is None:
        return "None"
    name = f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
    if isinstance(thing, type):
        return name
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def targets_of(batch: Batch) -> object:
    """What a metric compares the outputs with: the second item of a batch.

    Args:
        batch: a tuple or list of images and targets.

    Returns:
        Tensors as NumPy arrays, other things as they are: a sequence with an item an image.

    Raises:
        InputError: it has no second item.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise InputError("a metric needs targets, and a batch has images alone.", "give batches of (images, targets).")
    second = batch[1]
    return second.detach().cpu().numpy() if isinstance(second, Tensor) else second


def require_image_batch(images: Tensor, like: Tensor | None, device: torch.device | None) -> Tensor:
    """The images, if the model can read them.

    Args:
        images: float32, shape (N, C, H, W), N >= 0.
        like: images of the right shape; None takes any.
        device: where they must be; None takes any.

    Returns:
        `images`.

    Raises:
        InputError: another type, shape or device.
    """
    if images.dtype != torch.float32:
        raise InputError(f"images are {images.dtype}.", "give float32 images, normalized as for the float model.")
    if like is not None and images.shape[1:] != like.shape[1:]:
        wanted, given = ("x".join(map(str, tensor.shape[1:])) for tensor in (like, images))
        raise InputError(
            f"images have shape {given}, but the model was prepared for {wanted}.",
            "give images of that shape, or prepare the model with example_inputs of the other.",
        )
    if device is not None and images.device != device:
        raise InputError(
            f"images are on {images.device}, and the model is on {device}.",
            f"move the one to the other: images.to({str(device)!r}), or model.to({str(images.device)!r}).",
        )
    return images


def require_prepared(model: object) -> None:
    """Refuse what `prepare` didn't return.

    Args:
        model: what was given.

    Raises:
        InputError: it is another object.
    """
    if isinstance(model, PreparedModel):
        return
    inner = [
        name
        for name, module in (model.named_modules() if isinstance(model, nn.Module) else ())
        if isinstance(module, PreparedModel)
    ]
    raise InputError(
        f"{type(model).__name__} is not what `prepare` returned.",
        f"pass the prepared model inside it: model.{inner[0]}." if inner else "call faq_deploy.prepare(...) first.",
    )


def require_one_device(model: nn.Module, device: torch.device) -> None:
    """Refuse a model that is spread over devices, or on none.

    Args:
        model: in float.
        device: of its first parameter.

    Raises:
        InputError: it is.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device != device:
            raise InputError(
                f"the model lies on several devices: {name} on {tensor.device}, others on {device}.",
                "move all of it with model.to(device) first.",
            )
    _refuse_meta(model)


def require_sound(model: PreparedModel) -> torch.device:
    """Refuse a model whose tensors belong to another one too, lie on several devices, or have no codes.

    Args:
        model: calibrated or not.

    Returns:
        Its device.

    Raises:
        InputError: a shared module; several devices; a parameter or running statistic that holds NaN or Inf, or isn't
            in float32.
    """
    model.claim()
    device = model.device
    _refuse_meta(model)
    for name, tensor in (*model.net.named_parameters(), *model.net.named_buffers()):
        label = name.removeprefix("layers.")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(
                f"{label} is {tensor.dtype}.", "keep the prepared model in float32; torch.autocast trains it in less."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{label} holds NaN or infinite values.", "train with a lower learning rate, or load a good checkpoint."
            )
    return device


def require_statistics(model: nn.Module) -> None:
    """Refuse a model in training mode whose batch norms have seen no batch.

    In eval mode the initial statistics, mean 0 and variance 1, are what the model computes with, and are taken.

    Args:
        model: in float.

    Raises:
        InputError: the first such layer is named.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) or isinstance(module, nn.modules.instancenorm._InstanceNorm):
            continue
        if module.running_mean is None or module.running_var is None:
            continue  # tracing says where in the code that is
        fresh = module.num_batches_tracked is not None and int(module.num_batches_tracked) == 0
        initial = bool((module.running_mean == 0).all()) and bool((module.running_var == 1).all())
        if module.training and fresh and initial:
            raise InputError(
                f"batch norm {name} is in training mode and has seen no batch: its statistics are the initial ones.",
                "load trained weights or train the float model first; model.eval() if they are meant.",
            )
