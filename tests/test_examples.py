"""The examples train on embedded data, and what they export computes PyTorch's integers."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import engines
from examples.digits import float_net, loaders, top1

pytest.importorskip("sklearn", reason="scikit-learn holds the digits")
pytestmark = pytest.mark.xdist_group("examples")

ROOT = Path(__file__).parents[1]
NEEDS = {"plain_loop": None, "distillation": None, "timm_style": "timm", "lightning_trainer": "lightning"}


@pytest.mark.parametrize("name", NEEDS)
def test_example_exports_the_integers_that_it_trained(name: str, tmp_path: Path) -> None:
    needed = NEEDS[name]
    if needed is not None and find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    path = tmp_path / "model.onnx"
    found = importlib.import_module(f"examples.{name}").main(path)
    assert (found.images, found.logits) == (449, 2 * 4490)
    assert found.codes > 1_000_000
    assert (found.differing_codes, found.differing_logits, found.largest_difference) == (0, 0, 0.0)
    assert (found.equal, found.top1_agreement, found.first_difference) == (True, 1.0, None)
    _, val = loaders()
    with_engine = engines.load(path)
    right = sum(int((with_engine(x.numpy()).argmax(1) == y.numpy()).sum()) for x, y in val)
    assert right / 449 >= 0.9  # of ten classes; the float net: over 0.95 after three epochs


def python_blocks(page: str) -> list[str]:
    """The fenced Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def test_manual_shows_the_plain_loop_as_it_is() -> None:
    loop, load = python_blocks("docs/api.md")
    assert loop == (ROOT / "examples" / "plain_loop.py").read_text()
    assert "engines.load(" in load


def test_every_example_is_tested() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names - {"digits"} == set(NEEDS)


def test_examples_float_net_knows_its_digits() -> None:
    _, val = loaders()
    assert top1(float_net(), val) > 0.9
    images, labels = next(iter(val))
    assert images.shape[1:] == (1, 8, 8)
    assert np.array_equal(np.unique(labels), np.arange(10))
