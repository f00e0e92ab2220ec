"""What SECURITY.md and docs/security.md claim, against the code."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from engines import bundle_archive, engine_manifest, well_formed
from engines.errors import InputError
from engines.image_files import decode_image
from engines.lint import lint_file
from engines.onnx_facts import read
from engines.preprocess import BadImage
from engines.qdq_graph import load_model
from engines.run_folder import RunFolder
from faq_deploy import limits, shard_index, stored_report
from faq_deploy.recipe import load_recipe
from faq_deploy.samples import load_samples
from faq_deploy.stored_net import load_net
from faq_deploy.weights_file import read_weights_file
from tests.engine_nets import built, classifier, exported_run
from tests.fuzz import TARGETS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
GIB = 1 << 30


class _Writes:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_the_page_states_the_limits_of_the_code() -> None:
    assert f"{Image.MAX_IMAGE_PIXELS:,} pixels" in PAGE
    assert f"{well_formed.MOST_BYTES // GIB} GiB for the file" in PAGE
    assert f"{bundle_archive.MOST_BYTES // GIB} GiB unpacked" in PAGE
    assert f"at most {bundle_archive._MOST_RATIO} times the packed size" in PAGE
    assert f"over {bundle_archive._ALWAYS_ALLOWED >> 20} MiB" in PAGE
    assert f"{bundle_archive._MOST_MANIFEST >> 20} MiB for the manifest" in PAGE
    assert f"{shard_index._LONGEST_LABEL >> 20} MiB for a label" in PAGE


@pytest.mark.parametrize(
    ("name", "read_it"),
    [
        ("manifest.json", lambda path: RunFolder(path.parent).manifest()),
        ("manifest.json", lambda path: engine_manifest.read(path.parent)),
        ("report.json", stored_report.read_report),
        ("recipe.toml", lambda path: load_recipe(str(path))),
        ("gate.toml", lambda path: limits.read_limits(path, {})),
    ],
    ids=["run", "engine", "report", "recipe", "gates"],
)
def test_deep_nesting_is_a_sentence(tmp_path: Path, name: str, read_it: Callable[[Path], object]) -> None:
    """Found by 100,000 damaged inputs: Python's readers of JSON and TOML end deep nesting by a RecursionError."""
    path = tmp_path / name
    path.write_text("x = " * name.endswith("toml") + "[" * 100_000)
    with pytest.raises(InputError) as caught:
        read_it(path)
    assert "\n" not in caught.value.what


@pytest.mark.parametrize("name", ["a" * 5000, "é" * 200, "a\0b"])
def test_an_engine_of_a_name_that_no_file_can_have_is_missing(tmp_path: Path, name: str) -> None:
    built(exported_run(tmp_path), ["onnxruntime"])
    record = tmp_path / "engines" / "onnxruntime" / "manifest.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"file": name}))
    with pytest.raises(InputError, match="is missing although"):
        engine_manifest.check(record.parent)


def test_the_page_lists_what_is_fuzzed() -> None:
    sentence = re.search(r"damages ([^:]*):", PAGE.replace("\n", " "))
    assert sentence is not None
    assert sentence[1] == "recipes, run manifests, engine records, ONNX files, bundles, images and shards"
    assert [target.name for target in TARGETS] == [
        *("recipe", "run-manifest", "engine-manifest", "onnx", "bundle", "image", "shard")
    ]


def test_a_pickle_that_does_something_is_refused_and_does_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps({"state_dict": _Writes(made)}))
    zipped = tmp_path / "zipped.pth"
    torch.save({"state_dict": _Writes(made)}, zipped)
    for path in (plain, zipped):
        for reader in (read_weights_file, load_net):
            with pytest.raises(InputError):
                reader(path)
    arrays = tmp_path / "samples.npz"
    with zipfile.ZipFile(arrays, "w") as archive:
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.array([_Writes(made)], object), allow_pickle=True)
        archive.writestr("pixels.npy", stream.getvalue())
    with pytest.raises(InputError):
        load_samples(arrays, None)  # type: ignore[arg-type]  # it is refused before that is looked at
    assert not made.exists()
    pickle.loads(plain.read_bytes())
    assert made.is_dir()  # so the pickle does what it is meant to


def test_a_file_over_the_limit_is_no_onnx_file_and_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as stream:
        stream.truncate(well_formed.MOST_BYTES + 1)  # sparse: it takes no room
    for reader in (load_model, read, lint_file):
        with pytest.raises(InputError, match="has 2,147,483,649 bytes, and an ONNX file has 2,147,483,648 at most"):
            reader(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "folder/../../secret", ""])
def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(10_000))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    path = classifier(folder / "model.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="is a link, or lies outside the folder"):
        load_model(path)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_small_file_of_very_many_pixels_is_refused(kind: str) -> None:
    """Over the limit of Pillow, below the double of it, where Pillow itself only warns."""
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    side = 16_000 if kind == "WEBP" else 10_000
    picture = Image.new("1" if kind == "PNG" else "L", (side, 100_000_000 // side))
    stream = io.BytesIO()
    picture.save(stream, kind, **({"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}))
    assert len(stream.getvalue()) < 1_000_000
    with pytest.raises(BadImage, match="decompression bomb"), pytest.warns(Image.DecompressionBombWarning):
        decode_image(stream.getvalue())
