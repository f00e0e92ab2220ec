"""How codes fill their grids."""

from __future__ import annotations

import numpy as np
import pytest

from faq_deploy.code_histograms import CodeHistograms, code_use
from faq_deploy.fixed_point import FixedPoint


def test_codes_are_counted_over_all_calls() -> None:
    found = CodeHistograms({"a": FixedPoint(bits=7, signed=False), "b": FixedPoint(bits=7, signed=False)})
    found.add({"a": np.array([[0, 0, 8], [127, 127, 64]])})
    found.add({"a": np.array([[0, 127]])})
    use = found.use("a")
    assert use is not None
    assert use.histogram == [3, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert (use.zero, use.clipped) == (3 / 8, 3 / 8)
    assert found.use("b") is None


@pytest.mark.parametrize("narrow", [False, True])
def test_both_ends_of_a_signed_grid_clip(narrow: bool) -> None:
    low = -7 if narrow else -8
    use = code_use(np.array([low, low, -1, 0, 7]), FixedPoint(bits=4, signed=True, narrow=narrow))
    wanted = [0] * 16
    for code, count in ((low, 2), (-1, 1), (0, 1), (7, 1)):
        wanted[code + 8] = count
    assert use.histogram == wanted
    assert (use.zero, use.clipped) == (1 / 5, 3 / 5)


def test_a_grid_of_few_codes_has_a_part_for_each() -> None:
    assert code_use(np.array([0, 3, 3]), FixedPoint(bits=2, signed=False)).histogram == [1, 0, 0, 2]
    assert sum(code_use(np.arange(-127, 128), FixedPoint(bits=8, signed=True, narrow=True)).histogram) == 255
