"""A prepared model is an ordinary module: state dicts, copies, wrappers, compilers, several processes."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import faq_deploy
from faq_deploy import InputError, PreparedModel
from faq_deploy.recipe import override
from tests.nets import Small
from tests.quantized import images
from tests.test_api import float_net, ready, same_state, sgd, step


def trained(target: str = "tensorrt", recipe: str = "faq-8bit") -> PreparedModel:
    """After one step, in eval mode."""
    model = ready(target, recipe)
    step(model.train(), sgd(model))
    return model.eval()


def fresh(target: str = "tensorrt", recipe: str = "faq-8bit") -> PreparedModel:
    """Not calibrated."""
    return faq_deploy.prepare(float_net(seed=9), images(2), target, recipe)  # type: ignore[arg-type]


# state dicts


def test_state_dict_goes_through_a_file_and_brings_the_calibration_along(tmp_path: Path) -> None:
    model, other = trained(), fresh()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.is_calibrated
    assert same_state(other, model)
    assert torch.equal(other.eval()(images()), model(images()))
    faq_deploy.export(model, tmp_path / "a.onnx", images=images(2))
    faq_deploy.export(other, tmp_path / "b.onnx", images=images(2))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_loading_an_uncalibrated_state_takes_the_calibration_back() -> None:
    model, state = trained(), fresh().state_dict()
    model.load_state_dict(state)
    assert not model.is_calibrated
    torch.testing.assert_close(model(images()), float_net(seed=9)(images()), rtol=1e-4, atol=1e-5)


def test_training_that_goes_on_from_a_state_dict_gives_the_same_bits() -> None:
    one, two = trained().train(), fresh().train()
    two.load_state_dict(one.state_dict())
    for model in (one, two):
        step(model, sgd(model), seed=2)
    assert same_state(one, two)


@pytest.mark.parametrize(
    ("target", "recipe", "what"),
    [
        ("onnxruntime", "faq-8bit", "its target is tensorrt, the model's is onnxruntime"),
        ("tensorrt", "faq-4bit", "its bits is 8, the model's is 4"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_state_of_another_target_or_width_is_refused_and_changes_nothing(
    target: str, recipe: str, what: str, wrapped: bool
) -> None:
    state, model = trained().state_dict(), fresh(target, recipe)
    before = copy.deepcopy(model)
    outer: nn.Module = model
    if wrapped:
        outer, state = nn.ModuleDict({"model": model}), {f"model.{key}": value for key, value in state.items()}
    with pytest.raises(InputError) as caught:
        outer.load_state_dict(state)
    assert what in caught.value.what
    assert "prepare the model with the target and the recipe" in caught.value.remedy
    assert same_state(model, before)
    assert not model.is_calibrated


def test_state_of_other_grids_or_batch_norms_and_of_a_float_model_is_refused() -> None:
    recipe = fresh().recipe
    for values, what in (
        ({"layers.bits": {"fc": 4}}, "its layers have other grids"),
        ({"quantizer.batch_norm": "paper", "quantizer.certify": False}, "its batch norm is fold, the model's is paper"),
    ):
        other = faq_deploy.prepare(float_net(), images(2), recipe=override(recipe, values))
        with pytest.raises(InputError, match=what):
            other.load_state_dict(trained().state_dict())
    with pytest.raises(InputError, match="not that of a prepared model") as caught:
        fresh().load_state_dict(Small().state_dict())
    assert caught.value.remedy == "load float weights into the float model, and prepare it then."
    newer = trained().state_dict()
    newer["signature"][0] = 2
    with pytest.raises(InputError, match="its signature has format 2, this version reads 1"):
        fresh().load_state_dict(newer)


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        (
            lambda state: {f"module.{key}": value for key, value in state.items()},
            "in the state dict 'module.' stands before the model's names",
            "take the prefix off",
        ),
        (
            lambda state: {key: value for key, value in state.items() if ".fc." not in key},
            "entries are missing (net.layers.fc.weight, net.layers.fc.bias,",
            "of a model that was prepared alike",
        ),
        (lambda state: state | {"more": torch.zeros(1)}, "are unknown to it (more)", "that was prepared alike"),
        (
            lambda state: state | {"net.layers.fc.weight": torch.zeros(3, 16)},
            "have another shape (net.layers.fc.weight is [3, 16] instead of [5, 16])",
            "with as many classes",
        ),
    ],
)
def test_state_of_other_names_or_shapes_is_refused_in_one_sentence_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], what: str, remedy: str
) -> None:
    model = fresh()
    before = copy.deepcopy(model)
    with pytest.raises(InputError) as caught:
        model.load_state_dict(change(trained().state_dict()))
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert same_state(model, before)
    assert not model.is_calibrated


def test_names_that_are_left_out_on_purpose_are_taken() -> None:
    state, model = trained().state_dict(), fresh()
    found = model.load_state_dict(state | {"more": torch.zeros(1)}, strict=False)
    assert (found.unexpected_keys, model.is_calibrated) == (["more"], True)


# copies and sharing


def test_deep_copy_trains_by_itself() -> None:
    model = trained()
    before, other = copy.deepcopy(model), copy.deepcopy(model)
    step(other.train(), sgd(other))
    assert same_state(model, before)
    assert not same_state(other, before)
    faq_deploy.calibrate(other, [images()], force=True)


def test_modules_of_two_prepared_models_are_refused() -> None:
    one, two = ready(), fresh()
    two.net.layers["fc"] = one.net.layers["fc"]
    with pytest.raises(InputError, match=r"net\.layers\.fc belongs to two prepared models") as caught:
        faq_deploy.calibrate(two, [images()])
    assert "copy.deepcopy" in caught.value.remedy
    shallow = copy.copy(one)
    with pytest.raises(InputError, match="belongs to two prepared models"):
        faq_deploy.calibrate(shallow, [images()], force=True)


def test_a_layer_may_move_on_when_its_first_model_is_gone() -> None:
    one, two = ready(), fresh()
    two.net.layers["fc"] = one.net.layers["fc"]
    del one.net.layers["fc"]
    faq_deploy.calibrate(two, [images()])
    assert two.is_calibrated


def test_two_prepared_models_of_one_float_model_share_nothing() -> None:
    net = float_net()
    one, two = faq_deploy.prepare(net, images(2)), faq_deploy.prepare(net, images(2), "onnxruntime")
    faq_deploy.calibrate(one, [images()])
    assert not two.is_calibrated
    faq_deploy.calibrate(two, [images()])
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in two.parameters()}


# training


def test_exponents_follow_the_weights_in_training_only() -> None:
    model = ready()
    exponents = model.net.weighted()["fc"].weight_exponent
    before = exponents.clone()
    with torch.no_grad():
        model.net.weighted()["fc"].weight.mul_(4)
    model.eval()(images())
    assert torch.equal(exponents, before)
    model.train()(images())
    assert torch.equal(exponents, before + 2)


def test_refresh_fits_exponents_to_weights_that_were_copied_in() -> None:
    model = ready().eval()
    with torch.no_grad():
        model.net.weighted()["fc"].weight.mul_(0.25)
    before = model.net.weighted()["fc"].weight_exponent.clone()
    model.refresh()
    assert torch.equal(model.net.weighted()["fc"].weight_exponent, before - 2)


def test_training_before_calibration_is_the_float_models() -> None:
    net = float_net().train()
    model = faq_deploy.prepare(net, images(2))
    torch.testing.assert_close(model(images()), net(images()), rtol=1e-3, atol=1e-4)


def test_gradients_reach_every_parameter_and_autocast_trains() -> None:
    model = ready().train()
    optimizer = sgd(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images()).square().mean()
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    optimizer.step()
    assert model.eval()(images()).dtype == torch.float32


def test_torch_compile_runs_it_uncompiled_with_the_same_bits() -> None:
    compiled_frames = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        compiled_frames.append(graph)
        return graph.forward

    plain = ready().train()
    model = copy.deepcopy(plain)
    compiled = torch.compile(model, backend=backend)
    for inner, called in ((plain, plain), (model, compiled)):
        optimizer = sgd(inner)
        for seed in range(2):
            optimizer.zero_grad()
            called(images(seed=seed)).square().mean().backward()
            optimizer.step()
    assert same_state(model, plain)
    assert compiled_frames == []
    torch._dynamo.reset()


def _train_a_share(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = ready().train()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = sgd(model)
    for seed in range(2):
        optimizer.zero_grad()
        loss = parallel(images(seed=10 + seed)[rank::2]).square().mean()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_model_with_ddp(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_train_a_share, (port, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    statistics = ("running_mean", "running_var")  # of each process's own images, until the next forward
    same = [key for key in one if not key.endswith(statistics)]
    assert all(torch.equal(one[key], two[key]) for key in same)
    assert not all(torch.equal(one[key], value) for key, value in ready().state_dict().items() if key in same)
    model = fresh()
    model.load_state_dict(one)
    faq_deploy.export(model.eval(), tmp_path / "model.onnx")
    assert faq_deploy.check(model, tmp_path / "model.onnx", [images(seed=20)]).equal
