"""Resize: nearest moves codes, linear is exact where its weights are dyadic; onnxruntime's integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from engines.errors import InputError
from engines.reference import ReferenceRunner
from tests.onnx_nets import saved
from tests.reference_checks import Constants, assert_same_as_oracle, net_of, random_codes, reference_of

SHAPE = (2, 4, 6)
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
NEAREST_EXACT = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}


def resized(
    attributes: dict[str, str],
    scales: tuple[float, float],
    codes_exponent: int | None = None,
    shape: tuple[int, ...] = SHAPE,
    rounded: bool = False,
) -> onnx.ModelProto:
    """The last two dimensions times these factors."""
    node = helper.make_node("Resize", ["v", "", "scales"], ["y"], **attributes)
    before = helper.make_node("Div", ["x.values", "three" if rounded else "one"], ["v"])
    constants: Constants = {
        "scales": np.array([1, 1, *scales], np.float32),
        "one": np.float32(1),
        "three": np.float32(3),
    }
    return net_of([before, node], constants, shape, -2, codes_exponent)


@pytest.mark.parametrize("scales", [(2, 2), (3, 1), (4, 5), (0.5, 0.5), (1.5, 0.5), (2.5, 1.25)])
@pytest.mark.parametrize("attributes", [NEAREST, NEAREST_EXACT, {"mode": "nearest"}])
@pytest.mark.parametrize("rounded", [False, True])
def test_nearest_moves_codes_as_onnxruntime_does(
    scales: tuple[float, float], attributes: dict[str, str], rounded: bool
) -> None:
    assert_same_as_oracle(resized(attributes, scales, rounded=rounded), random_codes(SHAPE, -2))


@pytest.mark.parametrize("scale", [2, 3, 4, 7])
@pytest.mark.parametrize(("mode", "attributes"), [("nearest", NEAREST), ("nearest-exact", NEAREST_EXACT)])
def test_nearest_is_torchs(mode: str, attributes: dict[str, str], scale: int) -> None:
    batch = random_codes(SHAPE, -2)
    expected = torch.nn.functional.interpolate(torch.from_numpy(batch), scale_factor=float(scale), mode=mode)
    assert reference_of(resized(attributes, (scale, scale)), batch).tolist() == expected.tolist()


@pytest.mark.parametrize("scales", [(2, 2), (4, 2), (8, 1), (0.5, 0.5), (0.5, 2)])
@pytest.mark.parametrize("coordinate", ["half_pixel", "pytorch_half_pixel", "asymmetric"])
@pytest.mark.parametrize("codes_exponent", [None, -2])
def test_linear_with_dyadic_weights_is_exact(
    scales: tuple[float, float], coordinate: str, codes_exponent: int | None
) -> None:
    attributes = {"mode": "linear", "coordinate_transformation_mode": coordinate}
    assert_same_as_oracle(resized(attributes, scales, codes_exponent), random_codes(SHAPE, -2))


def test_linear_is_torchs_at_powers_of_two() -> None:
    batch = random_codes(SHAPE, -2)
    interpolate = torch.nn.functional.interpolate
    expected = interpolate(torch.from_numpy(batch).double(), scale_factor=4.0, mode="bilinear", align_corners=False)
    values = reference_of(resized({"mode": "linear"}, (4, 4)), batch)
    assert values.tolist() == expected.tolist()


def test_aligned_corners_keep_the_corners_and_are_dyadic_where_sizes_allow() -> None:
    node = helper.make_node(
        "Resize", ["x.values", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="align_corners"
    )
    # 3 -> 5 and 5 -> 9: steps of one half
    model = net_of([node], {"sizes": np.array([2, 2, 5, 9], np.int64)}, (2, 3, 5), -2, None)
    batch = random_codes((2, 3, 5), -2)
    assert_same_as_oracle(model, batch)
    assert np.array_equal(reference_of(model, batch)[:, :, ::2, ::2], batch)


def test_linear_with_other_weights_is_float32_rounded_once() -> None:
    batch = random_codes(SHAPE, -2)
    interpolate = torch.nn.functional.interpolate
    expected = interpolate(torch.from_numpy(batch).double(), scale_factor=3.0, mode="bilinear", align_corners=False)
    values = reference_of(resized({"mode": "linear"}, (3, 3)), batch)
    # float64 of another order, rounded to 24 bits
    assert np.abs(values - expected.numpy()).max() <= 2.0**-20
    assert (values == expected.float().numpy()).mean() > 0.99


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"mode": "cubic"}, "only plain nearest and linear"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "coordinates tf_crop_and_resize"),
    ],
)
def test_other_interpolations_are_refused_by_name(attributes: dict[str, str], message: str, tmp_path: Path) -> None:
    model = resized(attributes, (2, 2))
    with pytest.raises(InputError, match=f"Resize .* cannot be computed exactly: {message}"):
        ReferenceRunner(saved(model, tmp_path))(random_codes(SHAPE, -2))
