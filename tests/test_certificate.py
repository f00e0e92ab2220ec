"""The certificate tells the truth: proven sums never round, the worst case is reached, and beyond it fp32 rounds."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.ort import OrtRunner
from engines.preprocess import Preprocessing
from engines.reference import ReferenceRunner
from faq_deploy.certificate import FP32_INTEGERS, LayerBound, certificate, over_the_bound, proof_sentence
from faq_deploy.certify import Reach, largest_sums
from faq_deploy.fixed_point import FixedPoint
from faq_deploy.graph import Kind, Node
from faq_deploy.net import QuantizedNet
from faq_deploy.onnx_export import export_onnx
from faq_deploy.stored_net import NetFacts, StoredNet
from tests.quantized import make_recipe
from tests.quantized_layers import WEIGHT_EXPONENT, build, conv, input_nodes, quantizer, save_onnx

Ints = npt.NDArray[np.int64]

SEVEN = FixedPoint(7, signed=False)  # 0..127
EIGHT = FixedPoint(8, signed=False)  # 0..255
SIGNED = FixedPoint(8, signed=True)  # -128..127


def ints(*values: int) -> Ints:
    return np.array(values, np.int64)


def image_of(values: list[list[int]]) -> Ints:
    """A 1x1 kernel, shape (out, in, 1, 1)."""
    return np.array(values, np.int64).reshape(len(values), -1, 1, 1)


def only(net: QuantizedNet, name: str = "layer") -> LayerBound:
    return next(b for b in certificate(net) if b.name == name)


def one_layer(weight: Ints, bias: Ints, grid: FixedPoint, groups: int = 1) -> QuantizedNet:
    """A convolution whose kernels cover the whole image."""
    nodes = [*input_nodes([weight.shape[1] * groups, *weight.shape[2:]], grid), conv("layer", "codes", groups=groups)]
    nodes.append(Node("flat", "flatten", ("layer",), {"shape": [len(weight), 1, 1]}))
    return build(nodes, {"layer": (weight, bias)})


def worst_images(weight: Ints, grid: FixedPoint, groups: int) -> Ints:
    """Two images a channel: its greatest sum, and its least one. Shape (2·out, in, kh, kw)."""
    out, inner = weight.shape[:2]
    images = np.zeros((2, out, groups, inner, *weight.shape[2:]), np.int64)
    for channel in range(out):
        group, positive = channel * groups // out, weight[channel] > 0
        images[0, channel, group] = np.where(positive, grid.max_code, grid.min_code)
        images[1, channel, group] = np.where(positive, grid.min_code, grid.max_code)
    return images.reshape(2 * out, groups * inner, *weight.shape[2:])


def true_sums(weight: Ints, bias: Ints, images: Ints, groups: int) -> Ints:
    """The layer in NumPy integers, shape (images, out): kernels cover the whole image."""
    parts = images.reshape(len(images), groups, -1)
    kernels = weight.reshape(groups, len(weight) // groups, -1)
    return np.asarray(np.einsum("ngk,gok->ngo", parts, kernels).reshape(len(images), -1) + bias)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    inner=st.integers(1, 130),
    outer=st.integers(1, 3),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    grid=st.sampled_from([SEVEN, EIGHT, SIGNED]),
    largest=st.sampled_from([1, 7, 90, 127]),
    bias_bits=st.sampled_from([1, 12, 22]),
)
def test_where_a_layer_is_proven_all_runtimes_give_the_true_integers_of_its_worst_inputs(
    seed: int,
    inner: int,
    outer: int,
    groups: int,
    kernel: tuple[int, int],
    grid: FixedPoint,
    largest: int,
    bias_bits: int,
) -> None:
    random = np.random.default_rng(seed)
    weight = random.integers(-largest, largest + 1, (outer * groups, inner, *kernel))
    bias = random.integers(-(2**bias_bits), 2**bias_bits + 1, outer * groups)
    net = one_layer(weight, bias, grid, groups)
    images = worst_images(weight, grid, groups)
    wanted = true_sums(weight, bias, images, groups)
    bound = only(net)
    products = wanted - bias
    signed_bias = np.stack([np.maximum(bias, 0), np.minimum(bias, 0)])
    ends = np.stack([products.max(0), products.min(0)]) + signed_bias
    assert bound.worst == np.abs(ends).max()  # reached, up to a bias of the other sign
    if not bound.proven:
        return
    batch = images.astype(np.float32)
    scaled = (wanted * 2.0**WEIGHT_EXPONENT).astype(np.float32)
    with torch.inference_mode():
        assert np.array_equal(net(torch.from_numpy(batch)).numpy(), scaled)
    with tempfile.TemporaryDirectory() as folder:
        path = save_onnx(net, len(weight), Path(folder))
        for runner in (OrtRunner(path, oracle=True, threads=1), ReferenceRunner(path)):
            assert np.array_equal(runner(batch), scaled)


@pytest.mark.parametrize(
    ("kind", "kernel", "groups"),
    [
        ("conv", (5,), 1),
        ("conv", (5,), 2),
        ("conv", (2, 3, 2), 2),
        ("linear", (), 1),
        ("conv_transpose", (1,), 1),
        ("conv_transpose", (1, 1), 2),
        ("conv_transpose", (1, 1, 1), 3),
    ],
)
def test_every_kind_of_layer_reaches_its_bound_exactly(
    kind: Kind, kernel: tuple[int, ...], groups: int, tmp_path: Path
) -> None:
    weight = np.random.default_rng(3).integers(-127, 128, (2 * groups, 7, *kernel))
    stored = weight
    if kind == "conv_transpose":  # (in, out/groups, *kernel)
        stored = weight.reshape(groups, 2, 7, *kernel).swapaxes(1, 2).reshape(7 * groups, 2, *kernel)
    bias = np.zeros(2 * groups, np.int64)
    images = worst_images(weight, SIGNED, groups)
    wanted = true_sums(weight, bias, images, groups)
    node = conv("layer", "codes", groups=groups, kind=kind, dimensions=len(kernel))
    nodes = [*input_nodes(list(images.shape[1:]), SIGNED), node]
    if kind != "linear":
        nodes.append(Node("flat", "flatten", ("layer",), {"shape": [2 * groups, *[1] * len(kernel)]}))
    net = build(nodes, {"layer": (stored, bias)}, per_channel=kind != "conv_transpose")
    bound = only(net)
    assert (bound.kind, bound.worst) == (kind, np.abs(wanted).max())
    assert bound.channel == np.abs(wanted).max(0).argmax()
    batch = images.astype(np.float32)
    path = save_onnx(net, 2 * groups, tmp_path)
    for runner in (OrtRunner(path, oracle=True, threads=1), ReferenceRunner(path)):
        assert np.array_equal(runner(batch), (wanted * 2.0**WEIGHT_EXPONENT).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 900), low=st.sampled_from([0, -128]))
def test_no_order_of_summation_leaves_the_bound(seed: int, count: int, low: int) -> None:
    random = np.random.default_rng(seed)
    weight, bias = random.integers(-127, 128, count), int(random.integers(-(2**20), 2**20))
    rows, biases = torch.from_numpy(weight).double().reshape(1, -1), torch.tensor([float(bias)])
    up, down = (int(end) for end in largest_sums(rows, biases, Reach(low, 127)))
    extremes = np.where(random.random(count) < 0.9, np.where(weight > 0, 127, low), random.integers(low, 128, count))
    terms = random.permutation(np.append(weight * extremes, bias))
    partial = np.cumsum(terms)
    assert -down <= partial.min() and partial.max() <= up
    if max(up, down) <= FP32_INTEGERS:
        assert np.array_equal(np.cumsum(terms.astype(np.float32), dtype=np.float32), partial)


@pytest.mark.parametrize(
    ("grid", "worst"),
    [
        (SEVEN, 127 * 10 + 5),  # 3 + 7 positive, 4 negative: a code is never below 0
        (EIGHT, 255 * 10 + 5),
        (SIGNED, 128 * 10 + 127 * 4),  # the least sum: there the bias of 5 only helps
    ],
)
def test_a_layer_of_unsigned_codes_has_the_larger_of_its_two_signs_as_its_bound(grid: FixedPoint, worst: int) -> None:
    net = one_layer(image_of([[1, 0, 0], [3, 7, -4], [0, 0, 0]]), ints(0, 5, 0), grid)
    bound = only(net)
    assert (bound.worst, bound.channel, bound.dead_channels) == (worst, 1, 1)


def test_a_bias_of_the_other_sign_takes_nothing_off() -> None:
    assert only(one_layer(image_of([[3, -1]]), ints(-100), SEVEN)).worst == 3 * 127
    assert only(one_layer(image_of([[3, -1]]), ints(-500), SEVEN)).worst == 127 + 500


def rounding_net() -> tuple[QuantizedNet, npt.NDArray[np.float32]]:
    """1,048 products of 127 and a bias of 5,097 make 2^18·64.5 + 1, which is odd and over 2^24.

    Its quantizer has the step of 2^18 of them: fp32 loses the 1, and the tie goes to the even 64 instead of to 65.
    """
    weight = np.full((1, 1048, 1, 1), 127, np.int64)
    nodes = [*input_nodes([1048, 1, 1], SEVEN), conv("layer", "codes")]
    nodes += [quantizer("sum", "layer", SIGNED), Node("flat", "flatten", ("sum",), {"shape": [1, 1, 1]})]
    net = build(nodes, {"layer": (weight, ints(5097))})
    net.quantizers()["sum"].set_exponent(18 + WEIGHT_EXPONENT)
    return net, np.full((1, 1048, 1, 1), 127, np.float32)


def test_beyond_the_bound_fp32_rounds_and_the_reference_has_the_true_integer(tmp_path: Path) -> None:
    net, batch = rounding_net()
    bound = only(net)
    assert bound.worst == 127 * 127 * 1048 + 5097 == 2**18 * 64 + 2**17 + 1
    assert not bound.proven
    codes, _ = net.codes(torch.from_numpy(batch))
    assert codes["sum"].item() == 64
    path = save_onnx(net, 1, tmp_path)
    assert OrtRunner(path, oracle=True).codes(batch)["sum.codes"].item() == 64
    assert ReferenceRunner(path).codes(batch)["sum.codes"].item() == 65


def test_a_sum_of_exactly_2_to_24_is_proven_and_one_more_is_not() -> None:
    weight = np.full((1, 1024, 1, 1), 127, np.int64)
    rest = FP32_INTEGERS - 127 * 127 * 1024
    assert only(one_layer(weight, ints(rest), SEVEN)).proven
    assert not only(one_layer(weight, ints(rest + 1), SEVEN)).proven


def test_an_add_is_bounded_on_the_finer_of_its_grids() -> None:
    nodes = [*input_nodes([2, 1, 1], SEVEN), conv("left", "codes"), conv("right", "codes")]
    nodes += [quantizer("skip", "right", SIGNED), Node("total", "add", ("left", "skip"))]
    nodes.append(Node("flat", "flatten", ("total",), {"shape": [2, 1, 1]}))
    weights = {name: (image_of([[1, 2], [-5, 0]]), ints(0, 9)) for name in ("left", "right")}
    net = build(nodes, weights)
    net.quantizers()["skip"].set_exponent(WEIGHT_EXPONENT + 3)
    assert only(net, "total").worst == max(127 * 3 + 128 * 8, 127 * 5 + 128 * 8)
    net.quantizers()["skip"].set_exponent(WEIGHT_EXPONENT - 1)
    assert (only(net, "total").worst, only(net, "total").channel) == (2 * 127 * 5 + 128, 1)
    net.quantizers()["skip"].set_exponent(WEIGHT_EXPONENT + 17)
    assert not only(net, "total").proven


def test_a_difference_is_bounded_by_the_sum_of_both_reaches() -> None:
    nodes = [*input_nodes([1, 1, 1], SEVEN), conv("left", "codes"), conv("right", "codes")]
    nodes.append(Node("total", "sub", ("left", "right")))
    nodes.append(Node("flat", "flatten", ("total",), {"shape": [1, 1, 1]}))
    assert _bounds_of(nodes, {"left": [[3]], "right": [[-4]]})["total"] == 127 * 7
    assert _bounds_of(nodes, {"left": [[3]], "right": [[4]]})["total"] == 127 * 4


def _bounds_of(nodes: list[Node], weights: dict[str, list[list[int]]]) -> dict[str, int]:
    net = build(nodes, {name: (image_of(rows), np.zeros(len(rows), np.int64)) for name, rows in weights.items()})
    return {b.name: b.worst for b in certificate(net)}


def test_a_layer_behind_a_concat_reads_the_widest_of_its_grids() -> None:
    nodes = [Node("input", "input", (), {"shape": [1, 1, 1]}), quantizer("a", "input", SEVEN)]
    nodes += [quantizer("b", "input", FixedPoint(7, signed=True)), Node("cat", "cat", ("a", "b"))]
    nodes += [conv("layer", "cat"), Node("flat", "flatten", ("layer",), {"shape": [1, 1, 1]})]
    assert _bounds_of(nodes, {"layer": [[10, -1]]})["layer"] == 10 * 127 + 1 * 64


@pytest.mark.parametrize(
    ("pool", "count"),
    [
        (Node("pool", "global_avg_pool", ("codes",), {"positions": 36}), 36),
        (Node("pool", "adaptive_avg_pool", ("codes",), {"input_size": [6, 6], "size": [4, 1]}), 2 * 6),
        (Node("pool", "avg_pool", ("codes",), {"kernel": [2, 3], "stride": [2, 3], "padding": [0, 0]}), 6),
    ],
)
def test_a_pool_is_bounded_by_what_it_sums(pool: Node, count: int) -> None:
    more = {"ceil_mode": False, "count_include_pad": True} if pool.kind == "avg_pool" else {}
    net = build([*input_nodes([1, 6, 6], SIGNED), pool.with_settings(**more)], {})
    assert only(net, "pool").worst == 128 * count


@pytest.mark.parametrize(("k", "worst"), [(48, 3 * 3 * 127), (-48, 3 * 3 * 127), (64, 3 * 127), (-1, 3 * 127), (0, 0)])
def test_the_odd_part_of_a_kept_batch_norms_multiplier_takes_bits(k: int, worst: int) -> None:
    norm = Node("norm", "batch_norm", ("layer",), {"eps": 1e-12, "momentum": 0.1})
    constants = {"weight": k / 16, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    state = {f"norm.{key}": torch.tensor([value]) for key, value in constants.items()}
    nodes = [*input_nodes([2, 1, 1], SEVEN), conv("layer", "codes"), norm]
    net = build(nodes, {"layer": (image_of([[3, -1]]), None)}, state=state, batch_norm="paper")
    assert only(net).worst == worst


def test_every_bound_is_in_the_metadata_of_the_onnx_file(tmp_path: Path) -> None:
    weight = np.full((2, 1048, 1, 1), 127, np.int64)
    net = one_layer(weight, ints(0, 5097), SEVEN)
    facts = NetFacts(model="test", weights_sha256=None, classes=("a", "b"), preprocessing=Preprocessing(), ranges=[])
    stored = StoredNet(net=net, recipe=make_recipe("paper"), facts=facts)
    images = np.full((1, 1048, 1, 1), 3, np.float32)
    result = export_onnx(stored, tmp_path / "model.onnx", images, versions={}, checkpoint_sha256="0")
    metadata = {p.key: p.value for p in onnx.load(result.path).metadata_props}
    assert json.loads(metadata["faq_deploy.certificate"]) == {
        "layer": {"kind": "conv", "worst": 16_908_289, "ratio": 1.007813, "channel": 1, "proven": False}
    }
    assert any("1 of 1 sums could in the worst case pass 2^24" in w and "(layer 1.01 x)" in w for w in result.warnings)


def test_a_layer_that_reads_floats_has_no_bound() -> None:
    nodes = [Node("input", "input", (), {"shape": [1, 1, 1]}), quantizer("codes", "input", SEVEN)]
    net = build([*nodes, Node("relu", "relu", ("codes",), {"cap": None})], {})
    assert certificate(net) == []


def test_people_read_how_much_is_proven_and_what_is_not() -> None:
    bounds = [LayerBound("a", "conv", FP32_INTEGERS, 0, 0), LayerBound("b", "add", 2 * FP32_INTEGERS, 3, 0)]
    assert proof_sentence(bounds) == (
        "1 of 2 layers, adds and pools are proven exact in fp32 for every input (no sum passes 2^24)"
    )
    assert proof_sentence(bounds[:1]).startswith("All 1 layers")
    assert over_the_bound(bounds) == "b 2.00 x"
    many = [LayerBound(f"n{i}", "conv", FP32_INTEGERS * (i + 2), 0, 0) for i in range(5)]
    assert over_the_bound(many, most=2) == "n4 6.00 x, n3 5.00 x, 3 more"


def test_the_bound_of_a_node_is_json() -> None:
    bound = LayerBound("a", "conv", FP32_INTEGERS // 2, 3, 0)
    wanted = {"kind": "conv", "worst": 2**23, "ratio": 0.5, "channel": 3, "proven": True}
    assert json.loads(json.dumps(bound.as_dict())) == wanted
