"""Convolutions and pools: exact sums, torch's borders, the same codes as onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from engines.fixed_tensor import Refused
from engines.ort import OrtRunner
from engines.parity import compare_codes
from engines.reference import ReferenceRunner
from engines.windows import Pool, convolve, exact_dtype, product
from tests.onnx_checks import three_ways
from tests.onnx_nets import around, saved

# kernel, stride, padding -> what torch makes of 5 x 6 without and with ceil_mode
TORCH_SIZES = {
    (3, 2, 1): ((3, 3), (3, 4)),
    (2, 2, 0): ((2, 3), (3, 3)),
    (3, 3, 1): ((2, 2), (2, 3)),
    (2, 3, 1): ((2, 3), (2, 3)),
    (3, 1, 1): ((5, 6), (5, 6)),
    (3, 2, 0): ((2, 2), (2, 3)),
}


def pool_net(kind: str, kernel: int, stride: int, pad: int, **more: int) -> onnx.ModelProto:
    node = helper.make_node(kind, ["x.values"], ["y"])
    window: dict[str, int | list[int]] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in (window | more).items())
    return around([node], {}, (2, 5, 6), codes_exponent=-1)


def small_images() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).integers(-128, 128, (2, 2, 5, 6)).astype(np.float32)


@pytest.mark.parametrize(("size", "dtype"), [(2**9, np.float32), (2**20, np.float64), (2**27, np.int64)])
def test_large_sums_are_exact_where_float64_would_round(size: int, dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.integers(-size, size, (2, 40)), rng.integers(-size, size, (3, 40))
    expected = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in weight.tolist()] for u in x.tolist()]
    assert product(x, weight).tolist() == expected
    pool = Pool((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (1, 1))
    assert convolve(x[:, :, None, None], weight[:, :, None, None], pool, 1)[:, :, 0, 0].tolist() == expected
    assert exact_dtype(x, weight) == dtype
    if dtype is np.int64:
        assert (x.astype(float) @ weight.astype(float).T).astype(np.int64).tolist() != expected
    with pytest.raises(Refused, match="60 bits"):
        product(x * 2**30, weight * 2**30)


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize(("kernel", "stride", "pad"), TORCH_SIZES)
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pools_agree_with_onnxruntime_at_every_border(
    kind: str, ceil_mode: int, kernel: int, stride: int, pad: int
) -> None:
    codes = three_ways(pool_net(kind, kernel, stride, pad, ceil_mode=ceil_mode), small_images())
    assert codes["y.codes"].shape[2:] == TORCH_SIZES[kernel, stride, pad][ceil_mode]


@pytest.mark.parametrize(("kernel", "stride", "pad"), TORCH_SIZES)
def test_averages_over_the_padding_agree_with_onnxruntime(kernel: int, stride: int, pad: int, tmp_path: Path) -> None:
    three_ways(pool_net("AveragePool", kernel, stride, pad, count_include_pad=1), small_images())
    # with ceil_mode too, optimized onnxruntime 1.32 divides by whole windows: lint refuses that, the oracle is right
    path = saved(pool_net("AveragePool", kernel, stride, pad, ceil_mode=1, count_include_pad=1), tmp_path)
    codes, oracle = ReferenceRunner(path).codes(small_images()), OrtRunner(path, oracle=True).codes(small_images())
    assert compare_codes(codes, oracle, ["x.codes", "y.codes"]).differing == 0


def test_average_pool_with_ceil_mode_has_torchs_values(tmp_path: Path) -> None:
    node = helper.make_node(
        "AveragePool",
        ["x.values"],
        ["y"],
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1] * 4,
        ceil_mode=1,
        count_include_pad=1,
    )
    batch = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    values = ReferenceRunner(saved(around([node], {}, (1, 4, 4), codes_exponent=None), tmp_path))(batch)
    expected = [14 / 9, 10 / 3, 2, 19 / 3, 11, 6, 4.5, 7.5, 4]
    assert values.reshape(-1).tolist() == np.array(expected, np.float32).tolist()


def test_average_without_the_padding_divides_each_window_by_what_it_holds() -> None:
    node = helper.make_node("AveragePool", ["x.values"], ["y"], kernel_shape=[3, 3], pads=[1] * 4)
    batch = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32).reshape(1, 1, 3, 3)
    codes = three_ways(around([node], {}, (1, 3, 3), codes_exponent=-1), batch)
    assert codes["y.codes"].reshape(-1).tolist() == [6, 7, 8, 9, 10, 11, 12, 13, 14]


def test_max_pool_of_negative_codes_ignores_its_padding() -> None:
    node = helper.make_node("MaxPool", ["x.values"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    batch = -np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    codes = three_ways(around([node], {}, (1, 4, 4)), batch)
    assert codes["y.codes"].reshape(-1).tolist() == [-1, -2, -5, -6]


@pytest.mark.parametrize(("largest", "dtype"), [(2**24 - 1, np.float32), (2**24, np.float64), (2**53, np.int64)])
def test_the_fastest_type_is_chosen_up_to_its_last_exact_sum(largest: int, dtype: type[np.generic]) -> None:
    assert exact_dtype(np.array([largest]), np.array([[1], [-1]])) == dtype
