"""Preprocessing: how a picture becomes the numbers a network reads, one definition for torch and for engines.

The steps are torchvision's `Resize`, `CenterCrop`, `ToTensor` and `Normalize` on a Pillow image, and give the same
bytes, but need only Pillow and NumPy.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engines.errors import InputError

__all__ = ["BadImage", "PixelArray", "Preprocessing", "normalize", "to_color", "to_pixels"]

PixelArray = npt.NDArray[np.uint8]

_FILTERS: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
_EXIF_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {  # the value of the EXIF tag -> what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY: Final = frozenset({"1", "L", "LA", "La"})
_COLOR: Final = frozenset({"RGB", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_SIXTEEN_BIT: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_THROUGH: Final = {"La": "LA", "RGBa": "RGBA", "P": "RGBA", "PA": "RGBA"}  # Pillow converts these in two steps
_NORMALIZED_AT_ONCE: Final = 1 << 17  # values; small enough to stay in cache between the three passes


class BadImage(InputError):
    """One image that can't be used: it is damaged, or of a kind that is refused by name."""


class Preprocessing(BaseModel):
    """How images are prepared. Saved with the run and in the ONNX metadata; equal fields give equal bytes.

    Attributes:
        resize: the shorter side after resizing, in pixels; None leaves the size as it is.
        crop: center crop (height, width) in pixels, a single number for a square; smaller images are padded with 0.
        interpolation: the filter of the resize, with antialiasing as Pillow always does.
        mean: per channel, in units of pixel / scale (0..1 with the default scale); its length is the channel count.
        std: per channel, same units.
        scale: what uint8 pixels are divided by; 1.0 for networks that were trained on 0..255.
        color: "RGB" (3 channels) or "L" (1 channel, grey).
        orientation: "stored" ignores the EXIF orientation as torchvision does; "upright" obeys it. Pillow itself turns
            TIFF files upright in both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    resize: int | None = Field(default=None, gt=0)
    crop: int | tuple[int, int] | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = Field(default=255.0, gt=0)
    color: Literal["RGB", "L"] = "RGB"
    orientation: Literal["stored", "upright"] = "stored"

    @field_validator("crop", mode="after")
    @classmethod
    def _square(cls, crop: int | tuple[int, int] | None) -> tuple[int, int] | None:
        size = (crop, crop) if isinstance(crop, int) else crop
        if size is not None and min(size) < 1:
            raise ValueError(f"crop must be at least 1 pixel in both directions, not {size}")
        return size

    @model_validator(mode="after")
    def _one_mean_per_channel(self) -> Preprocessing:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{self.color} needs {self.channels} values of mean and std, not {len(self.mean)} and {len(self.std)}"
            )
        with np.errstate(over="ignore"):
            divisors = np.asarray([*self.std, self.scale], np.float32)
        if not np.all((divisors > 0) & np.isfinite(divisors)):
            raise ValueError("std and scale must be positive and finite in float32")
        return self

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return 3 if self.color == "RGB" else 1

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """Height and width after the crop, or None without one."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the network's input, or None where only the images tell."""
        size = self.crop_size
        return None if size is None else (self.channels, *size)

    def fingerprint(self) -> str:
        """The sha256 (hexadecimal) of the canonical JSON: equal exactly when all fields are equal."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def to_color(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """The whole picture in the wanted colour and orientation, before resize and crop.

    An alpha channel is dropped, as by torchvision's loader. Grey of 16 bits becomes v >> 8, so that a 16-bit file
    equals its 8-bit twin; Pillow's own conversion would turn all over 255 white.

    Args:
        image: any Pillow image whose data can be loaded.
        spec: names the colour and the orientation.

    Returns:
        An image of mode `spec.color`; the given one where there is nothing to change.

    Raises:
        BadImage: floating-point pixels, 32-bit pixels beyond 65535, or a mode that isn't known.
    """
    upright = _turned_upright(image) if spec.orientation == "upright" else image
    if upright.mode in _SIXTEEN_BIT or upright.mode == "I":
        plain = _eight_bits(upright)
    elif upright.mode in _GREY or upright.mode in _COLOR:
        plain = _in_mode(upright, _THROUGH.get(upright.mode, upright.mode))
    else:
        raise BadImage(
            f"its pixels are of mode {upright.mode}, which has no defined range",
            "convert it to 8-bit RGB or grey, or to 16-bit grey.",
        )
    # colour goes to grey by way of RGB, as in torchvision: loader, then Grayscale
    return _in_mode(plain if plain.mode in _GREY else _in_mode(plain, "RGB"), spec.color)


def to_pixels(image: Image.Image, spec: Preprocessing) -> PixelArray:
    """The pixels a network sees: colour, orientation, resize, center crop.

    Args:
        image: any Pillow image whose data can be loaded.
        spec: the steps.

    Returns:
        uint8, shape (height, width, channels), C-contiguous and writable.

    Raises:
        BadImage: as `to_color`, or the resized picture would pass Pillow's limit on pixels.
    """
    picture = to_color(image, spec)
    if spec.resize is not None:
        picture = _resized(picture, spec.resize, _FILTERS[spec.interpolation])
    if spec.crop_size is not None:
        picture = _center_cropped(picture, *spec.crop_size)
    return np.array(picture, dtype=np.uint8).reshape(picture.height, picture.width, spec.channels)


def normalize(pixels: PixelArray, spec: Preprocessing) -> npt.NDArray[np.float32]:
    """(pixels / scale - mean) / std in float32, operation by operation as torchvision's ToTensor and Normalize.

    Args:
        pixels: uint8, shape (H, W, C) or (N, H, W, C), any memory layout.
        spec: scale, mean and std.

    Returns:
        float32, shape (C, H, W) or (N, C, H, W), C-contiguous.

    Raises:
        InputError: the pixels aren't uint8, or have another number of channels.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != spec.channels:
        raise InputError(
            f"the pixels are {pixels.dtype} of shape {pixels.shape}, not uint8 of (N, H, W, {spec.channels}).",
            "pass what to_pixels returns.",
        )
    batch = pixels if pixels.ndim == 4 else pixels[np.newaxis]
    count, height, width, channels = batch.shape
    normalized = np.empty((count, channels, height, width), np.float32)
    scale = np.float32(spec.scale)
    mean, std = (np.asarray(values, np.float32)[:, np.newaxis, np.newaxis] for values in (spec.mean, spec.std))
    images_at_once = max(1, _NORMALIZED_AT_ONCE // max(1, height * width * channels))
    for start in range(0, count, images_at_once):
        piece = normalized[start : start + images_at_once]
        piece[...] = batch[start : start + images_at_once].transpose(0, 3, 1, 2)
        piece /= scale
        piece -= mean
        piece /= std
    return normalized if pixels.ndim == 4 else normalized[0]


def _turned_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except (SyntaxError, ValueError, TypeError, LookupError, EOFError, OSError, struct.error):
        return image  # a damaged EXIF block says nothing about orientation; the picture itself is fine
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise BadImage(
            f"its 32-bit pixels run from {values.min()} to {values.max()}, beyond 16 bits",
            "rescale it to 8 or 16 bits: the range that should become white isn't known.",
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


def _resized(image: Image.Image, shorter: int, resample: Image.Resampling) -> Image.Image:
    width, height = image.size
    longer = int(shorter * max(width, height) / min(width, height))  # truncated, as torchvision does
    if shorter * longer > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise BadImage(
            f"{width}x{height} pixels with the shorter side resized to {shorter} would be {shorter * longer:,} pixels",
            "crop the image to a less extreme shape.",
        )
    return image.resize((shorter, longer) if width <= height else (longer, shorter), resample)


def _center_cropped(image: Image.Image, height: int, width: int) -> Image.Image:
    pad_x, pad_y = max(0, width - image.width), max(0, height - image.height)
    if pad_x or pad_y:
        padded = Image.new(image.mode, (image.width + pad_x, image.height + pad_y))
        padded.paste(image, (pad_x // 2, pad_y // 2))
        image = padded
    # Python's round, half to even: torchvision uses the same
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
