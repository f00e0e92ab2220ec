"""`engines` runs on boxes that have no torch: importing any of its modules must not need or load it."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import engines

ROOT = Path(__file__).parents[1]
KEPT_OUT = ("torch", "torchvision", "faq_deploy", "calibration", "pycuda", "cuda", "tensorrt", "tensorrt_rtx")

IMPORT_ALL = """
import importlib, json, pkgutil, sys

class KeepOut:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"{name} is kept out by this test", name=name)

sys.meta_path.insert(0, KeepOut())  # so that an import inside `try` fails as on a box without the package
import engines
names = [f"engines.{module.name}" for module in pkgutil.iter_modules(engines.__path__)]
for name in names:
    importlib.import_module(name)
print(json.dumps({"imported": names, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def _import_all(*kept_out: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *kept_out], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_every_module_imports_where_torch_and_gpu_packages_are_absent() -> None:
    imported = _import_all(*KEPT_OUT)["imported"]
    assert imported == [f"engines.{module.name}" for module in pkgutil.iter_modules(engines.__path__)]
    named = ("build", "doctor", "show_lint", "tensorrt", "tensorrt_runner", "triton")
    assert {f"engines.{name}" for name in named} <= set(imported)


def test_no_module_loads_torch_or_gpu_packages_where_they_are_installed() -> None:
    assert set(KEPT_OUT) & set(_import_all()["loaded"]) == set()
