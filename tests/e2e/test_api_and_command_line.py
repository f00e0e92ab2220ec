"""The Python API gives what the command line gives: exponents, weights, graph and metadata, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F

import faq_deploy
from engines.image_batches import batches
from engines.onnx_metadata import metadata_of
from engines.run_folder import RunFolder
from faq_deploy.augment import TrainingData, epoch_order, training_batches
from faq_deploy.data import Splits, calibration_indices
from faq_deploy.models import load_model
from faq_deploy.recipe import Recipe, load_recipe
from faq_deploy.run_data import data_of_run, reopen_data
from faq_deploy.schedule import learning_rate
from faq_deploy.stored_net import load_net
from tests.e2e.conftest import Call

pytestmark = pytest.mark.xdist_group("digits")


def prepared(run: Path, weights: Path) -> tuple[faq_deploy.PreparedModel, Splits, Recipe]:
    """The model, data and recipe of a run, before calibration."""
    recipe, facts = load_recipe(run / "recipe.toml"), load_net(run / "quantized.pt").facts
    splits = reopen_data(data_of_run(RunFolder(run)), facts.preprocessing, facts.classes, None)
    net = load_model("builtin:digits-resnet", str(weights), num_classes=10, prefer_ema=False, seed=0).module
    return faq_deploy.prepare(net.eval(), torch.zeros(2, 1, 8, 8), recipe=recipe), splits, recipe


def calibration_batches(splits: Splits, recipe: Recipe) -> Iterator[torch.Tensor]:
    section = recipe.calibration
    indices = calibration_indices(splits.train.labels, section.batches * section.batch_size, recipe.training.seed)
    return (torch.from_numpy(batch.images) for batch in batches(splits.train, indices, section.batch_size))


def train(model: faq_deploy.PreparedModel, splits: Splits, recipe: Recipe) -> None:
    """A plain loop over the images that the command line trains on."""
    training = recipe.training
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), training.lr, momentum=training.momentum, weight_decay=training.weight_decay
    )
    for epoch in range(training.epochs):
        optimizer.param_groups[0]["lr"] = learning_rate(training, epoch)
        data = TrainingData(splits.train, splits.augment, training.seed, epoch)
        order = epoch_order(len(splits.train), training.seed, epoch)
        for images, labels in training_batches(data, order, training.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval().to(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("bits", [8, 4])
def test_plain_loop_gives_the_runs_bits_and_graph(
    bits: int, call: Call, make_run: Callable[..., Path], float_weights: Path, tmp_path: Path
) -> None:
    run = make_run("--epochs", 2, "--keep", "last", *(("--bits", bits) if bits != 8 else ()))
    assert call("export", run).exit_code == 0
    model, splits, recipe = prepared(run, float_weights)
    assert recipe.bits == bits
    faq_deploy.calibrate(model, calibration_batches(splits, recipe))
    calibrated = load_net(run / "float.pt").net.state_dict()
    found = model.net.state_dict()
    assert found.keys() == calibrated.keys()
    assert all(torch.equal(found[key], value) for key, value in calibrated.items())

    train(model, splits, recipe)
    trained = load_net(run / "quantized.pt")
    assert all(torch.equal(model.net.state_dict()[key], value) for key, value in trained.net.state_dict().items())
    assert not all(torch.equal(trained.net.state_dict()[key], value) for key, value in calibrated.items())

    facts = trained.facts
    faq_deploy.export(model, tmp_path / "api.onnx", classes=facts.classes, preprocessing=facts.preprocessing)
    ours, theirs = onnx.load(tmp_path / "api.onnx"), onnx.load(run / "model.onnx")
    assert ours.graph.SerializeToString(deterministic=True) == theirs.graph.SerializeToString(deterministic=True)
    said, wanted = metadata_of(ours), metadata_of(theirs)
    assert wanted.keys() - said.keys() == {"checkpoint_sha256"}  # there is no checkpoint file
    assert {key for key in said if said[key] != wanted[key]} == {"model"}
    assert (said["model"], wanted["model"]) == ("_ResNet", "builtin:digits-resnet")
