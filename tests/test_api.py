"""The Python API: what each call gives, and what it refuses."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import engines
import faq_deploy
from engines.onnx_metadata import metadata_of
from engines.preprocess import Preprocessing
from faq_deploy import InputError, PreparedModel
from faq_deploy.recipe import load_recipe, override
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net

ROOT = Path(__file__).parents[1]
CALLS = ("prepare", "calibrate", "export", "check")


def float_net(width: int = 8, seed: int = 0) -> nn.Module:
    """The same weights each time, in eval mode."""
    torch.manual_seed(seed)
    return with_statistics(Small(width), seed)


def ready(target: str = "tensorrt", recipe: str = "faq-8bit") -> PreparedModel:
    """A calibrated model."""
    model = faq_deploy.prepare(float_net(), images(), target, recipe)  # type: ignore[arg-type]
    faq_deploy.calibrate(model, [images()])
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 1) -> None:
    """One step of training."""
    optimizer.zero_grad()
    loss = model(images(seed=seed)).square().mean()
    loss.backward()
    optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# the package


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, faq_deploy, engines; faq_deploy.__all__; dir(faq_deploy); faq_deploy.load_recipe; engines.load;"
        "sys.exit(bool({'torch', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_no_module_hides_a_call_of_the_package() -> None:
    for package in (faq_deploy, engines):
        folder = Path(str(package.__file__)).parent
        assert not [name for name in package.__all__ if (folder / f"{name}.py").exists()]
        assert all(getattr(package, name) is not None for name in package.__all__)
        assert set(package.__all__) <= set(dir(package)) | {"Runner", "load"}
    assert all(callable(getattr(faq_deploy, name)) for name in CALLS)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        faq_deploy.quantise  # type: ignore[attr-defined]  # noqa: B018


# prepare


@pytest.mark.parametrize("training", [True, False])
def test_prepared_model_computes_what_the_float_one_does_and_leaves_it_alone(training: bool) -> None:
    net = float_net().train(training)
    before = copy.deepcopy(net)
    model = faq_deploy.prepare(net, images(1))
    assert same_state(net, before)
    assert net.training == model.training == training
    torch.testing.assert_close(model.eval()(images()), before.eval()(images()), rtol=1e-4, atol=1e-5)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in net.parameters()}
    assert not shared
    assert not model.is_calibrated


def test_calibration_leaves_each_module_in_its_own_mode() -> None:
    model = faq_deploy.prepare(float_net(), images()).train()
    model.net.layers["fc"].eval()
    faq_deploy.calibrate(model, [images()])
    assert [name for name, layer in model.net.layers.items() if not layer.training] == ["fc"]


@pytest.mark.parametrize(("target", "recipe"), [("tensorrt", "faq-8bit"), ("onnxruntime", "faq-4bit")])
def test_calls_give_the_exponents_and_codes_of_the_functions_below_them(target: str, recipe: str) -> None:
    chosen = override(load_recipe(recipe), {"target": target})
    below = quantized_net(float_net(), faq_deploy.prepare(Small().eval(), images(), recipe=chosen).recipe)
    model = ready(target, recipe)
    assert {n: q.exponent_number for n, q in model.net.quantizers().items()} == {
        n: q.exponent_number for n, q in below.net.quantizers().items()
    }
    assert same_state(model.net, below.net)
    assert torch.equal(model.eval()(images(seed=3)), below.net(images(seed=3)))


def test_example_may_be_a_tuple_and_a_recipe_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('bits = 4\ntarget = "onnxruntime"\n[training]\nepochs = 1\nlr = 0.1\n')
    model = faq_deploy.prepare(float_net(), (images(2),), recipe=path)
    assert (model.recipe.bits, model.recipe.target) == (4, "onnxruntime")
    assert faq_deploy.prepare(float_net(), images(2), "paper").recipe.target == "paper"


class NoStatistics(Small):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8, track_running_stats=False)


def broken(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(net.parameters())[0] = float("nan")
    return net


@pytest.mark.parametrize(
    ("model", "example", "what", "remedy"),
    [
        (lambda: Small().train(), images(2), "bn is in training mode and has seen no batch", "train the float model"),
        (lambda: NoStatistics().eval(), images(2), "uses the statistics of the current batch", "track_running_stats"),
        (lambda: broken(float_net()), images(2), "stem.weight holds NaN", "checkpoint"),
        (ready, images(2), "prepared already", "prepare the float model"),
        (lambda: nn.Sequential(ready(), nn.ReLU()), images(2), "prepared already, or a part", "the float model"),
        (lambda: Small().eval(), (images(2), images(2)), "example_inputs has 2 tensors", "one batch"),
        (lambda: Small().eval(), images(0), "example_inputs has no image", "at least one"),
        (lambda: Small().eval(), images(2).double(), "images are torch.float64", "float32"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, device="meta")), images(2), "several", "to("),
        (lambda: Small().to("meta"), images(2), "stem.weight is on the meta device", "load its weights"),
        (lambda: torch.jit.script(nn.Conv2d(3, 4, 1)), images(2), "TorchScript module", "nn.Module that it was"),
        (lambda: "resnet18", images(2), "the model is a str, not a torch.nn.Module", "trained network"),
        (lambda: Small, images(2), "the model is the class Small", "trained network"),
        (lambda: Small().eval(), None, "example_inputs holds None", "shape (N, C, H, W)"),
        (lambda: Small().eval(), images(2).numpy(), "example_inputs holds a ndarray", "shape (N, C, H, W)"),
    ],
)
def test_prepare_refuses_what_can_not_be_prepared(
    model: Callable[[], nn.Module], example: Tensor | tuple[Tensor, ...], what: str, remedy: str
) -> None:
    with pytest.raises(InputError) as caught:
        faq_deploy.prepare(model(), example)
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_initial_statistics_are_taken_in_eval_mode() -> None:
    assert faq_deploy.prepare(Small().eval(), images(2)).training is False


def test_target_and_recipe_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="There is no recipe 'faq-9bit'"):
        faq_deploy.prepare(Small().eval(), images(2), recipe="faq-9bit")
    with pytest.raises(InputError, match="target is 'tpu'"):
        faq_deploy.prepare(Small().eval(), images(2), target="tpu")  # type: ignore[arg-type]


# calibrate


def test_a_loaders_pairs_count_as_images_and_the_recipe_says_how_many_batches() -> None:
    drawn: list[int] = []

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        for seed in itertools.count():
            drawn.append(seed)
            yield images(seed=seed), torch.zeros(8)

    one = faq_deploy.prepare(float_net(), images(2))
    two = copy.deepcopy(one)
    found = faq_deploy.calibrate(one, endless())
    assert drawn == [0, 1, 2, 3, 4] == list(range(one.recipe.calibration.batches))
    assert found == faq_deploy.calibrate(two, [images(seed=seed) for seed in range(5)])
    assert [record.name for record in found] == list(one.net.quantizers())
    assert same_state(one, two)


def test_calibrating_twice_is_refused_and_forced_gives_the_same_on_the_same_images() -> None:
    model = ready()
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match="calibrated already") as caught:
        faq_deploy.calibrate(model, [images()])
    assert "force=True" in caught.value.remedy
    assert same_state(model, before)
    faq_deploy.calibrate(model, [images()], force=True)
    assert same_state(model, before)
    faq_deploy.calibrate(model, [images() * 8], force=True)
    wider = {n: q.exponent_number for n, q in model.net.quantizers().items()}
    assert wider["input_quantizer"] == dict(before.net.quantizers())["input_quantizer"].exponent_number + 3


@pytest.mark.parametrize(
    ("batches", "what"),
    [
        ([], "there are no images to calibrate on"),
        ([images(0)], "there are no images to calibrate on"),
        ([images(), images().index_fill(0, torch.tensor([3]), float("nan"))], "image number 12"),
        ([images(size=32)], "images have shape 3x32x32, but the model was prepared for 3x16x16"),
        ([images().half()], "images are torch.float16"),
        ([images().to("meta")], "images are on meta, and the model is on cpu"),
        ([{"image": images()}], "a batch is a dict without a tensor of images"),
        ([("a", "b")], "a batch is a tuple without a tensor of images"),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_failed_calibration_leaves_the_model_as_it_was(batches: list[Tensor], what: str, again: bool) -> None:
    model = ready() if again else faq_deploy.prepare(float_net(), images())
    model.train()
    before, wanted = copy.deepcopy(model), copy.deepcopy(model).eval()(images())
    with pytest.raises(InputError) as caught:
        faq_deploy.calibrate(model, batches, force=again)
    assert what in caught.value.what
    assert (model.training, model.is_calibrated) == (True, again)
    assert same_state(model, before)
    assert torch.equal(model.eval()(images()), wanted)
    assert all(quantizer.observer is None for quantizer in model.net.quantizers().values())
    faq_deploy.calibrate(model, [images()], force=again)


@pytest.mark.parametrize("name", CALLS[1:])
def test_each_call_names_the_one_before_it(name: str, tmp_path: Path) -> None:
    rest = {"calibrate": ([images()],), "export": (tmp_path / "a.onnx",), "check": (tmp_path / "a.onnx", [images()])}
    call = getattr(faq_deploy, name)
    with pytest.raises(InputError, match=r"Small is not what `prepare` returned") as caught:
        call(Small(), *rest[name])
    assert "faq_deploy.prepare" in caught.value.remedy
    with pytest.raises(InputError) as caught:
        call(nn.ModuleDict({"inner": ready()}), *rest[name])
    assert caught.value.remedy == "pass the prepared model inside it: model.inner."
    if name != "calibrate":
        with pytest.raises(InputError, match="not calibrated") as caught:
            call(faq_deploy.prepare(Small().eval(), images(2)), *rest[name])
        assert "faq_deploy.calibrate(model, batches)" in caught.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CALLS[1:])
def test_model_that_lost_its_values_on_the_way_is_refused(name: str, tmp_path: Path) -> None:
    model = ready().to("meta")
    rest = {"calibrate": ([images()],), "export": (tmp_path / "a.onnx",), "check": (tmp_path / "a.onnx", [images()])}
    again = {"force": True} if name == "calibrate" else {}
    with pytest.raises(InputError, match="is on the meta device: it has a shape and no values") as caught:
        getattr(faq_deploy, name)(model, *rest[name], **again)
    assert "load its weights" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_export_compares_at_least_one_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images to compare"):
        faq_deploy.export(ready(), tmp_path / "a.onnx", images=images(0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batches", [None, 3])
def test_what_is_no_loader_is_refused(batches: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batches is (None|an int)\.") as caught:
        faq_deploy.calibrate(ready(), batches, force=True)  # type: ignore[arg-type]
    assert "DataLoader" in caught.value.remedy
    with pytest.raises(InputError, match="batches is"):
        faq_deploy.check(ready(), tmp_path / "a.onnx", batches)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", [None, 8])
def test_what_is_no_recipe_is_refused(recipe: object) -> None:
    with pytest.raises(InputError, match=f"A recipe can't be {recipe}"):
        faq_deploy.prepare(Small().eval(), images(2), recipe=recipe)  # type: ignore[arg-type]


def test_refresh_before_calibration_is_refused() -> None:
    with pytest.raises(InputError, match="not calibrated: can't refresh it"):
        faq_deploy.prepare(Small().eval(), images(2)).refresh()


def test_corrections_of_a_recipe_are_made() -> None:
    recipe = override(load_recipe("faq-8bit"), {"calibration.bias_correction": "empirical"})
    model = faq_deploy.prepare(float_net(), images(), recipe=recipe)
    faq_deploy.calibrate(model, [images()])
    plain = ready()
    assert [r.exponent.item() for r in model.net.quantizers().values()] == [
        r.exponent.item() for r in plain.net.quantizers().values()
    ]
    assert not torch.equal(model.net.state_dict()["layers.fc.bias"], plain.net.state_dict()["layers.fc.bias"])


# devices and types


def test_a_model_that_was_moved_in_part_is_refused() -> None:
    model = faq_deploy.prepare(float_net(), images())
    model.net.layers["fc"].to_empty(device="meta")
    with pytest.raises(InputError, match="the prepared model lies on cpu and meta"):
        faq_deploy.calibrate(model, [images()])


def test_half_precision_weights_and_nan_are_refused_before_a_file_is_written(tmp_path: Path) -> None:
    half = ready().half()
    with pytest.raises(InputError, match=r"is torch\.float16") as caught:
        faq_deploy.export(half, tmp_path / "model.onnx")
    assert "torch.autocast" in caught.value.remedy
    diverged = ready()
    broken(diverged)
    for call in (
        lambda: faq_deploy.export(diverged, tmp_path / "model.onnx"),
        lambda: faq_deploy.check(diverged, tmp_path / "model.onnx", [images()]),
        lambda: faq_deploy.calibrate(diverged, [images()], force=True),
    ):
        with pytest.raises(InputError, match="holds NaN or infinite values"):
            call()
    assert not list(tmp_path.iterdir())


# export and check


@pytest.mark.parametrize(("target", "recipe"), [("tensorrt", "faq-8bit"), ("onnxruntime", "faq-4bit")])
def test_exported_file_computes_the_models_logits(target: str, recipe: str, tmp_path: Path) -> None:
    model = ready(target, recipe)
    optimizer = sgd(model.train())
    for seed in range(3):
        step(model, optimizer, seed)
    model.eval()
    written = faq_deploy.export(model, tmp_path / "model.onnx")
    assert all(agreement.equal for agreement in written.agreements)
    found = faq_deploy.check(model, tmp_path / "model.onnx", [images(5, seed=7), (images(6, seed=8), None)])
    assert (found.images, found.logits, found.differing_logits, found.differing_codes) == (11, 2 * 55, 0, 0)
    assert (found.equal, found.top1_agreement, found.largest_difference) == (True, 1.0, 0.0)
    wanted = model(images(seed=9)).detach().numpy()
    for runtime in ("onnxruntime", "oracle", "reference"):
        runner = engines.load(tmp_path / "model.onnx", runtime)
        assert np.array_equal(runner(images(seed=9).numpy()), wanted)
        runner.close()


def test_a_file_of_earlier_weights_is_seen(tmp_path: Path) -> None:
    model = ready()
    faq_deploy.export(model, tmp_path / "model.onnx")
    step(model.train(), sgd(model))
    model.eval()
    found = faq_deploy.check(model, tmp_path / "model.onnx", [images(seed=7)])
    assert not found.equal
    assert 0 < found.differing_codes < found.codes
    assert 0 < found.differing_logits <= found.logits == 80
    assert found.first_difference in model.net.quantizers()
    old = engines.load(tmp_path / "model.onnx", "reference")(images(seed=7).numpy())
    new = model(images(seed=7)).detach().numpy()
    assert found.top1_agreement == float((old.argmax(1) == new.argmax(1)).mean())
    assert found.differing_logits == 2 * int((old != new).sum())
    assert found.largest_difference == float(np.abs(old.astype(np.float64) - new).max())


def test_export_in_training_mode_writes_the_eval_modes_file_and_changes_nothing(tmp_path: Path) -> None:
    model = ready()
    step(model.train(), sgd(model))
    before = copy.deepcopy(model)
    faq_deploy.export(model, tmp_path / "training.onnx")
    assert faq_deploy.check(model, tmp_path / "training.onnx", [images(3)]).equal
    assert model.training
    assert same_state(model, before)
    faq_deploy.export(model.eval(), tmp_path / "eval.onnx")
    assert (tmp_path / "training.onnx").read_bytes() == (tmp_path / "eval.onnx").read_bytes()


def test_metadata_holds_what_was_given_and_invents_nothing(tmp_path: Path) -> None:
    model = ready()
    faq_deploy.export(model, tmp_path / "bare.onnx", images=images(2, seed=4))
    bare = metadata_of(onnx.load(tmp_path / "bare.onnx"))
    assert (bare["model"], bare["target"], bare["bits"]) == ("Small", "tensorrt", 8)
    assert not bare.keys() & {"classes", "preprocessing", "checkpoint_sha256"}
    faq_deploy.export(model, tmp_path / "full.onnx", classes=list("abcde"), preprocessing=Preprocessing(crop=16))
    full = metadata_of(onnx.load(tmp_path / "full.onnx"))
    assert full["classes"] == list("abcde")
    assert full["preprocessing"] == Preprocessing(crop=16).model_dump(mode="json")


def test_check_refuses_another_nets_file_a_missing_one_and_no_images(tmp_path: Path) -> None:
    model = ready()
    wide = faq_deploy.prepare(float_net(width=4), images())
    faq_deploy.calibrate(wide, [images()])
    faq_deploy.export(wide, tmp_path / "wide.onnx")
    with pytest.raises(InputError, match="the file holds another net"):
        faq_deploy.check(model, tmp_path / "wide.onnx", [images()])
    with pytest.raises(InputError, match=r"absent\.onnx"):
        faq_deploy.check(model, tmp_path / "absent.onnx", [images()])
    for nothing in ([], [images(0)]):
        with pytest.raises(InputError, match="no images to compare"):
            faq_deploy.check(wide, tmp_path / "wide.onnx", nothing)


def test_recipe_of_tests_is_the_apis() -> None:
    assert ready().recipe.model_copy(update={"training": None}) == faq_deploy.prepare(
        Small().eval(), images(2), recipe=make_recipe()
    ).recipe.model_copy(update={"training": None})
