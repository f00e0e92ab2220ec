"""FAQ-style fixed-point quantization of CNNs: prepare, calibrate, train, export, check. docs/api.md is the manual.

Importing this package loads nothing else: torch is imported when one of its calls is first looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engines.errors import CannotRunHere, FaqError, InputError
    from faq_deploy.activation_exponents import ActivationRange
    from faq_deploy.agreement import Agreement
    from faq_deploy.api import calibrate, check, export, prepare
    from faq_deploy.check_result import CheckResult
    from faq_deploy.onnx_export import ExportResult
    from faq_deploy.prepared_model import PreparedModel
    from faq_deploy.recipe import Recipe, load_recipe

__all__ = [
    "ActivationRange",
    "Agreement",
    "CannotRunHere",
    "CheckResult",
    "ExportResult",
    "FaqError",
    "InputError",
    "PreparedModel",
    "Recipe",
    "__version__",
    "calibrate",
    "check",
    "export",
    "load_recipe",
    "prepare",
]

__version__: str

_HOMES: Final = {
    **dict.fromkeys(("CannotRunHere", "FaqError", "InputError"), "engines.errors"),
    **dict.fromkeys(("calibrate", "check", "export", "prepare"), "faq_deploy.api"),
    **dict.fromkeys(("Recipe", "load_recipe"), "faq_deploy.recipe"),
    "ActivationRange": "faq_deploy.activation_exponents",
    "Agreement": "faq_deploy.agreement",
    "CheckResult": "faq_deploy.check_result",
    "ExportResult": "faq_deploy.onnx_export",
    "PreparedModel": "faq_deploy.prepared_model",
}

if not TYPE_CHECKING:  # hidden from mypy, which would otherwise accept any name

    def __getattr__(name: str) -> object:
        """Look a name up when it is first asked for: torch, and even importlib.metadata, cost more than the rest."""
        if name == "__version__":
            return _installed_version()
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("faq-deploy")
    except PackageNotFoundError:
        return "0+unknown"  # a source tree that was never installed
