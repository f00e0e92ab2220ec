"""Means of codes are shifted off rounding ties: however an engine divides, the code is the same."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from faq_deploy.graph import Kind, Setting
from faq_deploy.net import QuantizedNet
from faq_deploy.place import Target
from faq_deploy.plain_layers import AveragePool, GlobalAveragePool
from faq_deploy.resample import AdaptiveAveragePool
from faq_deploy.shifted import MARGIN, mean_offset
from tests.hand_graphs import GraphBuilder, assert_same_codes, noise, onnx_model, run_onnx
from tests.quantized import make_recipe, quantized_net

Codes = npt.NDArray[np.int64]

TYING = [6, 10, 12, 24, 36, 48, 100, 112, 120, 144, 160, 196, 392, 400, 576, 784, 900, 1000, 3136]
LARGEST = 127


def exact_codes(sums: Codes, size: int, finer: int, offset: float, step: float) -> Codes:
    """round(sums·2^finer / size + offset / step), half to even, in integers."""
    shift = Fraction(offset) / Fraction(step)
    numerator = sums * (2 ** max(finer, 0) * shift.denominator) + shift.numerator * size * 2 ** max(-finer, 0)
    denominator = size * 2 ** max(-finer, 0) * shift.denominator
    floor, rest = np.divmod(numerator, denominator)
    codes: Codes = floor + ((2 * rest > denominator) | ((2 * rest == denominator) & (floor % 2 == 1)))
    return codes


def float_codes(sums: Codes, size: int, read: int, written: int, offset: float) -> dict[str, Codes]:
    """What float32 arithmetic gives, by division and by three ways to multiply."""
    total, step, shift = np.ldexp(sums.astype(np.float32), read), np.float32(2.0**written), np.float32(offset)
    reciprocal = np.float32(1) / np.float32(size)
    fused = np.float32(np.float64(2.0 ** (read - written)) / size)
    ways = {
        "division": (total / np.float32(size) + shift) / step,
        "reciprocal": (total * reciprocal + shift) / step,
        "multiply-add": (total.astype(np.float64) * reciprocal + shift).astype(np.float32) / step,
        "scales joined": sums.astype(np.float32) * fused + shift / step,
    }
    return {way: np.rint(values).astype(np.int64) for way, values in ways.items()}


def inside(codes: Codes) -> Codes:
    return np.clip(codes, -LARGEST - 1, LARGEST)


@pytest.mark.parametrize("finer", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("size", TYING)
def test_every_sum_gives_one_code_however_it_is_divided(size: int, finer: int) -> None:
    read, written = -5, -5 - finer
    offset = mean_offset([size], read, [written])
    sums = np.arange(-(LARGEST + 1) * size, LARGEST * size + 1)
    wanted = inside(exact_codes(sums, size, finer, offset, 2.0**written))
    for way, found in float_codes(sums, size, read, written, offset).items():
        assert np.array_equal(inside(found), wanted), way
    assert abs(offset) <= max(MARGIN * 2.0**written, 2.0**read / size)
    unshifted = exact_codes(sums, size, finer, 0.0, 2.0**written)
    ties = (4 * sums * 2 ** max(finer, 0)) % (4 * size * 2 ** max(-finer, 0)) == 2 * size * 2 ** max(-finer, 0)
    assert bool(ties.any()) == bool(offset)  # shifted where there are ties, and only there
    assert np.array_equal(unshifted[~ties], exact_codes(sums, size, finer, offset, 2.0**written)[~ties])


@pytest.mark.parametrize("finer", [0, 1, 2])
@pytest.mark.parametrize("size", [6272, 12544, 14400, 25088])
def test_large_windows_keep_enough_room_for_float32(size: int, finer: int) -> None:
    offset = mean_offset([size], -5, [-5 - finer])
    near = np.rint((np.arange(-128, 127) + 0.5) * size / 2**finer).astype(np.int64)
    sums = np.concatenate([near + more for more in range(-3, 4)])
    wanted = inside(exact_codes(sums, size, finer, offset, 2.0 ** (-5 - finer)))
    for way, found in float_codes(sums, size, -5, -5 - finer, offset).items():
        assert np.array_equal(inside(found), wanted), way
    assert 0 < offset < 2.0**-5 / size


def test_windows_too_large_for_float32_are_left_alone() -> None:
    assert mean_offset([224 * 224], 0, [0]) == 0.0


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=4),
    st.integers(-12, 3),
    st.lists(st.integers(-1, 9), min_size=1, max_size=2),
)
def test_no_mean_lies_next_to_a_tie(sizes: list[int], read: int, finer: list[int]) -> None:
    written = [read - more for more in finer]
    offset = Fraction(mean_offset(sizes, read, written))
    dangerous = 0
    for size in sizes:
        for exponent in written:
            step = Fraction(2) ** exponent
            spacing = Fraction(2) ** read / size / step
            parts = spacing.denominator
            away = (Fraction(1, 2) - offset / step) * parts % 1
            room = min(away, 1 - away) / parts
            dangerous += parts % 2 == 0 and bool(size & (size - 1))
            if len(sizes) == len(written) == 1 and offset:
                assert room >= min(Fraction(MARGIN), Fraction(1, 4 * parts))
            if offset:
                assert room >= Fraction(3, 4) / 2**16
                assert abs(offset) <= min(map(Fraction, [2.0**e for e in written])) / 8
    alone = len(sizes) == len(written) == 1
    assert bool(offset) == bool(dangerous) if alone else not offset or dangerous


@pytest.mark.parametrize("size", [1, 9, 49, 64, 81, 121, 225, 256, 3969, 4096])
def test_odd_numbers_and_powers_of_two_are_not_shifted(size: int) -> None:
    assert [mean_offset([size], -4, [-4 - finer]) for finer in range(5)] == [0.0] * 5


def test_a_mean_that_nobody_rounds_is_not_shifted() -> None:
    assert mean_offset([6], 0, []) == 0.0


def test_the_shift_is_as_small_as_that_of_a_function() -> None:
    assert mean_offset([196], -3, [-3]) == 2.0**-14
    assert mean_offset([196], -3, [-4]) == 2.0**-15
    assert mean_offset([196], -3, [-5]) == 0.0  # 196 / 4 is odd
    assert 0 < mean_offset([112 * 112], 0, [0]) <= 1 / (112 * 112)


@pytest.mark.parametrize(
    ("layer", "size", "counts"),
    [
        (GlobalAveragePool(), (6, 7), {42}),
        (AveragePool([3, 2], [1, 1], [0, 0], False, True), (8, 8), {6}),
        (AveragePool([3, 3], [2, 2], [1, 1], False, True), (8, 8), {9}),
        (AveragePool([3, 3], [2, 2], [1, 1], False, False), (8, 8), {4, 6, 9}),
        (AveragePool([3, 3], [2, 2], [1, 1], False, False), (7, 7), {4, 6, 9}),
        (AveragePool([5, 5], [2, 2], [2, 2], False, False), (9, 9), {9, 15, 25}),
        (AveragePool([3, 3], [2, 2], [0, 0], True, False), (8, 8), {4, 6, 9}),
        (AveragePool([4], [4], [0], False, True), (16,), {4}),
        (AveragePool([2, 2, 3], [2, 2, 3], [0] * 3, False, True), (4, 4, 6), {12}),
        (AdaptiveAveragePool([6, 7], [4, 3]), (6, 7), {6}),
    ],
)
def test_pools_know_how_many_values_they_average(
    layer: GlobalAveragePool | AveragePool | AdaptiveAveragePool, size: tuple[int, ...], counts: set[int]
) -> None:
    assert layer.window_sizes(size) == counts


def pool_net(
    target: Target, channels: int, size: list[int], kind: Kind, finer: int, more: dict[str, Setting] | None = None
) -> QuantizedNet:
    """Codes, one pool, codes: the second grid is 2^finer times finer than the first."""
    window: dict[str, Setting] = {"kernel": size, "stride": size, "padding": [0] * len(size)}
    window |= {"ceil_mode": False, "count_include_pad": True, "positions": math.prod(size)}
    g = GraphBuilder(target)
    g.quantize(g.node(kind, g.input(channels, *size), name="pool", also=window | (more or {})))
    net = g.net(["pool_quantizer"], [torch.randn(1, channels, *size)])
    net.quantizers()["input_quantizer"].set_exponent(-4)
    net.quantizers()["pool_quantizer"].set_exponent(-4 - finer)
    net.link_exponents()
    net.clear_means()
    return net


def images_of(sums: Codes, size: list[int]) -> torch.Tensor:
    """One image whose channels have these sums of codes; each has two neighbouring codes at most."""
    count = math.prod(size)
    base, more = np.divmod(sums, count)
    codes = base[:, None] + (np.arange(count) < more[:, None])
    return torch.from_numpy(np.ldexp(codes.astype(np.float32), -4).reshape(1, -1, *size))


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("finer", [-1, 0, 1])
@pytest.mark.parametrize("kind", ["global_avg_pool", "avg_pool"])
@pytest.mark.parametrize("size", [[3, 4], [6, 6], [1, 14], [14, 14], [10, 12], [8, 14]])
def test_optimized_onnxruntime_gives_the_exact_codes_for_every_sum(
    size: list[int], kind: Literal["global_avg_pool", "avg_pool"], finer: int, target: Target
) -> None:
    count = math.prod(size)
    sums = np.arange(-128 * count, 127 * count + 1)
    if len(sums) > 8000:  # those next to a tie, and a few more
        near = np.rint((np.arange(-256, 256) + 0.5) * count / 2**finer).astype(np.int64)
        sums = np.unique(np.concatenate([near - 1, near, near + 1, sums[::37]]))
        sums = sums[(sums >= -128 * count) & (sums <= 127 * count)]
    net = pool_net(target, len(sums), size, kind, finer)
    x = images_of(sums, size)
    offset = float(net.layers["pool"].offset)  # type: ignore[arg-type]
    wanted = inside(exact_codes(sums, count, finer, offset, 2.0 ** (-4 - finer)))
    model = onnx_model(net, target)
    for optimized in (False, True):
        found = run_onnx(model, [x], optimized=optimized)["pool_quantizer.codes"].reshape(-1)
        assert np.array_equal(found, wanted), optimized
    with torch.inference_mode():
        assert np.array_equal(net.codes(x)[0]["pool_quantizer"].reshape(-1).numpy(), wanted)


def test_without_the_shift_optimized_onnxruntime_rounds_ties_the_other_way() -> None:
    sums = 60 * np.arange(-255, 256, 2)  # all of them ties
    net = pool_net("onnxruntime", len(sums), [10, 12], "global_avg_pool", 0)
    assert float(net.layers["pool"].offset) == 2.0**-15  # type: ignore[arg-type]
    cast(GlobalAveragePool, net.layers["pool"]).shift_by(0.0)
    x, model = images_of(sums, [10, 12]), onnx_model(net, "onnxruntime")
    plain, fast = (run_onnx(model, [x], optimized=level)["pool_quantizer.codes"].reshape(-1) for level in (False, True))
    assert np.array_equal(plain, inside(exact_codes(sums, 120, 0, 0.0, 2.0**-4)))
    assert np.abs(plain - fast).max() == 1


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize(
    ("kind", "settings", "counts"),
    [
        ("avg_pool", {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "count_include_pad": False}, {4, 6, 9}),
        ("avg_pool", {"kernel": [4, 7], "stride": [3, 2], "padding": [0, 0], "count_include_pad": True}, {14, 28}),
        ("avg_pool", {"kernel": [2, 7], "stride": [1, 1], "padding": [1, 2], "count_include_pad": True}, {14}),
        ("adaptive_avg_pool", {"input_size": [14, 11], "size": [4, 6]}, {8, 12}),
    ],
)
def test_windows_of_several_sizes_share_one_shift(
    kind: Literal["avg_pool", "adaptive_avg_pool"],
    settings: dict[str, Setting],
    counts: set[int],
    target: Target,
    tmp_path: Path,
) -> None:
    ceil = not any(settings.get("padding", [1]))  # type: ignore[arg-type]
    net = pool_net(target, 24, [14, 11], kind, 0, settings | ({"ceil_mode": ceil} if kind == "avg_pool" else {}))
    layer = net.layers["pool"]
    assert isinstance(layer, (AveragePool, AdaptiveAveragePool))
    assert layer.window_sizes((14, 11)) == counts
    assert float(layer.offset) == 2.0**-15
    x = torch.randn(3, 24, 14, 11, generator=torch.Generator().manual_seed(1))
    model = assert_same_codes(net, target, [x], folder=tmp_path)
    assert [node.name for node in model.graph.node if node.op_type == "Add"] == ["pool.shifted"]


def test_paper_keeps_its_own_arithmetic() -> None:
    for target, offset in (("paper", 0.0), ("tensorrt", MARGIN), ("onnxruntime", MARGIN)):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        net = quantized_net(model.eval(), make_recipe(target), noise(4, 3, 18, 5)).net  # means of 16x3
        (pool,) = (layer for layer in net.layers.values() if isinstance(layer, GlobalAveragePool))
        *_, pooled = net.quantizers().values()
        assert float(pool.offset) == math.ldexp(offset, pooled.exponent_number)


def test_a_net_stored_without_a_shift_keeps_none() -> None:
    net = pool_net("tensorrt", 4, [6, 6], "global_avg_pool", 0)
    assert float(net.layers["pool"].offset) == 2.0**-15  # type: ignore[arg-type]
    old = {key: value for key, value in net.state_dict().items() if not key.endswith("offset")}
    net.load_state_dict(old)
    assert "Add" not in {node.op_type for node in onnx_model(net, "tensorrt").graph.node}
    x = torch.full((1, 4, 6, 6), 2.0**-4)
    assert torch.equal(net.layers["pool"](x), x.mean((2, 3), keepdim=True))
