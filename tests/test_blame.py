"""Who broke it, where no stage did: only gates on answers ask, and each gets the cause that fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from engines.image_batches import BadImages
from engines.images import ArrayImages
from engines.preprocess import Preprocessing
from engines.run_folder import RunFolder
from faq_deploy.blame import ALL_STAGES, Inquiry, find_blame, told
from faq_deploy.evidence_gates import FALL, FileCheck, check_file
from faq_deploy.onnx_export import export_onnx
from faq_deploy.report_model import Blame, Gate, Stage
from faq_deploy.stored_net import StoredNet
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net


@dataclass(frozen=True)
class Made:
    """A run of a net that knows nothing, its net, and the check of its file."""

    run: RunFolder
    stored: StoredNet
    check: FileCheck


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    stored = quantized_net(with_statistics(Small()), make_recipe())
    run = RunFolder(tmp_path_factory.mktemp("run"))
    export_onnx(stored, run / "model.onnx", images(2).numpy(), versions={}, checkpoint_sha256="")
    run.record("quantize", version="1", facts={"top1": 60.0})
    return Made(run, stored, check_file(stored, run / "model.onnx"))


def inquiry(made: Made, top1: float = 60.0) -> Inquiry:
    """All stages agree on noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    noise = ArrayImages(pixels, rng.integers(0, 5, 40), "abcde", Preprocessing(resize=None, crop=None))
    row = Stage(name="PyTorch quantized", kind="quantized", images=40, top1=top1)
    return Inquiry(made.run, made.stored, made.check, noise, BadImages(), [], row)


def gate(name: str, *, passed: bool = False) -> Gate:
    return Gate(name=name, limit=0, value=1, passed=passed, detail="points")


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        ([], None),
        (["engine bytes: onnxruntime", "required runtime: tensorrt", "latency ratio: onnxruntime"], None),
        (["drop of quantization"], "quantization"),
        (["largest drop of a class", "engine bytes: onnxruntime"], "quantization"),
        (["regression"], "other weights"),
        (["regression", FALL], "other images"),
        (["top-1"], "other images"),
    ],
)
def test_each_gate_that_breaks_alone_has_its_cause(made: Made, names: list[str], cause: str | None) -> None:
    gates = [gate("flips: engine", passed=True), *map(gate, names)]
    blame, more = find_blame(inquiry(made), gates)
    assert more == []
    assert (None if blame is None else blame.cause) == cause
    if blame is not None:
        assert blame.stage == ALL_STAGES
        assert blame.sentences[0] == "All stages agree, and are right on 60.00 % of the images."
        assert [sentence.split(":")[0] for sentence in blame.sentences[1:]] == ["Likely cause", "Note"]


def test_a_net_near_chance_is_asked_about_without_a_broken_gate_and_not_blamed_for_nothing(made: Made) -> None:
    assert find_blame(inquiry(made, top1=20.0), []) == (None, [])


def test_only_broken_gates_on_answers_are_told_the_cause() -> None:
    blame = Blame(stage=ALL_STAGES, cause="preprocessing", sentences=["One.", "Two."])
    names = ["top-1", "flips: engine", "engine bytes: engine"]
    gates = [gate("top-1"), gate("flips: engine", passed=True), gate("engine bytes: engine")]
    found = told(gates, blame)
    assert [(g.name, g.detail) for g in found] == list(
        zip(names, ["points. One. Two.", "points", "points"], strict=True)
    )
    assert told(gates, None) == gates
