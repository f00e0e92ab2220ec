"""The verbs as functions: devices and recipes, going on with a run, and Ctrl-C at any moment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from engines.errors import CannotRunHere, InputError
from engines.run_folder import RunFolder
from faq_deploy import quantize
from faq_deploy.finetune import Interrupted
from faq_deploy.new_run import QuantizeOptions, make_recipe, pick_device
from faq_deploy.progress import LineReporter
from faq_deploy.quantize import QuantizeResult
from faq_deploy.run_data import DataOptions
from faq_deploy.stored_net import load_net
from faq_deploy.verbs import export_verb, quantize_verb
from tests.e2e.photos import SIZE, colour_folder, write_nets
from tests.e2e.refusals import contents

PLAIN = DataOptions(resize=0, crop=SIZE, mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nets.py, photos/, numbers/ and w.pth."""
    folder = tmp_path_factory.mktemp("place")
    write_nets(folder)
    colour_folder(folder / "photos")
    torch.manual_seed(3)
    torch.save({"conv.weight": torch.randn(8, 3, 3, 3), "conv.bias": torch.zeros(8)}, folder / "part.pth")
    part = torch.load(folder / "part.pth", weights_only=True)
    state = part | {"linear.weight": torch.randn(3, 8), "linear.bias": torch.zeros(3)}
    torch.save(state, folder / "w.pth")
    torch.save(state | {"linear.bias": torch.ones(3)}, folder / "other.pth")
    return folder


def options(place: Path, output: Path, *, epochs: int = 1, **changes: object) -> QuantizeOptions:
    plain = QuantizeOptions(
        model=f"{place / 'nets.py'}:net",
        output=output,
        data=dataclasses.replace(PLAIN, data=str(place / "photos")),
        weights=str(place / "w.pth"),
        recipe="quick",
        overrides={"training.epochs": epochs, "training.lr": 0.01, "training.batch_size": 4},
        device="cpu",
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def run(wanted: QuantizeOptions, say: Callable[[str], None] = lambda text: None) -> QuantizeResult:
    return quantize_verb(wanted, LineReporter(Console(file=StringIO())), say)[0]


def test_device_is_chosen_or_refused() -> None:
    found = torch.cuda.is_available()
    assert pick_device("auto").type == ("cuda" if found else "cpu")
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("tpu", "cuda:x", "CUDA", "cpu:0", ""):
        with pytest.raises(InputError, match="is not known"):
            pick_device(name)
    with pytest.raises(CannotRunHere, match=r"no CUDA GPU|There is no GPU 99"):
        pick_device("cuda:99")


def test_recipe_is_the_named_one_or_the_one_of_the_bits(tmp_path: Path) -> None:
    plain = QuantizeOptions(model=None, output=tmp_path, data=DataOptions())
    assert (make_recipe(plain).name, make_recipe(plain).bits) == ("faq-8bit", 8)
    four = make_recipe(dataclasses.replace(plain, bits=4))
    assert (four.name, four.bits) == ("faq-4bit", 4)
    quick = make_recipe(dataclasses.replace(plain, recipe="quick", bits=4, assignments=["training.lr=0.5"]))
    assert (quick.name, quick.bits, quick.training.lr) == ("quick with --bits 4", 4, 0.5)
    vnni: dict[str, object] = {"cpu": "vnni", "target": "onnxruntime"}  # only together do they fit
    assert make_recipe(dataclasses.replace(plain, overrides=vnni)).cpu == "vnni"


def test_finished_run_is_left_alone_when_resumed(place: Path, tmp_path: Path) -> None:
    for epochs in (0, 2):
        output = tmp_path / str(epochs)
        first = run(options(place, output, epochs=epochs))
        export_verb(RunFolder(output), 4, lambda text: None)
        before, stages = contents(output), list[str]()
        again = run(options(place, output, epochs=epochs, resume=True), stages.append)
        assert contents(output) == before
        assert "measuring the float and the calibrated net" not in stages
        assert dataclasses.replace(again, training=first.training) == first


def test_longer_training_is_the_same_whether_asked_for_at_first_or_later(place: Path, tmp_path: Path) -> None:
    run(options(place, tmp_path / "whole", epochs=3, keep="last"))
    run(options(place, tmp_path / "parts", epochs=1, keep="last"))
    bare = QuantizeOptions(None, tmp_path / "parts", DataOptions(), resume=True, keep="last")
    run(dataclasses.replace(bare, overrides={"training.epochs": 3}))
    whole, parts = (load_net(tmp_path / name / "quantized.pt") for name in ("whole", "parts"))
    assert parts.facts == whole.facts
    assert parts.recipe == whole.recipe
    for key, value in whole.net.state_dict().items():
        assert torch.equal(value, parts.net.state_dict()[key]), key
    result = run(bare)
    assert result.training.nothing_to_do  # of three epochs, though the run was begun for one
    assert result.epoch == 3
    with pytest.raises(InputError, match=r"is in or after epoch 3, but training\.epochs is 2"):
        run(dataclasses.replace(bare, overrides={"training.epochs": 2}))


def test_last_weights_can_be_had_of_a_finished_run(place: Path, tmp_path: Path) -> None:
    run(options(place, tmp_path / "run", epochs=2))
    assert load_net(tmp_path / "run" / "quantized.pt").facts.kept == "best"
    run(options(place, tmp_path / "run", epochs=2, resume=True, keep="last"))
    facts = load_net(tmp_path / "run" / "quantized.pt").facts
    assert (facts.kept, facts.epoch) == ("last", 2)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": "builtin:digits-resnet"}, "model: "),
        ({"weights": "other.pth"}, "sha256 of the weights: "),
        ({"recipe": "faq-8bit"}, "recipe: quick became faq-8bit"),
        ({"num_classes": 4}, "number of classes: 3 became 4"),
        ({"bits": 4}, "bits: 8 became 4"),
        ({"overrides": {"training.lr": 0.5}}, "training.lr: 0.01 became 0.5"),
        ({"assignments": ["calibration.batches=1"]}, "calibration.batches: 2 became 1"),
        ({"data": DataOptions(mean=(0.25,))}, "mean: (0.5, 0.5, 0.5) became (0.25, 0.25, 0.25)"),
        ({"data": DataOptions(crop=8)}, "crop: (16, 16) became (8, 8)"),
        ({"data": DataOptions(train_fraction=0.5)}, "training fraction: None became 0.5"),
        ({"data": DataOptions(class_order="numeric")}, "class order: None became numeric"),
    ],
)
def test_resuming_in_another_way_is_refused_and_changes_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], what: str
) -> None:
    monkeypatch.chdir(place)
    run(options(place, tmp_path / "run"))
    before = contents(tmp_path / "run")
    bare = QuantizeOptions(None, tmp_path / "run", DataOptions(), resume=True)
    with pytest.raises(InputError) as caught:
        run(dataclasses.replace(bare, **changes))  # type: ignore[arg-type]
    assert "was begun in another way" in caught.value.what
    assert what in caught.value.what
    assert "--force" in caught.value.remedy
    assert contents(tmp_path / "run") == before


def test_with_force_a_resumed_training_goes_on_in_another_way_and_says_so(place: Path, tmp_path: Path) -> None:
    run(options(place, tmp_path / "run"))
    changed: dict[str, object] = {
        "training.epochs": 2,
        "training.lr": 0.5,
        "training.batch_size": 3,
        "training.weight_decay": 0.25,
    }
    bare = QuantizeOptions(None, tmp_path / "run", DataOptions(), resume=True, keep="last", overrides=changed)
    with pytest.raises(InputError, match=r"training.lr: 0.01 became 0.5") as caught:
        run(bare)
    assert "go on with them by --resume --force" in caught.value.remedy
    assert run(dataclasses.replace(bare, force=True)).training.epochs_done == 2
    stored = load_net(tmp_path / "run" / "quantized.pt").recipe.training
    assert (stored.lr, stored.batch_size, stored.weight_decay) == (0.5, 3, 0.25)
    facts = RunFolder(tmp_path / "run").manifest().steps["begin"].facts
    assert facts["changes"] == [
        "training.batch_size: 4 became 3",
        "training.lr: 0.01 became 0.5",
        "training.weight_decay: 0.0001 became 0.25",
    ]
    graph = dataclasses.replace(bare, force=True, bits=4)
    with pytest.raises(InputError, match=r"\(bits: 8 became 4\)") as caught:
        run(graph)
    assert "--resume --force" not in caught.value.remedy


def test_from_scratch_without_looking_at_images_is_no_reason_to_warn(place: Path, tmp_path: Path) -> None:
    digits: dict[str, object] = {"model": "builtin:digits-resnet", "data": DataOptions(data="digits")}
    fixed = {"weights": "random", "assignments": ["calibration.method=fixed"]}
    wanted = options(place, tmp_path / "run", epochs=0, **digits, **fixed)
    stages = list[str]()
    result, warnings = quantize_verb(wanted, LineReporter(Console(file=StringIO())), stages.append)
    assert warnings == []
    assert result.float_top1 < 30
    assert not any(text.startswith("calibrating") for text in stages)


def test_export_of_a_corrected_run_sees_that_its_corrected_weights_changed(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    overrides = {"training.epochs": 0, "training.batch_size": 4, "calibration.weight_rounding": "compensated"}
    run(options(place, output, overrides=overrides))
    folder = RunFolder(output)
    result = export_verb(folder, 4, lambda text: None, pack_int4=True)
    assert result.path.is_file()
    assert folder.manifest().steps["export"].facts["pack_int4"] is True
    (output / "corrected.pt").write_bytes(b"another")
    with pytest.raises(InputError, match=r"corrected\.pt was changed after"):
        export_verb(folder, 4, lambda text: None)


def interrupt_at(stage: str) -> Callable[[str], None]:
    def say(text: str) -> None:
        if text.startswith(stage):
            raise KeyboardInterrupt

    return say


@pytest.mark.parametrize("stage", ["tracing", "calibrating", "measuring"])
def test_ctrl_c_before_the_calibrated_net_is_written_leaves_things_as_they_were(
    place: Path, tmp_path: Path, stage: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(options(place, tmp_path / "new"), interrupt_at(stage))
    assert not (tmp_path / "new").exists()
    run(options(place, tmp_path / "old"))
    before = contents(tmp_path / "old")
    with pytest.raises(KeyboardInterrupt):
        run(options(place, tmp_path / "old", force=True), interrupt_at(stage))
    assert contents(tmp_path / "old") == before


def test_ctrl_c_afterwards_leaves_a_run_that_can_be_resumed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(options(place, tmp_path / "whole"))
    with pytest.raises(Interrupted, match=r"parts is not finished") as caught:
        run(options(place, tmp_path / "parts"), interrupt_at("fine-tuning"))
    assert f"quantize --resume -o {tmp_path / 'parts'}" in caught.value.remedy

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(quantize, "save_net", stop)  # training is done, its result not yet written
        with pytest.raises(Interrupted):
            run(QuantizeOptions(None, tmp_path / "parts", DataOptions(), resume=True))
    assert not (tmp_path / "parts" / "quantized.pt").exists()
    run(QuantizeOptions(None, tmp_path / "parts", DataOptions(), resume=True))
    assert contents(tmp_path / "parts")["quantized.pt"] == contents(tmp_path / "whole")["quantized.pt"]
