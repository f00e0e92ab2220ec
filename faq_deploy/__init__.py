"""FAQ-style fixed-point quantization of CNNs. Importing this package loads nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["__version__"]

__version__: str

if not TYPE_CHECKING:  # hidden from mypy, which would otherwise accept any name

    def __getattr__(name: str) -> str:
        """Look up `__version__` when first asked: importlib.metadata costs more than all the rest here."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("faq-deploy")
        except PackageNotFoundError:
            return "0+unknown"  # a source tree that was never installed
