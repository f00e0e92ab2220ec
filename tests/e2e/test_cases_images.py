"""Cases C09 and C10: photographs with an orientation flag, and 16-bit pictures, from the folder to the ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.image_files import read_image
from engines.onnx_metadata import metadata_of
from engines.preprocess import PixelArray, Preprocessing, to_pixels
from engines.qdq_graph import load_model
from faq_deploy.data import open_data
from tests.e2e.conftest import Call
from tests.e2e.photos import quantize_photos, write_nets

pytestmark = [pytest.mark.xdist_group("digits"), pytest.mark.filterwarnings("always::UserWarning")]

TURNS = Image.Transpose
UNDO = (
    *(None, TURNS.FLIP_LEFT_RIGHT, TURNS.ROTATE_180, TURNS.FLIP_TOP_BOTTOM),
    *(TURNS.TRANSPOSE, TURNS.ROTATE_90, TURNS.TRANSVERSE, TURNS.ROTATE_270),
)


def exported(call: Call, folder: Path, data: Path, name: str, *options: object) -> tuple[Path, dict[str, object]]:
    """A run on these images, and the metadata of its model.onnx."""
    run = folder / name
    result = quantize_photos(call, f"{write_nets(folder)}:net", data, run, *options)
    assert result.exit_code == 0, result.output
    result = call("export", run)
    assert result.exit_code == 0, result.output
    return run, dict(metadata_of(load_model(run / "model.onnx")))


def picture() -> Image.Image:
    """Left half red, right half blue."""
    upright = Image.new("RGB", (64, 48), (255, 0, 0))
    upright.paste((0, 0, 255), (32, 0, 64, 48))
    return upright


def write_turned(root: Path) -> Path:
    """The picture in eight files, each stored so that its EXIF orientation turns it upright."""
    for split in ("train", "val"):
        for name in "abc":
            folder = root / split / name
            folder.mkdir(parents=True)
            for orientation, undo in enumerate(UNDO, start=1):
                stored, exif = picture() if undo is None else picture().transpose(undo), Image.Exif()
                exif[0x0112] = orientation
                # no subsampling: halves of one colour each stay so
                stored.save(folder / f"{orientation}.jpg", quality=95, subsampling=0, exif=exif)
    return root


def samples_of(run: Path) -> PixelArray:
    """The pixels that calibration saw."""
    with np.load(run / "samples.npz") as stored:
        pixels: PixelArray = stored["pixels"]
    return pixels


@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_c09_rotated_photographs_are_the_same_bytes_with_and_without_torch(
    call: Call, tmp_path: Path, orientation: str
) -> None:
    data = write_turned(tmp_path / "data")
    run, metadata = exported(call, tmp_path, data, "run", "--crop", 32, "--orientation", orientation)
    spec = Preprocessing.model_validate(metadata["preprocessing"])
    assert spec.orientation == orientation
    validation = open_data(str(data), preprocessing=spec).val
    at_the_engine = [to_pixels(read_image(data / "val" / "a" / f"{i}.jpg"), spec) for i in range(1, 9)]
    for index, pixels in enumerate(at_the_engine):
        np.testing.assert_array_equal(pixels, validation.pixels(index))
    left, right = at_the_engine[0][:, :16], at_the_engine[0][:, 16:]
    assert left[..., 0].min() > 250 and right[..., 2].min() > 250
    assert len({pixels.tobytes() for pixels in at_the_engine}) == (1 if orientation == "upright" else 4)
    seen = {pixels.tobytes() for pixels in samples_of(run)}
    assert seen <= {pixels.tobytes() for pixels in at_the_engine}

    assert call("eval", run, "--allow-skip").exit_code == 0
    words = json.loads((run / "report.json").read_text("utf-8"))["preprocessing"]
    assert ("turned upright" in words) == (orientation == "upright")


def write_ramps(root: Path, save: Callable[[np.ndarray, Path], None]) -> Path:
    """Pictures whose columns go from black to white, one way or the other."""
    ramp = np.tile(np.arange(256), (16, 1))
    for split in ("train", "val"):
        for name, values in zip("abc", (ramp, ramp[:, ::-1], np.roll(ramp, 128, 1)), strict=True):
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                save(values, root / split / name / f"{index}")
    return root


def eight_bits(values: np.ndarray, path: Path) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path.with_suffix(".png"))


def deep_png(values: np.ndarray, path: Path) -> None:
    Image.fromarray((257 * values).astype("<u2")).save(path.with_suffix(".png"))


def big_endian_tiff(values: np.ndarray, path: Path) -> None:
    Image.fromarray((257 * values).astype(">u2")).save(path.with_suffix(".tif"))


@pytest.mark.parametrize("save", [deep_png, big_endian_tiff])
def test_c10_sixteen_bit_pictures_calibrate_and_score_as_their_eight_bit_twins(
    call: Call, tmp_path: Path, save: Callable[[np.ndarray, Path], None]
) -> None:
    seen = []
    for name, write in (("twin", eight_bits), ("deep", save)):
        data = write_ramps(tmp_path / name, write)
        seen.append(exported(call, tmp_path, data, f"run-{name}", "--crop", 0))
    (twin, wanted), (deep, metadata) = seen
    np.testing.assert_array_equal(samples_of(deep), samples_of(twin))
    levels = samples_of(deep)[0]
    assert len(np.unique(levels)) == 256 and (levels[0, :, 0] == 255).sum() == 1
    assert metadata["exponents"] == wanted["exponents"]
