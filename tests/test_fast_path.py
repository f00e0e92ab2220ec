"""The compiled passes give the bits of torch's operations, and are refused where they would not."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from faq_deploy import compiled, fast_path
from faq_deploy.fixed_point import FixedPoint, quantize_activation, quantize_weight
from faq_deploy.passes import Passes, fits
from faq_deploy.quantize import _slower
from faq_deploy.scaled_weight import quantize_scaled_weight
from tests.compiled_passes import (
    FIRST,
    LAST,
    bits,
    block,
    both,
    changed_library,
    require_compiled,
    trained,
    use_plain_path,
)
from tests.hand_graphs import noise


@pytest.fixture(autouse=True)
def _compiled() -> None:
    require_compiled()


@pytest.mark.parametrize(
    ("batch_norm", "layout"), list(itertools.product(["fold", "paper"], [FIRST, LAST])), ids=["ff", "fl", "pf", "pl"]
)
def test_three_steps_of_training_end_with_the_same_bits(
    batch_norm: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = block(batch_norm)
    fast, plain = both(monkeypatch, lambda: trained(net, layout))
    assert len(fast) > 8
    assert all(bits(a).equal(bits(b)) for a, b in zip(fast, plain, strict=True))


def test_threads_change_nothing() -> None:
    net, threads = block("fold"), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            x = noise(64, 10, 40, 40, seed=1)
            found.append(quantize_activation(x, -4, FixedPoint(8, False)))
            found.append(net.eval()(noise(2, 3, 40, 40, seed=1)))
    finally:
        torch.set_num_threads(threads)
    assert bits(found[0]).equal(bits(found[2])) and bits(found[1]).equal(bits(found[3]))


@given(
    st.lists(st.floats(width=32, allow_subnormal=True), min_size=1, max_size=70),
    st.integers(-20, 12),
    st.booleans(),
    st.sampled_from([2, 4, 8]),
)
def test_any_numbers_are_rounded_alike(values: list[float], exponent: int, signed: bool, width: int) -> None:
    x, grid = torch.tensor(values), FixedPoint(width, signed)
    with pytest.MonkeyPatch.context() as patched:
        fast, plain = both(
            patched,
            lambda: [
                quantize_activation(x, exponent, grid),
                quantize_weight(x, torch.tensor(exponent), grid),
                quantize_scaled_weight(x[:, None], torch.ones_like(x) * 0.7, torch.tensor(exponent), grid),
            ],
        )
    assert all(bits(a).equal(bits(b)) for a, b in zip(fast, plain, strict=True))


def test_a_single_number_is_a_weight_too() -> None:
    weight = torch.tensor(0.7, requires_grad=True)
    value = quantize_weight(weight, torch.tensor(-3), FixedPoint(8, True))
    assert (value.item(), value.dim()) == (0.75, 0)
    value.backward()  # type: ignore[no-untyped-call]
    assert weight.grad == 1


def test_halves_go_to_the_even_code() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 3.5] * 10)
    assert quantize_activation(x, 0, FixedPoint(4, True))[:6].tolist() == [0, 2, 2, 0, -2, 4]


def test_what_does_not_fit_goes_the_plain_way() -> None:
    x = noise(4, 6, 8, 8, seed=1)
    assert fits(x, x.clone(), None)
    assert fits(x.contiguous(memory_format=LAST))
    assert not fits(x.double())
    assert not fits(x[:, :, ::2])
    assert not fits(x, x.contiguous(memory_format=LAST))
    assert not fits(x, x[:2])
    assert not fits(x, x.half())
    assert not fits(x.to("meta"))
    assert not fits(x[:0])


INCLUDE = "#include <stdint.h>"


@pytest.mark.parametrize(
    ("old", "new", "operation"),
    [
        # a product that is rounded before the sum
        (INCLUDE, f"{INCLUDE}\n#define fmaf(a, b, c) ((a) * (b) + (c))", "batch norm"),
        (INCLUDE, f"{INCLUDE}\n#define sqrtf(a) (sqrtf)((a) * 1.0000001f)", "batch norm"),
        (INCLUDE, f"{INCLUDE}\n#define rintf roundf", "rounding"),  # halves away from zero
        ("passing[i] = (x[i] > low)", "passing[i] = (x[i] >= low)", "gradient after the rounding"),
        ("on_grid(scaled, lowest, highest) - scaled", "on_grid(scaled, lowest, highest) + scaled", "subtraction"),
        (
            "sums[j] += means ? off * off : x;",
            "sums[j] = (float)(sums[j] + (means ? off * off : x));",
            "sum of a batch",
        ),
        ("(number > value[i])", "(number >= value[i])", "gradient of a max pool"),  # a tie goes to the last
        ("| (number != number)", "", "max pool"),  # NaN is passed over
    ],
)
def test_other_bits_are_noticed(old: str, new: str, operation: str, tmp_path: Path) -> None:
    assert fast_path.first_difference(Passes(changed_library(tmp_path, old, new))) == operation


def test_the_real_ones_show_no_difference() -> None:
    passes = fast_path._choice().passes
    assert passes is not None
    assert fast_path.first_difference(passes) == ""


def test_a_weight_changed_between_forward_and_backward_is_refused_as_torch_refuses_it() -> None:
    net = block("fold")
    loss = net(noise(4, 3, 40, 40, seed=1)).square().sum()
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_training_without_them_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _slower(torch.device("cpu")) == []
    use_plain_path(monkeypatch)
    sentence = "Steps take a few percent longer than they could, with the same results: a test."
    assert _slower(torch.device("cpu")) == [sentence]
    assert _slower(torch.device("cuda")) == []


def test_a_new_process_finds_what_the_first_compiled() -> None:
    before = {path: path.stat().st_mtime_ns for path in compiled.library_folder().glob("*.so")}
    assert before
    program = "import torch; from faq_deploy.fast_path import why_not; assert why_not() == '', why_not()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert {path: path.stat().st_mtime_ns for path in compiled.library_folder().glob("*.so")} == before
