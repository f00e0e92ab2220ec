"""A batch norm's gradient in C, with the sums of torch's kernels in their order; else these are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from faq_deploy import compiled, fast_path
from faq_deploy.grids import Clip
from faq_deploy.passes import Passes
from tests.compiled_passes import FIRST, LAST, bits, block, changed_library, require_compiled, trained
from tests.hand_graphs import noise

CLIP = Clip(2.0**-3, (0, 15), (0.0, 2.0))


@pytest.fixture(scope="module")
def passes() -> Passes:
    require_compiled()
    passes = fast_path._choice().passes
    assert passes is not None
    if not passes.lanes:
        assert torch.backends.cpu.get_cpu_capability() != "AVX2"  # whose order of sums ours is
        pytest.skip("torch's kernels sum up otherwise on this processor")
    return passes


@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 70)),
        st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(1, 20)),
        st.tuples(*[st.integers(1, 4)] * 5),
    ),
    layout=st.sampled_from([FIRST, LAST]),
    added=st.booleans(),
    kept=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_it_is_torch_s_to_the_last_bit(
    passes: Passes,
    shape: tuple[int, ...],
    layout: torch.memory_format,
    added: bool,
    kept: bool,
    threads: int,
    seed: int,
) -> None:
    layout = layout if len(shape) == 4 else FIRST
    x, other, given_ = (noise(*shape, seed=seed + i).contiguous(memory_format=layout) for i in range(3))
    assume(passes.sums_as_torch(x))
    a, b, weight, mean, scale = noise(5, shape[1], seed=seed + 3).unbind()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        passed, of_other = torch.empty_like(x), torch.empty_like(x) if kept else None
        passes.pass_inside(x, other if added else None, given_, passed, a, b, CLIP)
        wanted = torch.ops.aten.native_batch_norm_backward(
            passed, x, weight, None, None, mean, scale, True, 0.0, [True] * 3
        )
        found = passes.gradient(x, other if added else None, given_, of_other, a, b, CLIP, weight, mean, scale)
    finally:
        torch.set_num_threads(before)
    assert all(bits(one).equal(bits(got)) for one, got in zip(wanted, found, strict=True))
    assert of_other is None or bits(of_other).equal(bits(passed))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("int half = width / 2; half; half /= 2", "int half = 1; half < width; half *= 2"),  # halves in another order
        ("fmaf(-off, slope, centred)", "centred - off * slope"),
        ("double sum = 0, product = 0;", "float sum = 0, product = 0;"),
    ],
)
def test_where_torch_sums_up_otherwise_its_own_kernel_is_taken(
    passes: Passes, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = changed_library(tmp_path, old, new)
    wanted = trained(block("fold"), LAST)
    monkeypatch.setattr(fast_path, "library", lambda: compiled.Library(library))
    chosen = fast_path._choice.__wrapped__()
    assert chosen.passes is not None and chosen.passes.lanes == 0 and chosen.trouble == ""
    monkeypatch.setattr(fast_path, "_choice", lambda: chosen)
    found = trained(block("fold"), LAST)
    assert all(bits(one).equal(bits(got)) for one, got in zip(wanted, found, strict=True))
