"""Runs to bundle, and bundles changed behind their makers' back."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines import bundle_archive
from engines.bundle import write_bundle
from engines.bundle_archive import extract
from engines.bundle_manifest import MANIFEST, BundleManifest, FileFacts
from engines.run_folder import RunFolder
from tests.engine_nets import VERSION, exported_run

__all__ = [
    "CLASSES",
    "METADATA",
    "bundle_of",
    "entry",
    "manifest_of",
    "packed",
    "raw_archive",
    "resigned",
    "run_with_samples",
]

CLASSES: Final = [f"class {index}" for index in range(10)]
METADATA: Final[Mapping[str, object]] = {
    "target": "tensorrt",
    "bits": 8,
    "model": "net.py:build",
    "recipe": {"bits": 8},
    "classes": CLASSES,
    "preprocessing": {
        **{"resize": None, "crop": [16, 16], "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3},
        **{"scale": 255.0, "color": "RGB", "orientation": "stored"},
    },
    "modules": {"conv": "stem.conv", "head": "classifier"},
    "certificate": {
        "conv": {"kind": "conv", "worst": 4194304, "ratio": 0.25, "channel": 0, "proven": True},
        "head": {"kind": "conv", "worst": 33554432, "ratio": 2.0, "channel": 1, "proven": False},
    },
}


def run_with_samples(folder: Path, count: int = 5, **flags: Any) -> RunFolder:
    """A run with a small classifier and `count` samples of 16x16 pixels; `flags` as for `exported_run`."""
    run = exported_run(folder, **({"metadata": METADATA} | flags))
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    np.savez_compressed(folder / "samples.npz", pixels=pixels, labels=np.arange(count) % 10)
    run.record("calibrate", version=VERSION, outputs=["samples.npz"])
    return run


def bundle_of(folder: Path, **flags: Any) -> Path:
    """A bundle of such a run; `flags` as for `exported_run`."""
    return write_bundle(run_with_samples(folder / "r18", **flags), folder / "r18.tgz", version=VERSION).path


def manifest_of(files: Mapping[str, bytes], **changes: Any) -> BundleManifest:
    """A manifest that lists these files; `changes` replace some of its fields."""
    facts = {name: FileFacts(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in files.items()}
    fields: dict[str, Any] = {
        **{"faq_deploy": VERSION, "run": "r", "target": None, "bits": None, "onnx_sha256": "0" * 64, "images": 1},
        "files": facts,
    }
    return BundleManifest(**(fields | changes))


def packed(bundle: Path, files: Mapping[str, bytes], folder: Path) -> Path:
    """Write a bundle of these files with an honest manifest."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    bundle_archive.write(bundle, manifest_of(files), {name: folder / name for name in files})
    return bundle


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """One entry of an archive, of any kind."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def raw_archive(
    bundle: Path,
    manifest: BundleManifest | bytes,
    *entries: tuple[tarfile.TarInfo, bytes],
    form: int = tarfile.USTAR_FORMAT,
) -> Path:
    """An archive of whatever an attacker puts into it, after a manifest."""
    text = manifest if isinstance(manifest, bytes) else manifest.model_dump_json().encode()
    with tarfile.open(bundle, "w:gz", format=form) as archive:
        for info, data in (entry(MANIFEST, text), *entries):
            archive.addfile(info, io.BytesIO(data))
    return bundle


def resigned(bundle: Path, output: Path, folder: Path, changes: Mapping[str, bytes]) -> Path:
    """A copy in which some files are others, and whose manifest says so."""
    folder.mkdir()
    manifest = extract(bundle, folder)
    files = {name: (folder / name).read_bytes() for name in manifest.files} | dict(changes)
    for name, data in changes.items():
        (folder / name).write_bytes(data)
    honest = manifest.model_copy(update={"files": manifest_of(files).files})
    bundle_archive.write(output, honest, {name: folder / name for name in files})
    return output
