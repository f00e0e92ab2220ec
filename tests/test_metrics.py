"""Metrics: built-in ones by hand, the user's own, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import faq_deploy
from engines.ort import OrtRunner
from faq_deploy import InputError, metric_stages
from faq_deploy.metrics import Outputs, given_metric, named_metric
from tests.nets import with_statistics
from tests.quantized import images
from tests.task_nets import Embedder, Keypoints, Segmenter

LOGITS = np.array([[3, 2, 1], [1, 2, 3], [2, 3, 1], [1, 3, 2]], np.float32)


def value(metric: object, outputs: Outputs, targets: object) -> float:
    """Of one batch."""
    total = given_metric(metric).total()  # type: ignore[arg-type]
    total.update(outputs, targets)
    return total.compute()


@pytest.mark.parametrize(("metric", "wanted"), [("top-1", 50.0), ("top-2", 75.0)])
def test_top_k_counts_images_over_all_batches(metric: str, wanted: float) -> None:
    labels = np.array([0, 0, 1, 2])
    total = named_metric(metric).total()
    for rows in (slice(0, 3), slice(3, 4)):
        total.update(LOGITS[rows], labels[rows])
    assert total.compute() == wanted


def test_mean_iou_by_hand() -> None:
    scores = np.zeros((1, 3, 2, 2), np.float32)
    scores[0, 0, 0], scores[0, 1, 1] = 1, 1  # class 0 above, class 1 below, class 2 nowhere
    masks = np.array([[[0, 1], [1, 255]]])
    # class 0: 1 of 2; class 1: 1 of 2; class 2 does not occur; one place is ignored
    assert value("mean-iou", scores, masks) == 50.0
    assert value("mean-iou", {"aux": scores[:, ::-1], "out": scores}, masks) == 50.0


def test_top_k_of_scores_of_masks_names_the_metric_for_these() -> None:
    with pytest.raises(InputError, match=r"top-1 got outputs of shape \(2, 3, 4, 4\).*\n.*take mean-iou"):
        value("top-1", np.zeros((2, 3, 4, 4), np.float32), np.zeros((2, 4, 4), np.int64))


def test_a_function_gets_all_images_and_a_class_one_batch_at_a_time() -> None:
    shapes: list[tuple[int, ...]] = []

    def mean(outputs: NDArray[np.float32], targets: list[str]) -> float:
        shapes.append(outputs.shape)
        return float(len(targets))

    class Sum:
        def __init__(self) -> None:
            self.sum = 0.0

        def update(self, outputs: NDArray[np.float32], targets: object) -> None:
            shapes.append(outputs.shape)
            self.sum += float(outputs.sum())

        def compute(self) -> float:
            return self.sum

    for metric, wanted in ((mean, 4.0), (Sum, 24.0)):
        total = given_metric(metric).total()  # type: ignore[arg-type]
        total.update(LOGITS[:3], ["a", "b", "c"])
        total.update(LOGITS[3:], ["d"])
        assert total.compute() == wanted
    assert shapes == [(4, 3), (3, 3), (1, 3)]


def test_metric_of_a_file_is_run_by_its_name_and_its_failures_are_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(outputs, targets):\n    return 1 / len(targets)\n\nclass Half:\n    pass\nnumber = 3\n")
    assert value(f"{file}:score", LOGITS, [0] * 4) == 0.25
    cases = {
        f"{file}:scores": "no function or class 'scores'",
        f"{file}:number": "number is a int, not a function or class",
        f"{file}:Half": "Half has no method update",
        f"{tmp_path}/other.py:score": "other.py does not exist, so there are no metrics",
        "median": "there is no metric 'median'",
        "top-0": "there is no metric 'top-0'",
    }
    for spec, what in cases.items():
        with pytest.raises(InputError, match=what):
            named_metric(spec)
    with pytest.raises(InputError, match=r"mine\.py:2: the metric raised ZeroDivisionError: division by zero"):
        value(f"{file}:score", LOGITS, [])
    file.write_text("def one(outputs):\n    return 1.0\n" + "".join(f"def f{n}(): pass\n" for n in range(5)))
    with pytest.raises(InputError, match=r"mine\.py: the metric raised TypeError: one\(\) takes 1 positional"):
        value(f"{file}:one", LOGITS, [])
    with pytest.raises(InputError) as refused:
        named_metric(f"{file}:quality")
    assert refused.value.remedy == "it has one, f0, f1, and 3 more."
    file.write_text("def broken(:\n")
    with pytest.raises(InputError, match=r"mine\.py:1: the file raised SyntaxError"):
        named_metric(f"{file}:score")


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "what"),
    [
        ("top-3", LOGITS, np.zeros(4), "top-3 of 3 classes says nothing"),
        ("top-1", LOGITS, np.zeros((4, 2)), r"targets of shape \(4, 2\) for 4 images"),
        ("top-1", {"a": LOGITS, "b": LOGITS}, np.zeros(4), "reads one output, and the net has a, b"),
        ("mean-iou", LOGITS, np.zeros(4), r"outputs of shape \(4, 3\)"),
        ("mean-iou", np.zeros((1, 2, 3, 3)), np.full((1, 3, 3), 2), "a mask holds class 2, and the net has 2"),
        ("mean-iou", np.zeros((1, 2, 3, 3)), np.full((1, 3, 3), 255), "saw no place with a class"),
        (lambda outputs, targets: "high", LOGITS, np.zeros(4), "gave a str, not a number"),
        (lambda outputs, targets: float("nan"), LOGITS, np.zeros(4), "gave nan"),
        (3, LOGITS, np.zeros(4), "a int is no metric"),
    ],
)
def test_what_cannot_be_measured_is_refused(metric: object, outputs: Outputs, targets: object, what: str) -> None:
    with pytest.raises(InputError, match=what):
        value(metric, outputs, targets)


def test_check_gives_the_metric_of_each_stage(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net, data, path = with_statistics(Segmenter()), images(4, 32), tmp_path / "model.onnx"
    model = faq_deploy.prepare(net, data, output="*")
    faq_deploy.calibrate(model, [data])
    assert re.fullmatch(
        r".*model\.onnx: [\d.]+ MB, (\d+) of \1 sums proven exact in fp32", str(faq_deploy.export(model, path))
    )
    masks = net(data)["out"].argmax(1)  # the float net's own answers
    batches = [(data[:3], masks[:3]), (data[3:], masks[3:])]
    found = faq_deploy.check(model, path, batches, metric="mean-iou", float_model=net)
    assert list(found.metric) == ["PyTorch float", "PyTorch quantized", "onnxruntime"]
    assert found.metric["PyTorch float"] == 100.0
    assert 50 < found.metric["PyTorch quantized"] < 100
    assert found.metric["onnxruntime"] == found.metric["PyTorch quantized"]
    assert faq_deploy.check(model, path, [data]).metric == {}
    assert [(o.name, o.compared, o.differing) for o in found.agreements[0].outputs] == [
        (name, 4 * 4 * 32 * 32, 0) for name in ("out", "aux")
    ]
    with pytest.raises(InputError, match="a metric needs targets"):
        faq_deploy.check(model, path, [data], metric="mean-iou")


def test_equal_outputs_have_equal_metrics_where_optimized_onnxruntime_rounds_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rounding(OrtRunner):
        def __init__(self, path: Path, oracle: bool = False) -> None:
            super().__init__(path, oracle=oracle)
            self.added = 0.0 if oracle else 1.0

        def outputs(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            return {name: values + np.float32(self.added) for name, values in super().outputs(batch).items()}

    monkeypatch.setattr(metric_stages, "OrtRunner", Rounding)
    torch.manual_seed(3)
    net, data, path = with_statistics(Segmenter()), images(4, 32), tmp_path / "model.onnx"
    model = faq_deploy.prepare(net, data)
    faq_deploy.calibrate(model, [data])
    faq_deploy.export(model, path)
    found = faq_deploy.check(model, path, [(data, data)], metric=lambda outputs, targets: float(outputs.mean()))
    assert found.equal
    assert found.metric["onnxruntime"] == found.metric["PyTorch quantized"]
    said = f"4 images: 0 of {found.codes:,} codes and 0 of {found.logits:,} logits differ; PyTorch quantized "
    assert str(found).startswith(said)


def test_several_outputs_reach_a_metric_by_their_names(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net, data, path = with_statistics(Keypoints()), images(4, 32), tmp_path / "model.onnx"
    model = faq_deploy.prepare(net, data, "onnxruntime", output="*")
    faq_deploy.calibrate(model, [data])
    faq_deploy.export(model, path)

    def largest(outputs: dict[str, NDArray[np.float32]], targets: list[str]) -> float:
        assert list(outputs) == ["output_0", "output_1"]
        assert targets == list("abcd")
        return float(outputs["output_0"].max())

    found = faq_deploy.check(model, path, [(data, list("abcd"))], metric=largest, float_model=net)  # type: ignore[arg-type]
    assert found.metric["PyTorch float"] == float(net(data)[0].detach().max())
    assert found.metric["onnxruntime"] == found.metric["PyTorch quantized"] == float(model(data)[0].detach().max())


def test_one_output_of_several_is_measured_in_the_float_net_too(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net, data, path = with_statistics(Segmenter()), images(4, 32), tmp_path / "model.onnx"
    model = faq_deploy.prepare(net, data, output="aux")
    faq_deploy.calibrate(model, [data])
    faq_deploy.export(model, path)
    masks = net(data)["aux"].argmax(1)
    found = faq_deploy.check(model, path, [(data, masks)], metric="mean-iou", float_model=net)
    assert found.metric["PyTorch float"] == 100.0


def test_an_embedding_is_judged_by_its_neighbours(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net, data, path = with_statistics(Embedder()), images(6, 32), tmp_path / "model.onnx"
    model = faq_deploy.prepare(net, data)
    faq_deploy.calibrate(model, [data])
    faq_deploy.export(model, path)

    def recall(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        unit = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
        near = unit @ unit.T - 2 * np.eye(len(unit))
        return float((labels[near.argmax(1)] == labels).mean())

    found = faq_deploy.check(model, path, [(data, torch.zeros(6, dtype=torch.int64))], metric=recall, float_model=net)  # type: ignore[arg-type]
    assert set(found.metric.values()) == {1.0}
