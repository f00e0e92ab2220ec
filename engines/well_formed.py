"""Whether an ONNX file holds together, looked at before anything reads on: of a damaged one, the part is named.

onnx's own checker does not serve: it refuses operators and versions newer than itself, about which `lint` has more to
say, and looks at no weight's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from engines.errors import InputError

__all__ = ["MOST_BYTES", "parsed", "require"]

MOST_BYTES: Final = 2 << 30  # protobuf's own limit for one file; weights may lie beside it

_QDQ: Final = ("QuantizeLinear", "DequantizeLinear")
_FOUR_BITS: Final = (TensorProto.INT4, TensorProto.UINT4)
_LAST_PLAIN: Final = TensorProto.INT4  # types that came later have packings of their own
_WIDEST: Final = 1 << 40  # elements of one tensor: far above any, far below what overflows
# where each type's values are, if they are not raw bytes; complex numbers take two
_TYPED: Final[Mapping[int, str]] = {
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.COMPLEX64), "float_data"),
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.COMPLEX128), "double_data"),
    **dict.fromkeys((TensorProto.UINT32, TensorProto.UINT64), "uint64_data"),
    TensorProto.INT64: "int64_data",
    TensorProto.STRING: "string_data",
}
_COMPLEX: Final = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
_FIELDS: Final[Mapping[int, str]] = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}


def parsed(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without the weights that lie in other files.

    Args:
        path: the file.

    Returns:
        The model, which holds together.

    Raises:
        InputError: it is larger than an ONNX file can be, or damaged.
        OSError: it can't be read.
        ValueError: it is no protobuf; a `DecodeError` is one, too.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(
            f"{path} has {size:,} bytes, and an ONNX file has {MOST_BYTES:,} at most.",
            "save the model with its weights in a file beside it.",
        )
    model = onnx.load(path, load_external_data=False)
    require(model, path)
    return model


def require(model: onnx.ModelProto, path: Path) -> None:
    """See that a model's structure holds together.

    Args:
        model: with its weights, or with some of them in other files.
        path: of its file, for the message.

    Raises:
        InputError: it doesn't; the part is named.
    """
    what = next(_troubles(model), None)
    if what is not None:
        raise InputError(f"{path} is damaged: {what}.", "export it again, or copy the whole file.")


def _troubles(model: onnx.ModelProto) -> Iterator[str]:
    for tensor in model.graph.initializer:
        yield from _of_tensor(tensor)
    for index, node in enumerate(model.graph.node):
        if not all(_is_text(text) for text in (node.op_type, node.domain, node.name, *node.input, *node.output)):
            yield f"the names in node number {index} are not UTF-8"
            return
        yield from _of_node(node, index, model)
    for value in (*model.graph.input, *model.graph.output):
        if not value.name or not _is_text(value.name):
            yield "an input or output has no name"
    if not all(_is_text(text) for entry in model.metadata_props for text in (entry.key, entry.value)):
        yield "its metadata are not UTF-8"
    if model.graph.sparse_initializer:
        yield "it holds sparse weights, which no network of ours has"


def _of_tensor(tensor: TensorProto) -> Iterator[str]:
    name = f"the tensor {tensor.name or 'without a name'}"
    if not _is_text(tensor.name):
        yield f"{name} has a name that is not UTF-8"
    if tensor.HasField("segment"):
        yield f"{name} is one part of several"
        return
    if tensor.data_type not in _types():
        yield f"{name} has no type that onnx {onnx.__version__} knows ({tensor.data_type})"
        return
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > _WIDEST:
        yield f"{name} can't have the shape {tuple(tensor.dims)}"
        return
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    if tensor.data_type > _LAST_PLAIN:
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            yield f"{name} can't be read ({' '.join(str(error).split()).rstrip('.')})"
        return
    found, wanted, what = _sizes(tensor)
    if found != wanted:
        yield f"{name} has {found:,} of {wanted:,} {what}"


def _sizes(tensor: TensorProto) -> tuple[int, int, str]:
    """What a tensor holds, and what its shape asks for."""
    count = math.prod(tensor.dims)
    packed = -(-count // 2) if tensor.data_type in _FOUR_BITS else count
    if tensor.HasField("raw_data"):
        width = 1 if tensor.data_type in _FOUR_BITS else _width(tensor.data_type)
        return len(tensor.raw_data), packed * width, "bytes"
    values = getattr(tensor, _TYPED.get(tensor.data_type, "int32_data"))
    return len(values), 2 * count if tensor.data_type in _COMPLEX else packed, "values"


def _of_node(node: onnx.NodeProto, index: int, model: onnx.ModelProto) -> Iterator[str]:
    name = f"{node.op_type or 'the node'} {node.name or next(filter(None, node.output), f'number {index}')}"
    if not node.op_type:
        yield f"{name} has no operator"
    if not any(node.output):
        yield f"{name} has no output"
    least, most, outputs = _arity(node.op_type, node.domain, _version(model, node.domain))
    if not least <= len(node.input) <= most or not all(node.input[:least]):
        yield f"{name} has {sum(map(bool, node.input))} inputs, and needs {least}"
    if len(node.output) > outputs:
        yield f"{name} has {len(node.output)} outputs, and gives {outputs}"
    for attribute in node.attribute:
        yield from _of_attribute(attribute, name)


def _of_attribute(attribute: AttributeProto, node: str) -> Iterator[str]:
    if attribute.ref_attr_name:
        yield f"the attribute {attribute.name} of {node} refers to a function's, outside of one"
    elif attribute.type not in AttributeProto.AttributeType.values() or attribute.type == AttributeProto.UNDEFINED:
        yield f"the attribute {attribute.name} of {node} has no type"
    elif (field := _FIELDS.get(attribute.type)) is not None and not attribute.HasField(field):
        # an absent number is 0 to every reader, as protobuf has it; a tensor must be there
        if field in ("t", "g", "sparse_tensor", "tp"):
            yield f"the attribute {attribute.name} of {node} is empty"
    elif attribute.type == AttributeProto.TENSOR:
        yield from _of_tensor(attribute.t)


def _is_text(name: object) -> bool:
    """Whether it is UTF-8: protobuf gives other bytes as bytes."""
    return isinstance(name, str)


def _version(model: onnx.ModelProto, domain: str) -> int:
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    return int(versions.get(domain or "ai.onnx", 0))


@lru_cache(maxsize=4096)
def _arity(op_type: str, domain: str, version: int) -> tuple[int, int, int]:
    """Least and most inputs, and most outputs; any number for operators that onnx does not know."""
    any_number, newest = 1 << 31, onnx.defs.onnx_opset_version()
    known = domain in ("", "ai.onnx")
    schema = _schema(op_type, version) if known and 1 <= version <= newest else None
    if schema is not None:
        return int(schema.min_input), int(schema.max_input), int(schema.max_output)
    # unknown in that version: one that onnx knows tells how few inputs there can be, for what is read as its operator
    schema = _schema(op_type, newest) if known or op_type in _QDQ else None
    return int(schema.min_input) if schema is not None else 0, any_number, any_number


def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


@lru_cache(maxsize=1)
def _types() -> frozenset[int]:
    return frozenset(onnx.helper.get_all_tensor_dtypes())


@lru_cache(maxsize=64)
def _width(data_type: int) -> int:
    """Bytes of one element, as raw data has it."""
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
