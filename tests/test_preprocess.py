"""Preprocessing gives torchvision's bytes without torchvision, for every kind of image file."""

from __future__ import annotations

import hashlib
import io
import itertools
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from engines.errors import InputError
from engines.preprocess import BadImage, Preprocessing, normalize, to_color, to_pixels

Interpolation = Literal["bilinear", "bicubic", "nearest"]
PLAIN = Preprocessing()
GREY = Preprocessing(color="L", mean=(0.5,), std=(0.25,))


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, file_format: str, **options: object) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    stream.seek(0)
    return Image.open(stream)


@settings(max_examples=60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    resize=st.none() | st.integers(1, 60),
    crop=st.none() | st.tuples(st.integers(1, 64), st.integers(1, 64)),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
    seed=st.integers(0, 99),
)
def test_bytes_equal_torchvision(
    height: int,
    width: int,
    resize: int | None,
    crop: tuple[int, int] | None,
    interpolation: Interpolation,
    seed: int,
) -> None:
    spec = Preprocessing(resize=resize, crop=crop, interpolation=interpolation)
    steps = [transforms.Resize(resize, InterpolationMode(interpolation))] if resize else []
    steps += [transforms.CenterCrop(crop)] if crop else []
    steps += [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
    image = noise(height, width, seed)
    ours = normalize(to_pixels(image, spec), spec)
    assert ours.flags.c_contiguous
    assert ours.tobytes() == transforms.Compose(steps)(image).contiguous().numpy().tobytes()


def test_every_pixel_value_is_normalized_as_by_torchvision() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp[::-1]], axis=-1))
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(PLAIN.mean, PLAIN.std)])
    assert normalize(to_pixels(image, PLAIN), PLAIN).tobytes() == steps(image).numpy().tobytes()


def test_grey_equals_torchvision_grayscale() -> None:
    image = noise(31, 23)
    steps = transforms.Compose([transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize((0.5,), (0.25,))])
    assert normalize(to_pixels(image, GREY), GREY).tobytes() == steps(image).numpy().tobytes()


def test_a_batch_is_normalized_as_its_images_whatever_the_layout() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 200, 180, 3), dtype=np.uint8)
    expected = np.stack([normalize(image, PLAIN) for image in pixels])
    for same in (pixels, np.asfortranarray(pixels), pixels[:, :, ::-1][:, :, ::-1]):
        batch = normalize(same, PLAIN)
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        assert batch.tobytes() == expected.tobytes()
    assert normalize(pixels[:0], PLAIN).shape == (0, 3, 200, 180)


def test_scale_one_keeps_raw_pixels() -> None:
    spec = Preprocessing(scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = to_pixels(noise(4, 5), spec)
    np.testing.assert_array_equal(normalize(pixels, spec), pixels.transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4, 1), np.uint8)]
)
def test_pixels_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match="not uint8 of"):
        normalize(pixels, PLAIN)


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "LA", "La", "1", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
@pytest.mark.parametrize("spec", [PLAIN, GREY], ids=["RGB", "L"])
def test_a_constant_picture_keeps_its_colour_from_every_mode(mode: str, spec: Preprocessing) -> None:
    color = (255, 255, 255)
    white = Image.new("RGB", (6, 4), color)
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)
    image = white.convert(through).convert(mode)
    pixels = to_pixels(image, spec)
    assert pixels.shape == (4, 6, spec.channels)
    assert pixels.dtype == np.uint8
    assert set(pixels.ravel().tolist()) == {255}


def test_lab_is_converted() -> None:
    pixels = to_pixels(Image.new("LAB", (2, 2), (255, 128, 128)), PLAIN)
    assert pixels.min() >= 253


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "CMYK", "L", "YCbCr", "1"])
def test_conversion_equals_torchvisions_loader(mode: str) -> None:
    image = noise(9, 7).convert(mode)
    np.testing.assert_array_equal(to_pixels(image, PLAIN), np.asarray(image.convert("RGB")))


def test_transparent_palette_drops_its_transparency_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    image = saved(noise(8, 8).quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))
    assert isinstance(image.info["transparency"], bytes)
    palette = np.asarray(image.getpalette(), np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(to_pixels(image, PLAIN), palette[np.asarray(image)])
    assert not [warning for warning in recwarn if "transparency" in str(warning.message).lower()]


@pytest.mark.parametrize("spec", [PLAIN, GREY], ids=["RGB", "L"])
@pytest.mark.parametrize(
    ("file_format", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<i4"), (None, "<i4")]
)
def test_sixteen_bits_equal_the_eight_bit_twin(file_format: str | None, dtype: str, spec: Preprocessing) -> None:
    ramp = np.tile(np.arange(256), (16, 1))
    sixteen = Image.fromarray((257 * ramp).astype(dtype))
    image = saved(sixteen, file_format) if file_format else sixteen
    assert image.mode in {"I;16", "I;16B", "I"}
    pixels = to_pixels(image, spec)
    np.testing.assert_array_equal(pixels, to_pixels(Image.fromarray(ramp.astype(np.uint8)), spec))
    assert len(np.unique(pixels)) == 256
    assert (pixels[..., 0] == 255).sum() == 16  # one white column


def test_sixteen_bits_are_truncated_not_rounded() -> None:
    image = Image.fromarray(np.array([[0x00FF, 0x0100, 0x7FFF, 0xFFFF]], np.uint16))
    assert to_pixels(image, GREY).ravel().tolist() == [0, 1, 127, 255]


@pytest.mark.parametrize(("low", "high"), [(0, 65536), (-1, 5), (0, 2**31 - 1)])
def test_thirty_two_bit_integers_beyond_sixteen_bits_are_refused(low: int, high: int) -> None:
    image = Image.fromarray(np.array([[low, high]], np.int32))
    with pytest.raises(BadImage, match=f"run from {low} to {high}"):
        to_pixels(image, PLAIN)


def test_floating_point_pixels_are_refused_by_mode() -> None:
    with pytest.raises(BadImage, match="mode F"):
        to_pixels(Image.new("F", (2, 2)), PLAIN)


def test_an_extreme_aspect_ratio_does_not_become_a_huge_picture() -> None:
    with pytest.raises(BadImage, match="20000x1 pixels with the shorter side resized to 256"):
        to_pixels(Image.new("RGB", (20000, 1)), Preprocessing(resize=256, crop=224))


def flagged(orientation: int) -> Image.Image:
    """A lossless picture, left half red and right half blue, stored so that `orientation` turns it upright."""
    upright = Image.new("RGB", (64, 48), (255, 0, 0))
    upright.paste((0, 0, 255), (32, 0, 64, 48))
    upright.paste((0, 255, 0), (0, 0, 8, 4))  # a corner, so that all eight differ
    turns = Image.Transpose
    undo = [
        *(None, turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.FLIP_TOP_BOTTOM),
        *(turns.TRANSPOSE, turns.ROTATE_90, turns.TRANSVERSE, turns.ROTATE_270),
    ][orientation - 1]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(stored, "PNG", exif=exif)


def test_all_eight_exif_orientations_become_upright() -> None:
    upright = Preprocessing(orientation="upright")
    expected = to_pixels(flagged(1), upright)
    assert expected.shape == (48, 64, 3)
    for orientation in range(1, 9):
        np.testing.assert_array_equal(to_pixels(flagged(orientation), upright), expected)


def test_stored_orientation_is_what_torchvision_sees() -> None:
    stored = [to_pixels(flagged(orientation), PLAIN) for orientation in range(1, 9)]
    for orientation, pixels in enumerate(stored, start=1):
        np.testing.assert_array_equal(pixels, np.asarray(flagged(orientation).convert("RGB")))
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(stored, 2))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0MM\0*",
        b"Exif\0\0garbage that is no TIFF header",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff",  # beyond the end
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0x\0\0\0\0\0\0\0",  # orientation "x"
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_damaged_exif_block_is_no_error(exif: bytes, file_format: str) -> None:
    image = saved(noise(16, 24), file_format, exif=exif)
    assert to_pixels(image, Preprocessing(orientation="upright")).shape == (16, 24, 3)


def test_to_color_keeps_the_size() -> None:
    picture = to_color(noise(30, 20).convert("RGBA"), Preprocessing(resize=8, crop=8))
    assert (picture.mode, picture.size) == ("RGB", (20, 30))


def test_pixels_can_be_written_to() -> None:
    pixels = to_pixels(noise(3, 3), PLAIN)
    pixels[:] = 0
    assert not pixels.any()


def test_fingerprint_is_of_the_fields_and_survives_json() -> None:
    spec = Preprocessing(resize=256, crop=224)
    assert spec == Preprocessing(resize=256, crop=(224, 224))
    assert Preprocessing.model_validate_json(spec.model_dump_json()) == spec
    assert Preprocessing.model_validate_json(spec.model_dump_json()).fingerprint() == spec.fingerprint()
    assert len(spec.fingerprint()) == 64
    changes: dict[str, object] = {
        "resize": 255,
        "crop": (224, 225),
        "interpolation": "bicubic",
        "mean": (0.5, 0.456, 0.406),
        "std": (0.5, 0.224, 0.225),
        "scale": 1.0,
        "orientation": "upright",
    }
    fingerprints = {spec.model_copy(update={name: value}).fingerprint() for name, value in changes.items()}
    assert len(fingerprints | {spec.fingerprint()}) == 8


def test_fingerprint_is_the_hash_of_canonical_json() -> None:
    text = (
        '{"color":"RGB","crop":[224,224],"interpolation":"bilinear","mean":[0.485,0.456,0.406],'
        '"orientation":"stored","resize":256,"scale":255.0,"std":[0.229,0.224,0.225]}'
    )
    assert Preprocessing(resize=256, crop=224).fingerprint() == hashlib.sha256(text.encode()).hexdigest()


def test_input_shape_needs_a_crop() -> None:
    assert Preprocessing(crop=(8, 9)).input_shape == (3, 8, 9)
    assert GREY.input_shape is None


@pytest.mark.parametrize(
    "fields",
    [
        {"mean": (0.5,)},
        {"color": "L"},
        {"std": (0.2, 0.0, 0.2)},
        {"std": (0.2, 1e-60, 0.2)},
        {"scale": 1e39},
        {"mean": (0.5, float("nan"), 0.5)},
        {"crop": 0},
        {"crop": (5, -1)},
        {"resize": 0},
        {"color": "BGR"},
        {"interpolation": "area"},
        {"unknown": 1},
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing.model_validate(fields)
