"""Damage done to files, the same for the same random numbers: bytes, values of JSON and TOML, fields, archives."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from typing import Final, cast

import onnx
import tomli_w
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["bundle_bytes", "image_bytes", "json_bytes", "onnx_bytes", "plain_bytes", "tar_bytes", "toml_bytes"]

_MOST_EDITS: Final = 6
_MOST_INSERTED: Final = 64
_NUMBERS: Final = (0, 1, -1, 2, 7, 127, 128, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64)
_VALUES: Final[tuple[object, ...]] = (
    *(None, True, False, "", "x", "\0", "é\u202e\U0001f600", "../../etc/passwd", "/", "a" * 5000, [], {}, [[]], [{}]),
    *(0, -1, 1, 2, 10**9, 2**63, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e300, float("nan"), float("inf")),
)
_TOKENS: Final = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"[" * 2000, b"{" * 50, b'"', b"\\u0000", b"\n", b"1e999", b"-")


def plain_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, repeated, moved, or numbers in text replaced."""
    found = bytearray(data)
    for _ in range(chance.randint(1, _MOST_EDITS)):
        chance.choice(_EDITS)(found, chance)
    return bytes(found)


def json_bytes(data: bytes, chance: random.Random) -> bytes:
    """One or more values of a JSON document replaced, removed, renamed or doubled; now and then only its bytes."""
    if chance.random() < 0.3:
        return plain_bytes(data, chance)
    return json.dumps(_changed_tree(json.loads(data), chance)).encode()


def toml_bytes(data: bytes, chance: random.Random) -> bytes:
    """The same for TOML."""
    import tomllib

    if chance.random() < 0.4:
        return plain_bytes(data, chance)
    try:
        return tomli_w.dumps(cast("Mapping[str, object]", _changed_tree(tomllib.loads(data.decode()), chance))).encode()
    except (TypeError, ValueError, AttributeError):  # what TOML has no words for
        return plain_bytes(data, chance)


def onnx_bytes(data: bytes, chance: random.Random) -> bytes:
    """Fields anywhere in a model set, cleared, doubled or swapped; now and then only its bytes."""
    if chance.random() < 0.25:
        return plain_bytes(data, chance)
    model = onnx.ModelProto.FromString(data)
    for _ in range(chance.randint(1, _MOST_EDITS)):
        _change_message(model, chance)
    return bytes(model.SerializeToString())


def image_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed; those of a PNG mostly inside its pieces, with checksums that are right again."""
    if not data.startswith(b"\x89PNG") or chance.random() < 0.3:
        return plain_bytes(data, chance)
    pieces, offset = [], 8
    while offset + 8 <= len(data):
        (size,) = struct.unpack(">I", data[offset : offset + 4])
        pieces.append((data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + size]))
        offset += 12 + size
    index = chance.randrange(len(pieces))
    kind, content = pieces[index]
    if kind == b"IDAT" and chance.random() < 0.5:
        content = zlib.compress(plain_bytes(zlib.decompress(content), chance))
    else:
        content = plain_bytes(content, chance)
    pieces[index] = (kind, content)
    if chance.random() < 0.2:
        pieces.insert(chance.randrange(len(pieces)), chance.choice(pieces))
    body = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in pieces)
    return data[:8] + b"".join(body)


def tar_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes of an archive changed, mostly in a header, whose checksum is right again."""
    if chance.random() < 0.3:
        return plain_bytes(data, chance)
    found = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        start = chance.choice([member.offset for member in archive.getmembers()])
    header = bytearray(found[start : start + 512])
    field, size = chance.choice(((0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    if field == 124 and chance.random() < 0.7:
        header[124:136] = f"{chance.choice((0, 1, 511, 513, len(data), 8**11 - 1)):011o}\0".encode()
    else:
        where = field + chance.randrange(size)
        header[where] = chance.choice((0, 0x30, 0x2F, 0x2E, 0x78, 0x80, 0xFF, *b"0123456789LKxg"))
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    found[start : start + 512] = header
    return bytes(found)


def bundle_bytes(data: bytes, chance: random.Random) -> bytes:
    """A bundle damaged inside its compression: its headers, its manifest or its files."""
    if chance.random() < 0.2:
        return plain_bytes(data, chance)
    return gzip.compress(tar_bytes(gzip.decompress(data), chance), 1, mtime=0)


def _set(data: bytearray, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.randrange(256)


def _flip(data: bytearray, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randint(0, len(data)) :]


def _delete(data: bytearray, chance: random.Random) -> None:
    start = chance.randint(0, len(data))
    del data[start : start + chance.randint(1, _MOST_INSERTED)]


def _insert(data: bytearray, chance: random.Random) -> None:
    start = chance.randint(0, len(data))
    data[start:start] = chance.choice((chance.randbytes(chance.randint(1, _MOST_INSERTED)), chance.choice(_TOKENS)))


def _repeat(data: bytearray, chance: random.Random) -> None:
    start, to = chance.randint(0, len(data)), chance.randint(0, len(data))
    data[to:to] = data[start : start + chance.randint(1, 4 * _MOST_INSERTED)]


def _number(data: bytearray, chance: random.Random) -> None:
    """Overwrite 1, 2, 4 or 8 bytes by a number at an edge."""
    width = chance.choice((1, 2, 4, 8))
    if len(data) >= width:
        start = chance.randint(0, len(data) - width)
        value = chance.choice(_NUMBERS) % (1 << (8 * width))
        data[start : start + width] = value.to_bytes(width, chance.choice(("little", "big")))


_EDITS: Final[tuple[Callable[[bytearray, random.Random], None], ...]] = (
    *(_set, _set, _flip, _flip, _cut, _delete, _insert, _repeat, _number, _number),
)


def _changed_tree(tree: object, chance: random.Random) -> object:
    for _ in range(chance.randint(1, 3)):
        holders = [node for node in _nodes(tree) if isinstance(node, dict | list) and node]
        if not holders:
            return chance.choice(_VALUES)
        holder = chance.choice(holders)
        key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
        what = chance.random()
        if what < 0.15:
            del holder[key]
        elif what < 0.3 and isinstance(holder, dict):
            holder[chance.choice(("", "x", "format", str(key) + "s", "__proto__", "é"))] = holder.pop(key)
        elif what < 0.4 and isinstance(holder, list):
            holder.extend(holder[:1000])
        elif what < 0.6 and isinstance(value := holder[key], int | float) and not isinstance(value, bool):
            holder[key] = chance.choice((-value, value + 1, value * 1000, value // 3, str(value), *_NUMBERS))
        else:
            holder[key] = chance.choice(_VALUES)
    return tree


def _nodes(tree: object) -> list[object]:
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tree, *(node for child in children for node in _nodes(child))]


def _change_message(message: Message, chance: random.Random) -> None:
    """Go down to a random message below this one and change one of its fields."""
    while True:
        inside = [
            item
            for field, value in message.ListFields()
            if field.type == FieldDescriptor.TYPE_MESSAGE
            for item in (value if _is_repeated(field) else [value])
        ]
        if not inside or chance.random() < 0.2:
            break
        message = chance.choice(inside)
    field = chance.choice(message.DESCRIPTOR.fields)
    if chance.random() < 0.2:
        message.ClearField(field.name)
    elif _is_repeated(field):
        _change_repeated(getattr(message, field.name), field, chance)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _scalar(field, chance, getattr(message, field.name)))


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(getattr(field, "is_repeated", False) or getattr(field, "label", 0) == 3)


def _change_repeated(items: list[object], field: FieldDescriptor, chance: random.Random) -> None:
    count = len(items)
    if count and chance.random() < 0.4:
        del items[chance.randrange(count)]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if count and chance.random() < 0.7:
            first, second = chance.randrange(count), chance.randrange(count)
            held = type(items[first])()
            held.CopyFrom(items[first])  # type: ignore[attr-defined]
            items[first].CopyFrom(items[second])  # type: ignore[attr-defined]
            items[second].CopyFrom(held)  # type: ignore[attr-defined]
        else:
            items.add()  # type: ignore[attr-defined]
    elif count and chance.random() < 0.6:
        index = chance.randrange(count)
        items[index] = _scalar(field, chance, items[index])
    else:
        items.append(_scalar(field, chance, b"" if field.type == FieldDescriptor.TYPE_BYTES else 0))


def _scalar(field: FieldDescriptor, chance: random.Random, value: object) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return plain_bytes(value, chance) if isinstance(value, bytes) else chance.randbytes(4)
    if field.type == FieldDescriptor.TYPE_STRING:
        return chance.choice(("", "x", "input", "x.codes", "x.scale", "logits", "Conv", "Constant", "../x", "é" * 3))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return chance.choice((0.0, -1.0, 1.0, 0.3, 1e-45, 3e38, float("nan"), float("inf")))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return chance.choice([number.number for number in field.enum_type.values])
    if field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32):
        return chance.choice((*range(-2, 30), 2**31 - 1, -(2**31)))
    if field.type == FieldDescriptor.TYPE_UINT64:
        return chance.choice((0, 1, 2**63, 2**64 - 1))
    return chance.choice((*range(-2, 30), 2**40, 2**63 - 1, -(2**63)))
