"""The samples of a bundle: pictures as the network sees them, and what the network computes from each.

`samples/NN.png` are the pixels after resize and crop (PNG loses nothing). `expected.npz` holds, without pickle:

- `labels`: int64 (images,), the class of each.
- `inputs`: uint8 (images, 32), the sha256 of each normalized image: float32, little-endian, channels first.
- `tensors`: the names of the quantized tensors, in the order of the graph.
- `codes`: uint8 (images, tensors, 32), the sha256 of each image's codes: int16, little-endian, in C order, without
  zero points.
- `codes_0`, `codes_1`, ...: int16, all codes of image 0 by the index of the tensor, to locate a difference.
- `logits`: float32 (images, classes), to the last bit.
- `constants` and `constant_hashes`: each weight of the file and uint8 (constants, 32): the sha256 of its type, shape
  and values, so that a changed weight is found even where no sample shows it.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.errors import InputError
from engines.image_files import read_image
from engines.ort import OrtRunner
from engines.parity import IntArray, logits_of_bits
from engines.preprocess import BadImage, PixelArray, Preprocessing, normalize
from engines.qdq_graph import Constant, QdqGraph
from engines.runner import FloatArray

__all__ = [
    "EXPECTED",
    "Expected",
    "Samples",
    "code_hash",
    "constant_hashes",
    "image_name",
    "input_hashes",
    "load_samples",
    "pixels_of_run",
    "write_samples",
]

EXPECTED: Final = "expected.npz"

_Item = TypeVar("_Item", bound=np.generic)
Digests = npt.NDArray[np.uint8]  # sha256 along the last axis

_MOST_BYTES: Final = 2 << 30  # of pictures or arrays, unpacked; ResNet-18's are 10 MB
_AT_ONCE: Final = 2  # images whose codes are in memory: at ResNet-18's size 40 MB, as int64


@dataclass(frozen=True)
class Expected:
    """What the network computes from the samples, by onnxruntime without optimizations; see the module for shapes."""

    tensors: tuple[str, ...]
    codes: Digests
    logits: FloatArray
    first_codes: Mapping[str, npt.NDArray[np.int16]]
    inputs: Digests
    constants: Mapping[str, bytes]


@dataclass(frozen=True)
class Samples:
    """The samples of a bundle.

    Attributes:
        pixels: uint8, shape (N, H, W, C).
        labels: int64, shape (N,).
        expected: what belongs to them.
    """

    pixels: PixelArray
    labels: IntArray
    expected: Expected


def write_samples(
    folder: Path,
    onnx_path: Path,
    graph: QdqGraph,
    pixels: PixelArray,
    labels: IntArray,
    preprocessing: Preprocessing,
    on_images: Callable[[int, int], None] = lambda count, total: None,
) -> tuple[str, ...]:
    """Run the oracle on the samples and write them and what it gives.

    Args:
        folder: where to.
        onnx_path: the network.
        graph: the same, read.
        pixels: uint8, shape (N, H, W, C), after resize and crop.
        labels: int64, shape (N,).
        preprocessing: turns pixels into network input.
        on_images: told how many more images of how many are done.

    Returns:
        The files written, relative to `folder`.

    Raises:
        InputError: images that the network can't read, or codes beyond 16 bits.
    """
    (folder / "samples").mkdir(parents=True)
    names = [image_name(index) for index in range(len(pixels))]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(folder / name, "PNG")
    images = normalize(pixels, preprocessing)
    runner = OrtRunner(onnx_path, oracle=True, with_codes=True)
    hashes = np.zeros((len(images), len(runner.code_names), 32), np.uint8)
    logits: list[FloatArray] = []
    first: dict[str, npt.NDArray[np.int16]] = {}
    for start in range(0, len(images), _AT_ONCE):
        piece = images[start : start + _AT_ONCE]
        found = runner.codes(piece)
        logits.append(logits_of_bits(found["logits"]))
        for number, name in enumerate(runner.code_names):
            for offset, codes in enumerate(found[name]):
                hashes[start + offset, number] = np.frombuffer(code_hash(codes), np.uint8)
        if start == 0:
            first = {f"codes_{n}": _as_int16(found[name][0]) for n, name in enumerate(runner.code_names)}
        on_images(len(piece), len(images))
    runner.close()
    constants = constant_hashes(graph)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "labels": labels.astype("<i8"),
        "inputs": input_hashes(images),
        "tensors": np.array(list(runner.code_names), np.str_),
        "codes": hashes,
        "logits": np.concatenate(logits).astype("<f4"),
        "constants": np.array(list(constants), np.str_),
        "constant_hashes": np.array([list(digest) for digest in constants.values()], np.uint8).reshape(-1, 32),
        **first,
    }
    with (folder / EXPECTED).open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # NumPy's stub has flags among the names
    return (*names, EXPECTED)


def load_samples(folder: Path, preprocessing: Preprocessing) -> Samples:
    """Read the samples of an unpacked bundle.

    Args:
        folder: the bundle, unpacked.
        preprocessing: of the bundle.

    Returns:
        Pixels, labels and what is expected.

    Raises:
        InputError: they don't fit together, or are not what `write_samples` writes.
    """
    arrays = _arrays(folder / EXPECTED)
    labels = _taken(arrays, "labels", np.int64, 1)
    tensors = tuple(str(name) for name in _taken(arrays, "tensors", np.str_, 1))
    constants = [str(name) for name in _taken(arrays, "constants", np.str_, 1)]
    hashes = _taken(arrays, "constant_hashes", np.uint8, 2)
    expected = Expected(
        tensors=tensors,
        codes=_taken(arrays, "codes", np.uint8, 3),
        logits=_taken(arrays, "logits", np.float32, 2),
        first_codes={name: _taken(arrays, f"codes_{number}", np.int16) for number, name in enumerate(tensors)},
        inputs=_taken(arrays, "inputs", np.uint8, 2),
        constants={name: digest.tobytes() for name, digest in zip(constants, hashes, strict=False)},
    )
    count = len(labels)
    found = (expected.codes.shape, expected.inputs.shape, hashes.shape, len(expected.logits))
    if count == 0 or found != ((count, len(tensors), 32), (count, 32), (len(constants), 32), count):
        raise _unfit("its arrays are not one row an image")
    return Samples(_pictures(folder, count, preprocessing.channels), labels, expected)


def pixels_of_run(path: Path) -> tuple[PixelArray, IntArray]:
    """Pixels and labels that `quantize` kept with the run.

    Raises:
        InputError: the file is damaged.
    """
    arrays = _arrays(path)
    pixels, labels = arrays.get("pixels"), arrays.get("labels")
    if pixels is None or labels is None or pixels.ndim != 4 or pixels.dtype != np.uint8 or len(pixels) != len(labels):
        raise InputError(f"{path} does not hold pixels and labels.", "make the run again with `faq-deploy quantize`.")
    return pixels.astype(np.uint8), labels.astype(np.int64)


def image_name(index: int) -> str:
    """Where a sample lies in the bundle."""
    return f"samples/{index:02d}.png"


def code_hash(codes: IntArray) -> bytes:
    """The sha256 of one image's codes in one tensor, as `expected.npz` holds it.

    Args:
        codes: int64 without zero points, any shape.

    Returns:
        32 bytes.
    """
    return hashlib.sha256(np.ascontiguousarray(_as_int16(codes)).astype("<i2", copy=False).tobytes()).digest()


def input_hashes(images: FloatArray) -> Digests:
    """The sha256 of each normalized image.

    Args:
        images: float32, shape (N, C, H, W).

    Returns:
        uint8, shape (N, 32).
    """
    digests = [hashlib.sha256(np.ascontiguousarray(image).astype("<f4", copy=False).tobytes()) for image in images]
    return np.array([list(digest.digest()) for digest in digests], np.uint8).reshape(len(images), 32)


def constant_hashes(graph: QdqGraph) -> dict[str, bytes]:
    """The sha256 of each initializer's type, shape and values, by its name in the order of the file."""
    names = (tensor.name for tensor in graph.model.graph.initializer)
    return {name: hashlib.sha256(b"".join(_described(graph.constants[name]))).digest() for name in names}


def _described(value: Constant) -> Iterator[bytes]:
    yield f"{value.dtype} {value.shape} ".encode()
    yield np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False).tobytes()


def _as_int16(codes: IntArray) -> npt.NDArray[np.int16]:
    limits = np.iinfo(np.int16)
    if codes.size and not limits.min <= int(codes.min()) <= int(codes.max()) <= limits.max:
        raise InputError("The codes of the network pass 16 bits.", "quantize to 8 bits or fewer.")
    return codes.astype(np.int16)


def _arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    again = "copy or make again what holds it."
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size <= _MOST_BYTES:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
    except MemoryError as error:
        raise InputError(f"{path.name} says that it holds more than fits into memory.", again) from error
    except Exception as error:  # whatever the archive reader or NumPy's header parser trips over
        raise InputError(f"{path.name} is damaged.", again) from error
    raise InputError(f"{path.name} would unpack to {size / 1e9:.1f} GB, which no sample needs.", again)


def _taken(
    arrays: Mapping[str, npt.NDArray[np.generic]], name: str, kind: type[_Item], axes: int | None = None
) -> npt.NDArray[_Item]:
    """One array of the file, of the type and the number of axes that it must have."""
    value = arrays.get(name)
    if value is None or not issubclass(value.dtype.type, kind) or axes not in (None, value.ndim):
        found = "is missing" if value is None else f"is {value.dtype} of shape {value.shape}"
        raise _unfit(f"{name} {found}")
    return cast("npt.NDArray[_Item]", value)


def _pictures(folder: Path, count: int, channels: int) -> PixelArray:
    first = _pixels(folder / image_name(0), channels)
    if first.nbytes * count > _MOST_BYTES:
        raise _unfit(f"{count} pictures of {first.shape[1]}x{first.shape[0]} pixels fit no network")
    pictures = [first]
    for index in range(1, count):
        pictures.append(_pixels(folder / image_name(index), channels))
        if pictures[-1].shape != first.shape:
            raise _unfit("the pictures differ in size")
    return np.stack(pictures)


def _pixels(path: Path, channels: int) -> PixelArray:
    try:
        image = read_image(path)
    except BadImage as error:
        raise InputError(f"{path.parent.name}/{path.name} can't be used: {error.what}.", error.remedy) from error
    if image.mode != ("RGB" if channels == 3 else "L"):
        raise InputError(
            f"{path.name} is of mode {image.mode}, and the network sees {channels} channels.", "bundle again."
        )
    return np.array(image, np.uint8).reshape(image.height, image.width, channels)


def _unfit(why: str) -> InputError:
    return InputError(f"{EXPECTED} of the bundle is not what belongs to its samples: {why}.", "bundle the run again.")
