"""Versions of the packages that decide a result, for manifests and metadata."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["engine_versions", "torch_versions"]


def torch_versions() -> dict[str, str]:
    """faq-deploy and what trains."""
    return _versions("faq-deploy", "torch", "torchvision", "numpy", "Pillow")


def engine_versions() -> dict[str, str]:
    """faq-deploy and what exports and runs."""
    return _versions("faq-deploy", "torch", "onnx", "onnxruntime", "numpy")


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
