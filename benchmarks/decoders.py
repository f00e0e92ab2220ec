"""JPEG decoders against Pillow, which reads all images now: CPU time, and whether the pixels are the same bytes.

Only decoders that are installed are measured: `pip install simplejpeg opencv-python-headless imagecodecs PyTurboJPEG`
in an environment of one's own. Photos are scikit-learn's two, in the forms that cameras and the web write.

python benchmarks/decoders.py --json benchmarks/results/decoders.json
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import Cell, Row, interleaved, make_parser, median_ratio, publish, this_machine
from engines.image_files import decode_image
from engines.preprocess import Preprocessing, to_pixels

__all__ = ["Decoder", "decoders", "main", "pictures"]

Pixels = npt.NDArray[np.uint8]
Decoder = Callable[[bytes], Pixels]

_FORMS: Final[Mapping[str, Mapping[str, Any]]] = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"subsampling": "4:2:0", "progressive": True},
    "grey": {},
    "CMYK": {},
}
_MODES: Final = {"grey": "L", "CMYK": "CMYK"}
_PREPARED: Final = "Pillow, then resized to 256 and cropped to 224"
_SIZES: Final = ((640, 427), (501, 333), (64, 48))


def pictures() -> dict[str, bytes]:
    """JPEG files by name: two photos, three sizes, six forms."""
    from sklearn.datasets import load_sample_images

    found = {}
    for number, photo in enumerate(load_sample_images().images):
        for size in _SIZES:
            image = Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR)
            for form, options in _FORMS.items():
                content = io.BytesIO()
                image.convert(_MODES.get(form, "RGB")).save(content, "JPEG", quality=87, **options)
                found[f"{form}, photo {number}, {size[0]}x{size[1]}"] = content.getvalue()
    return found


def decoders() -> dict[str, Decoder]:
    """Those that are installed, by distribution and version; Pillow is the first."""
    found: dict[str, Decoder] = {f"Pillow {_version('pillow')}": _pillow}
    if (torchvision := _module("torchvision.io")) is not None:
        found[f"torchvision {_version('torchvision')}"] = partial(_torchvision, torchvision)
    if (simplejpeg := _module("simplejpeg")) is not None:
        found[f"simplejpeg {_version('simplejpeg')}"] = simplejpeg.decode_jpeg
        fast = partial(simplejpeg.decode_jpeg, fastdct=True, fastupsample=True)
        found[f"simplejpeg {_version('simplejpeg')}, fast"] = fast
    if (cv2 := _module("cv2")) is not None:
        found[f"OpenCV {_version('opencv-python-headless')}"] = partial(_opencv, cv2)
    if (imagecodecs := _module("imagecodecs")) is not None:
        found[f"imagecodecs {_version('imagecodecs')}"] = imagecodecs.jpeg8_decode
    if (turbojpeg := _module("turbojpeg")) is not None:
        try:
            engine = turbojpeg.TurboJPEG()
        except (RuntimeError, OSError):  # the system's libturbojpeg is missing
            engine = None
        if engine is not None:
            found[f"PyTurboJPEG {_version('PyTurboJPEG')}"] = partial(engine.decode, pixel_format=turbojpeg.TJPF_RGB)
    return found


def main() -> None:
    """Measure and print."""
    arguments = make_parser("JPEG decoders against Pillow.", rounds=5).parse_args()
    machine, files, known = this_machine(), pictures(), decoders()
    timed = [content for name, content in files.items() if name.startswith("4:2:0") and "640x427" in name]
    cases = {name: partial(_all, decode, timed * 8) for name, decode in known.items()}
    cases[_PREPARED] = partial(_all, _prepared, timed * 8)
    seconds = interleaved(cases, arguments.rounds, time.process_time)
    truncated = next(iter(files.values()))[:-2000]
    first = next(iter(known))
    rows: list[Row] = []
    for name, decode in known.items():
        same = [form for form in _FORMS if all(_equal(decode, c) for n, c in files.items() if n.startswith(form))]
        cells: dict[str, Cell] = {
            "decoder": name,
            "ms an image": 1e3 * statistics.median(seconds[name]) / (len(timed) * 8),
            "by Pillow": median_ratio(seconds[name], seconds[first]),
            "the same bytes": ", ".join(same) or "none",
            "refuses a truncated file": "yes" if _refuses(decode, truncated) else "NO",
        }
        rows.append(cells)
    rows.append(
        {
            "decoder": _PREPARED,
            "ms an image": 1e3 * statistics.median(seconds[_PREPARED]) / (len(timed) * 8),
            "by Pillow": median_ratio(seconds[_PREPARED], seconds[first]),
        }
    )
    publish("JPEG photos of 640x427 pixels, 4:2:0, to RGB: CPU time, one thread", machine, rows, arguments)


def _pillow(content: bytes) -> Pixels:
    return np.asarray(decode_image(content).convert("RGB"))


def _prepared(content: bytes) -> Pixels:
    return to_pixels(decode_image(content), Preprocessing(resize=256, crop=224))


def _torchvision(io_module: Any, content: bytes) -> Pixels:
    import torch

    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels: Pixels = io_module.decode_jpeg(data, mode=io_module.ImageReadMode.RGB).permute(1, 2, 0).numpy()
    return pixels


def _opencv(cv2: Any, content: bytes) -> Pixels:
    cv2.setNumThreads(1)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ValueError("not decoded")
    found: Pixels = pixels
    return found


def _equal(decode: Decoder, content: bytes) -> bool:
    try:
        found = decode(content)
    except Exception:  # every decoder has exceptions of its own
        return False
    expected = _pillow(content)
    if found.ndim == 2:
        found = np.repeat(found[:, :, None], 3, 2)
    return np.array_equal(found, expected)


def _refuses(decode: Decoder, content: bytes) -> bool:
    try:
        decode(content)
    except Exception:  # every decoder has exceptions of its own
        return True
    return False


def _all(decode: Decoder, files: list[bytes]) -> None:
    for content in files:
        decode(content)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
