"""A bundle, unpacked and checked, for as long as something runs from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from pydantic import ValidationError

from engines.bundle import CLASSES, MODEL, PREPROCESSING
from engines.bundle_archive import extract
from engines.bundle_manifest import BundleManifest
from engines.bundle_samples import Samples, load_samples
from engines.errors import InputError, WriteError
from engines.files import scratch_folder
from engines.json_text import read_json
from engines.onnx_metadata import metadata_of, modules_of
from engines.preprocess import Preprocessing, normalize
from engines.qdq_graph import QdqGraph, load_model, read_graph
from engines.runner import FloatArray

__all__ = ["OpenedBundle", "opened"]

_REASON: Final = 160  # characters of another package's message: the first ones name the node


@dataclass(frozen=True)
class OpenedBundle:
    """What verify and eval work on.

    Attributes:
        path: the bundle.
        folder: where it is unpacked, for now.
        manifest: its own.
        graph: of its model.onnx.
        modules: module path in the user's model by ONNX node, where export wrote it.
        preprocessing: of its images.
        classes: their names, in the order of the logits; empty where the run had none.
        samples: pictures and what is expected of them.
    """

    path: Path
    folder: Path
    manifest: BundleManifest
    graph: QdqGraph
    modules: Mapping[str, str]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    samples: Samples

    @property
    def model(self) -> Path:
        """The unpacked model.onnx."""
        return self.folder / MODEL

    def images(self) -> FloatArray:
        """The samples as the network reads them: float32, shape (N, C, H, W)."""
        return normalize(self.samples.pixels, self.preprocessing)


@contextlib.contextmanager
def opened(bundle: Path) -> Iterator[OpenedBundle]:
    """Unpack a bundle into a temporary folder, which goes when the block ends, on Ctrl-C too.

    Args:
        bundle: the file.

    Yields:
        The bundle, every file of it checked.

    Raises:
        InputError: it is damaged, is none, is from a newer version, or its parts don't belong together.
        WriteError: there is no room for it.
    """
    with scratch_folder() as folder:
        manifest = extract(bundle, folder)
        with _named(bundle, folder):
            yield _read(bundle, folder, manifest)


@contextlib.contextmanager
def _named(bundle: Path, folder: Path) -> Iterator[None]:
    """Messages name the bundle, rather than a temporary folder that is gone when they are read."""
    try:
        yield
    except WriteError:
        raise  # where there is no room, that folder is the point
    except InputError as error:
        if f"{folder}/" not in error.what:
            raise
        raise InputError(f"{bundle}: {error.what.replace(f'{folder}/', '')}", error.remedy) from error


def _read(bundle: Path, folder: Path, manifest: BundleManifest) -> OpenedBundle:
    lacking = [name for name in (MODEL, PREPROCESSING, CLASSES) if name not in manifest.files]
    if lacking:
        raise InputError(f"{bundle} holds no {lacking[0]}.", "write it again with `faq-deploy bundle`.")
    graph, said = _graph(bundle, folder / MODEL)
    preprocessing = _preprocessing(bundle, folder / PREPROCESSING)
    if preprocessing.model_dump(mode="json") != said.get("preprocessing"):
        raise InputError(
            f"{bundle}: {PREPROCESSING} is not how the images of its model were prepared, and accuracy would fall.",
            "write the bundle again with `faq-deploy bundle`.",
        )
    samples = load_samples(folder, preprocessing)
    if samples.expected.tensors != graph.code_names:
        raise InputError(
            f"{bundle}: its model has other tensors than its samples were computed with.",
            "write the bundle again with `faq-deploy bundle`.",
        )
    return OpenedBundle(
        path=bundle,
        folder=folder,
        manifest=manifest,
        graph=graph,
        modules=modules_of(graph.model),
        preprocessing=preprocessing,
        classes=_classes(bundle, folder / CLASSES, said.get("classes")),
        samples=samples,
    )


def _graph(bundle: Path, path: Path) -> tuple[QdqGraph, dict[str, object]]:
    """The model and its metadata; a manifest that was signed again may vouch for a file that no runtime should see."""
    try:
        model = load_model(path)  # first: it follows no path out of the folder
        onnx.checker.check_model(str(path), full_check=True)
        return read_graph(model), metadata_of(model)
    except InputError:
        raise
    except Exception as error:  # what is wrong decides who stumbles: the checker, protobuf or NumPy
        reason = " ".join(str(error).split())[:_REASON].rstrip(". ")
        raise InputError(
            f"{bundle}: {path.name} is not an ONNX file that can be run ({reason}).",
            "write the bundle again with `faq-deploy bundle`.",
        ) from error


def _preprocessing(bundle: Path, path: Path) -> Preprocessing:
    try:
        return Preprocessing.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(
            f"{bundle}: {path.name} does not say how images are prepared ({error.errors()[0]['msg']}).",
            "write the bundle again with `faq-deploy bundle`.",
        ) from error


def _classes(bundle: Path, path: Path, exported: object) -> tuple[str, ...]:
    try:
        names = read_json(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{bundle}: {path.name} is not JSON.", "write it again with `faq-deploy bundle`.") from error
    if names != exported:
        raise InputError(
            f"{bundle}: {path.name} does not name the classes of its model, so that answers would get wrong names.",
            "write the bundle again with `faq-deploy bundle`.",
        )
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
