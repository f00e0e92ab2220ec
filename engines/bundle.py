"""The verb `bundle`: a run becomes one file that a machine without torch can build, run and check."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import onnx
from pydantic import ValidationError

from engines import bundle_archive
from engines.bundle_manifest import BundleManifest, FileFacts, summary
from engines.bundle_samples import pixels_of_run, write_samples
from engines.errors import InputError
from engines.external_data import data_files, sha256_with_data
from engines.files import scratch_folder, sha256_of
from engines.onnx_metadata import holds_float_weights, metadata_of
from engines.pack_wheel import pack_wheel
from engines.preprocess import Preprocessing
from engines.profile import DEFAULT_PROFILE
from engines.qdq_graph import QdqGraph, load_model, read_graph
from engines.run_folder import RunFolder

__all__ = ["BUILD", "CLASSES", "MODEL", "PREPROCESSING", "Bundle", "write_bundle"]

MODEL: Final = "model.onnx"
BUILD: Final = "build.json"
PREPROCESSING: Final = "preprocessing.json"
CLASSES: Final = "classes.json"

_PACKAGES: Final = ("onnx", "onnxruntime", "numpy", "Pillow")
_RECIPE: Final[Mapping[str, object]] = {
    "command": "faq-deploy build model.onnx",
    "calibration": "none: every scale is in the file, and nothing is quantized again",
    "batch": str(DEFAULT_PROFILE),
    "runtimes": {
        "tensorrt": {
            "10": "from 10.12 on: a strongly typed network from the ONNX parser, on the machine that runs it",
            "11": "the same file and the same steps; strongly typed networks are the only kind there",
        },
        "tensorrt-rtx": "ahead of time for any GPU from SM 7.5 on, one engine an architecture: --sm",
        "onnxruntime": "the file itself is the engine",
    },
}
_LICENSE_NOTE: Final = """\
The tool (the wheel in this bundle) is faq-deploy, under the Apache License 2.0; its text is inside the wheel.

The network (model.onnx: architecture and weights), the class names and the pictures in samples/ are not part of the
tool. They come from whoever made this bundle, and the licences of the model and of the data set that they were made
from apply to them. Check these before you pass the bundle on.
"""
_README: Final = """\
{run}: {what}, packed by faq-deploy {version}.

On the machine that is to run it (Python {python}; bundle.tgz is the file that this text is in):

    tar xzf bundle.tgz {wheel}
    pip install ./{wheel}
    faq-deploy verify bundle.tgz

`verify` builds the engine there, runs the {images} pictures in samples/, and compares every code and every logit with
expected.npz. Exit code 0: the same integers. 1: something differs, and the first layer is named. 2: this file is
damaged. 3: no engine runs on this machine; `faq-deploy doctor` says what is missing.

    faq-deploy verify bundle.tgz -o engines          keeps the engine
    faq-deploy eval --bundle bundle.tgz --data DIR   its accuracy on your own labelled images, one folder a class

LICENSE-NOTE.txt says whose what is.
"""


@dataclass(frozen=True)
class Bundle:
    """What was written: the file, its size in bytes, and its manifest."""

    path: Path
    bytes: int
    manifest: BundleManifest


def write_bundle(
    run: RunFolder,
    output: Path,
    *,
    version: str,
    force: bool = False,
    on_images: Callable[[int, int], None] = lambda count, total: None,
) -> Bundle:
    """Pack a run.

    Args:
        run: a run after `export`.
        output: the bundle, such as r18.tgz; it appears whole or not at all.
        version: of faq-deploy.
        force: replace a file that is there.
        on_images: told how many more samples of how many are done.

    Returns:
        What was written; the same run gives the same bytes.

    Raises:
        InputError: no run, no model.onnx or a stale one, damaged samples, or something that stands in the way.
        WriteError: the disk is full, or the folder can't be written.
        CannotRunHere: faq-deploy is not installed as a package.
    """
    model = run.require_fresh("export", MODEL, {"quantized.pt": "quantize"})
    pixels, labels = pixels_of_run(run.require("calibrate", "samples.npz"))
    if output.is_dir():
        raise InputError(f"{output} is a folder.", "name a file with -o, such as r18.tgz.")
    if output.exists() and not force:
        raise InputError(f"{output} is there already.", "pass --force to replace it, or another name with -o.")
    with scratch_folder() as folder:
        _write_model(model, folder / MODEL)
        graph = read_graph(load_model(folder / MODEL))
        said = metadata_of(graph.model)
        preprocessing = _preprocessing(said, model)
        written = write_samples(folder, folder / MODEL, graph, pixels, labels, preprocessing, on_images)
        wheel = pack_wheel()
        (folder / wheel.name).write_bytes(wheel.data)
        _write_json(folder / BUILD, _RECIPE)
        _write_json(folder / PREPROCESSING, preprocessing.model_dump(mode="json"))
        _write_json(folder / CLASSES, said.get("classes"))
        (folder / "LICENSE-NOTE.txt").write_text(_LICENSE_NOTE, "utf-8")
        (folder / "README.txt").write_text(_readme(run, said, wheel.name, version, len(pixels)), "utf-8")
        names = (MODEL, BUILD, PREPROCESSING, CLASSES, "LICENSE-NOTE.txt", "README.txt", wheel.name, *written)
        files = {name: folder / name for name in names}
        manifest = _manifest(run, model, graph, said, files, version, len(pixels))
        bundle_archive.write(output, manifest, files)
    return Bundle(output, output.stat().st_size, manifest)


def _write_model(model: Path, output: Path) -> None:
    """A copy that needs no other file; byte for byte where it needed none before."""
    if not data_files(onnx.load(model, load_external_data=False), model):
        output.write_bytes(model.read_bytes())
        return
    whole = load_model(model, unpack=False, any_inputs=True)
    output.write_bytes(whole.SerializeToString(deterministic=True))


def _preprocessing(said: Mapping[str, object], model: Path) -> Preprocessing:
    try:
        return Preprocessing.model_validate(said.get("preprocessing"))
    except ValidationError as error:
        raise InputError(
            f"{model} does not say how its images are prepared.", "export the run again with `faq-deploy export`."
        ) from error


def _manifest(
    run: RunFolder,
    model: Path,
    graph: QdqGraph,
    said: Mapping[str, object],
    files: Mapping[str, Path],
    tool_version: str,
    images: int,
) -> BundleManifest:
    certificate, target, bits, name = (said.get(key) for key in ("certificate", "target", "bits", "model"))
    return BundleManifest(
        faq_deploy=tool_version,
        run=run.path.resolve().name,
        model=name if isinstance(name, str) else None,
        target=target if isinstance(target, str) else None,
        bits=bits if isinstance(bits, int) else None,
        onnx_sha256=sha256_with_data(model, data_files(onnx.load(model, load_external_data=False), model)),
        float_parts=holds_float_weights(graph),
        images=images,
        certificate=summary(certificate) if isinstance(certificate, dict) else None,
        versions={"faq-deploy": tool_version, **_versions()},
        files={name: FileFacts(sha256=sha256_of(path), bytes=path.stat().st_size) for name, path in files.items()},
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def _readme(run: RunFolder, said: Mapping[str, object], wheel: str, tool_version: str, images: int) -> str:
    what = f"{said.get('model')} for {said.get('target')}, {said.get('bits')} bits"
    return _README.format(
        run=run.path.resolve().name,
        what=what,
        version=tool_version,
        python="3.10 to 3.13",
        wheel=wheel,
        images=images,
    )
