"""Max pools and statistics in C give the bits of torch's, whatever the sizes, and keep little for the gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from faq_deploy.batch_statistics import batch_statistics
from faq_deploy.fixed_point import FixedPoint, quantize_activation
from faq_deploy.max_pool import max_pool2d
from tests.compiled_passes import FIRST, LAST, bits, both, require_compiled, use_plain_path
from tests.hand_graphs import noise


@pytest.fixture(autouse=True)
def _compiled() -> None:
    require_compiled()


def with_gradient(pool: object, x: Tensor, window: tuple[list[int], ...], ceil_mode: bool) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    pooled: Tensor = pool(x, *window, ceil_mode)  # type: ignore[operator]
    pooled.backward(noise(*pooled.shape, seed=5))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return pooled, x.grad


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(list)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 19), st.integers(1, 9), st.integers(1, 40)),
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)).map(list),
    ceil_mode=st.booleans(),
    layout=st.sampled_from([FIRST, LAST]),
    special=st.sampled_from([None, math.nan, -math.inf, math.inf, -0.0]),
    seed=st.integers(0, 2**16),
)
def test_a_max_pool_and_its_gradient_are_torch_s(
    shape: tuple[int, ...],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    layout: torch.memory_format,
    special: float | None,
    seed: int,
) -> None:
    """Few values, so that most windows have ties, and numbers that compare oddly."""
    assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    assume(all(size + 2 * p >= k for size, p, k in zip(shape[2:], padding, kernel, strict=True)))
    x = noise(*shape, seed=seed).mul_(2).round_()
    if special is not None:
        x[noise(*shape, seed=seed + 1) > 0.5] = special
    x, window = x.contiguous(memory_format=layout), (kernel, stride, padding, [1, 1])
    wanted, wanted_gradient = with_gradient(F.max_pool2d, x, window, ceil_mode)
    pooled, gradient = with_gradient(max_pool2d, x, window, ceil_mode)
    assert "_MaxPool" in type(pooled.grad_fn).__name__
    assert pooled.stride() == wanted.stride()
    assert bits(pooled).equal(bits(wanted))
    assert bits(gradient).equal(bits(wanted_gradient))
    assert bits(max_pool2d(x, *window, ceil_mode)).equal(bits(wanted))  # without a gradient


@pytest.mark.parametrize("channels", [3, 300])  # over one piece of rows and of channels
@pytest.mark.parametrize("layout", [FIRST, LAST], ids=["first", "last"])
def test_long_rows_and_many_channels(channels: int, layout: torch.memory_format) -> None:
    x = noise(2, channels, 5, 700 // channels * 3, seed=1).contiguous(memory_format=layout)
    window = ([3, 3], [2, 2], [1, 1], [1, 1])
    found = [with_gradient(pool, x, window, False) for pool in (F.max_pool2d, max_pool2d)]
    assert all(bits(a).equal(bits(b)) for a, b in zip(*found, strict=True))


def test_what_torch_refuses_is_refused_in_its_words() -> None:
    x = noise(1, 1, 2, 2, seed=1)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        max_pool2d(x, [3, 3], [1, 1], [0, 0], [1, 1], False)


@pytest.mark.parametrize(
    ("x", "kernel", "dilation"),
    [
        (noise(1, 2, 20, 20, seed=1), [17, 17], [1, 1]),  # a byte can't tell 289 places
        (noise(1, 2, 20, 20, seed=1), [3, 3], [2, 2]),
        (noise(1, 2, 20, 20, seed=1).double(), [3, 3], [1, 1]),
        (noise(2, 20, 20, seed=1), [3, 3], [1, 1]),
        (noise(1, 2, 40, 20, seed=1)[:, :, ::2], [3, 3], [1, 1]),
    ],
)
def test_what_does_not_fit_goes_torch_s_way(x: Tensor, kernel: list[int], dilation: list[int]) -> None:
    x.requires_grad_()
    pooled = max_pool2d(x, kernel, [2, 2], [1, 1], dilation, False)
    assert "_MaxPool" not in type(pooled.grad_fn).__name__
    assert pooled.equal(F.max_pool2d(x, kernel, [2, 2], [1, 1], dilation))


def kept_bytes(x: Tensor) -> list[tuple[torch.dtype, int]]:
    """Types and sizes of what a pool, and a quantizer after it, keep for the gradient."""
    kept: list[tuple[torch.dtype, int]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append((tensor.dtype, tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pooled = max_pool2d(x.requires_grad_(), [2, 2], [2, 2], [0, 0], [1, 1], False)
        quantize_activation(pooled, -4, FixedPoint(8, signed=True))
    return kept


def test_a_byte_is_kept_for_each_output(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(2, 3, 8, 8, seed=1)
    assert kept_bytes(x) == [(torch.uint8, 96), (torch.uint8, 96)]
    use_plain_path(monkeypatch)
    assert kept_bytes(x) == [(torch.float32, 384), (torch.int64, 96), (torch.float32, 96)]


@pytest.mark.parametrize("layout", [FIRST, LAST], ids=["first", "last"])
def test_a_quantizer_s_gradient_is_masked_as_torch_masks_it(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = noise(3, 5, 7, 9, seed=1).mul_(4).round_().div_(2).contiguous(memory_format=layout)  # values on the borders
    for gradient in (noise(3, 5, 7, 9, seed=2), noise(3, 5, 7, 9, seed=2).contiguous(memory_format=LAST)):

        def of_x(given_: Tensor = gradient) -> list[Tensor]:
            start = x.clone().requires_grad_()
            torch.autograd.backward(quantize_activation(start, -6, FixedPoint(8, signed=True)), given_)
            assert start.grad is not None
            return [start.grad]

        (fast,), (plain,) = both(monkeypatch, of_x)
        assert bits(fast).equal(bits(plain))
        assert 0 < int((fast == 0).sum()) < x.numel()


@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 40)),
        st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 30)),
        st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
        st.tuples(*[st.integers(1, 4)] * 5),
    ),
    scale=st.sampled_from([1e-30, 1.0, 1e15]),
    seed=st.integers(0, 2**16),
)
def test_statistics_of_a_batch_are_torch_s(shape: tuple[int, ...], scale: float, seed: int) -> None:
    x = noise(*shape, seed=seed).add_(3).mul_(scale)
    with pytest.MonkeyPatch.context() as patched:
        fast, plain = both(patched, lambda: [*batch_statistics(x, synchronized=False)[:2]])
    assert all(bits(a).equal(bits(b)) for a, b in zip(fast, plain, strict=True))
