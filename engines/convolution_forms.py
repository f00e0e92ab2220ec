"""Convolutions that a GPU has no kernel for, written as ones that it has: the same sums of the same codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from engines.errors import InputError
from engines.graph_edit import GraphEdit, layer_name
from engines.qdq_graph import Constant, attributes
from engines.tensor_kinds import FLOAT32, element_type, sizes

__all__ = ["has_dilated_stride", "is_over_volumes", "rewrite_depth", "rewrite_dilated_stride"]


@dataclass(frozen=True)
class _Window:
    """A convolution's window, one number for each axis of the image."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    more: tuple[int, ...]  # output padding
    groups: int


def has_dilated_stride(node: onnx.NodeProto) -> bool:
    """Whether a node is a transposed convolution with both strides and dilations."""
    settings = attributes(node)
    above_one = _above_one(settings.get("strides")) and _above_one(settings.get("dilations"))
    return node.op_type == "ConvTranspose" and above_one


def is_over_volumes(kinds: Mapping[str, onnx.TypeProto], node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution in float32 over three dimensions, transposed or not."""
    if node.op_type not in ("Conv", "ConvTranspose") or element_type(kinds, node.input[0]) not in FLOAT32:
        return False
    return any(len(sizes(kinds, name) or ()) == 5 for name in node.input[:2])


def rewrite_dilated_stride(edit: GraphEdit, node: onnx.NodeProto) -> None:
    """Write a transposed convolution with strides and dilations as one without strides, zeros between its inputs.

    Args:
        edit: of the model.
        node: for which `has_dilated_stride` is true.

    Raises:
        InputError: its weight, its shape or its padding is not known before it runs.
    """
    window, title, image = _window(edit, node), node.name or node.output[0], _image(edit, node)
    spread = _spread(edit, node.input[0], image, window.strides, title)
    # the zeros behind the last element count as padding; where there are more of them than padding, fewer are cut off
    after = [a + s - 1 - m for a, s, m in zip(window.after, window.strides, window.more, strict=True)]
    for axis, missing in enumerate(after):
        if missing < 0:
            spread = _pad(edit, spread, axis + 2, 0, -missing, len(image) + 2, title)
    edit.add(
        "ConvTranspose",
        [edit.requantized(spread, node.input[0], f"{title}.spread"), *node.input[1:]],
        title,
        output=node.output[0],
        kernel_shape=window.kernel,
        dilations=window.dilations,
        pads=[*window.before, *(max(0, size) for size in after)],
        group=window.groups,
    )


def rewrite_depth(edit: GraphEdit, node: onnx.NodeProto) -> None:
    """Write a convolution over volumes as one over images: the window's planes become channels.

    Args:
        edit: of the model.
        node: for which `is_over_volumes` is true.

    Raises:
        InputError: its weight, its shape or its padding is not known before it runs.
    """
    window, title, (depth, *sides) = _window(edit, node), node.name or node.output[0], _image(edit, node)
    outputs = edit.shape(node.output[0])
    if outputs is None or None in outputs[1:]:
        raise _refused(edit, node, "its output's shape is not fixed")
    size, kernel, dilation = outputs[2] or 0, window.kernel[0], window.dilations[0]
    reach, volume = dilation * (kernel - 1), node.input[0]
    transposed = node.op_type == "ConvTranspose"
    if transposed:  # zeros between its planes, and then a convolution whose window is read backwards
        steps = (window.strides[0], 1, 1)
        volume = _spread(edit, volume, (depth, *sides), steps, title)
        before = reach - window.before[0]
        after, step = size + reach - before - depth * steps[0], 1
    else:
        before, after, step = window.before[0], window.after[0], window.strides[0]
    volume = _pad(edit, volume, 2, before, after, 5, title)
    starts = [dilation * (kernel - 1 - plane if transposed else plane) for plane in range(kernel)]
    planes = _planes(edit, volume, starts, step, size, title)
    channels = _channels(edit, node.input[0])
    images = edit.add("Transpose", [planes], f"{title}.volumes", perm=[0, 3, 1, 2, 4, 5])
    images = edit.reshaped(images, [-1, channels * kernel, *sides], f"{title}.images")
    arrange = _planes_of_inputs if transposed else _planes_of_outputs
    weight = edit.rearranged(node.input[1], arrange, {1: 1} if transposed else {0: 0}, f"{title}.weight")
    more = {"output_padding": window.more[1:]} if transposed and any(window.more) else {}
    sums = edit.add(
        node.op_type,
        [edit.requantized(images, node.input[0], f"{title}.images"), weight, *node.input[2:]],
        title,
        output=f"{title}.sums",
        kernel_shape=window.kernel[1:],
        strides=window.strides[1:],
        dilations=window.dilations[1:],
        pads=[*window.before[1:], *window.after[1:]],
        group=window.groups,
        **more,
    )
    whole = [outputs[1] or 0, *(side or 0 for side in outputs[3:])]
    stacked = edit.reshaped(sums, [-1, size, *whole], f"{title}.stacked")
    edit.add("Transpose", [stacked], f"{title}.back", output=node.output[0], perm=[0, 2, 1, 3, 4])


def _planes(edit: GraphEdit, volume: str, starts: Sequence[int], step: int, size: int, title: str) -> str:
    """(N, C, D, H, W) to (N, C, planes of the window, outputs, H, W)."""
    axis, steps = edit.numbers([2], f"{title}.axis"), edit.numbers([step], f"{title}.step")
    planes = []
    for start in starts:
        ends = edit.numbers([start + (size - 1) * step + 1], f"{title}.end")
        first = edit.numbers([start], f"{title}.start")
        plane = edit.add("Slice", [volume, first, ends, axis, steps], f"{title}.plane")
        planes.append(edit.add("Unsqueeze", [plane, axis], f"{title}.window"))
    return edit.add("Concat", planes, f"{title}.planes", axis=2) if len(planes) > 1 else planes[0]


def _spread(edit: GraphEdit, name: str, image: Sequence[int], strides: Sequence[int], title: str) -> str:
    """`stride - 1` zeros behind each element."""
    if not _above_one(strides):
        return name
    channels = _channels(edit, name)
    split, pads = [-1, channels], [0, 0]
    for size, stride in zip(image, strides, strict=True):
        split += [size, 1] if stride > 1 else [size]
        pads += [0, stride - 1] if stride > 1 else [0]
    apart = edit.reshaped(name, split, f"{title}.apart")
    inputs = [apart, edit.numbers([0] * len(pads) + pads, f"{title}.zeros")]
    padded = edit.add("Pad", inputs, f"{title}.filled")
    whole = [size * stride for size, stride in zip(image, strides, strict=True)]
    return edit.reshaped(padded, [-1, channels, *whole], f"{title}.spread")


def _pad(edit: GraphEdit, name: str, axis: int, before: int, after: int, rank: int, title: str) -> str:
    """Zeros at both ends of an axis; negative numbers cut off."""
    pads = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = max(0, before), max(0, after)
    if any(pads):
        name = edit.add("Pad", [name, edit.numbers(pads, f"{title}.pads")], f"{title}.padded")
    if min(before, after) < 0:
        ends = [max(0, -before)], [min(0, after) or 2**31 - 1], [axis]
        name = edit.add("Slice", [name, *(edit.numbers(end, f"{title}.cut") for end in ends)], f"{title}.shorter")
    return name


def _window(edit: GraphEdit, node: onnx.NodeProto) -> _Window:
    settings, weight = attributes(node), edit.value(node.input[1])
    if weight is None:
        raise _refused(edit, node, "its weight is computed while it runs")
    if settings.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or settings.get("output_shape"):
        raise _refused(edit, node, "it leaves its padding to the runtime (auto_pad or output_shape)")
    rank = weight.ndim - 2

    def listed(name: str, default: int, count: int = 1) -> tuple[int, ...]:
        value = settings.get(name)
        return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (default,) * rank * count

    pads, groups = listed("pads", 0, 2), settings.get("group", 1)
    return _Window(
        kernel=weight.shape[2:],
        strides=listed("strides", 1),
        dilations=listed("dilations", 1),
        before=pads[:rank],
        after=pads[rank:],
        more=listed("output_padding", 0),
        groups=groups if isinstance(groups, int) else 1,
    )


def _image(edit: GraphEdit, node: onnx.NodeProto) -> tuple[int, ...]:
    """Size of a layer's images or volumes."""
    shape = edit.shape(node.input[0])
    fixed = tuple(size for size in shape[1:] if size is not None) if shape is not None else ()
    if shape is None or len(fixed) != len(shape) - 1:
        raise _refused(edit, node, "its shape is not fixed but for the batch")
    return fixed[1:]


def _channels(edit: GraphEdit, name: str) -> int:
    shape = edit.shape(name)
    return (shape[1] if shape is not None else None) or 0


def _planes_of_outputs(weight: Constant) -> Constant:
    """(outputs, inputs, D, H, W) to (outputs, inputs x D, H, W)."""
    return weight.reshape(len(weight), -1, *weight.shape[3:])


def _planes_of_inputs(weight: Constant) -> Constant:
    """(inputs, outputs, D, H, W) to (inputs x D, outputs, H, W)."""
    turned = weight.swapaxes(1, 2)
    return turned.reshape(-1, *turned.shape[2:])


def _above_one(values: object) -> bool:
    return isinstance(values, Sequence) and any(isinstance(value, int) and value > 1 for value in values)


def _refused(edit: GraphEdit, node: onnx.NodeProto, why: str) -> InputError:
    return InputError(
        f"{layer_name(edit.model, node)} has no kernel on this GPU, and can't be written in other operators: {why}.",
        "leave that GPU out, or export the model with fixed sizes and paddings.",
    )
