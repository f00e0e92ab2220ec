"""`eval --bundle`: the engine and the integer reference against the oracle; what is judged, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines import bundle_eval, invariance
from engines.bundle_eval import BundleReport, Limits, evaluate_bundle
from engines.errors import CannotRunHere, InputError
from engines.opened_bundle import opened
from engines.ort import OrtRunner
from engines.parity import LogitParity
from engines.reference import ReferenceRunner
from engines.runner import FloatArray, Runner
from tests.bundles import CLASSES, bundle_of
from tests.engine_nets import VERSION

CODES = 3 * 16 * 16 + 8  # of one image: the input's and the pool's


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def with_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net whose classifier was left in float."""
    return bundle_of(tmp_path_factory.mktemp("float"), gemm=True)


def judged(
    bundle: Path,
    limits: Limits | None = None,
    *,
    batch_size: int = 32,
    code_images: int = 64,
    reference_images: int = 64,
) -> BundleReport:
    """The verdict on the samples."""
    return evaluate_bundle(
        bundle,
        None,
        ["onnxruntime"],
        limits or Limits(),
        version=VERSION,
        batch_size=batch_size,
        code_images=code_images,
        reference_images=reference_images,
    )


class _Turned:
    """An engine, or a reference, whose classes are the other way round."""

    name = "turned"

    def __init__(self, runner: Runner) -> None:
        self._runner, self.closed = runner, False

    def __call__(self, batch: FloatArray) -> FloatArray:
        return np.ascontiguousarray(self._runner(batch)[:, ::-1])

    def close(self) -> None:
        self.closed = True
        self._runner.close()


def turned(made: list[_Turned]) -> Callable[[Path, str | None], Runner]:
    def open_engine(folder: Path, sha256: str | None) -> Runner:
        made.append(_Turned(OrtRunner(folder / "model.onnx")))
        return made[-1]

    return open_engine


def test_engine_and_reference_that_agree_pass(bundle: Path) -> None:
    report = judged(bundle)
    assert (report.exit_code, report.broken, report.images, report.warnings) == (0, (), 5, ())
    assert report.reference == bundle_eval.ReferenceScore(LogitParity(5, 0, 0.0, 0), 5 * CODES, 0, "")
    (engine,) = report.engines
    assert (engine.top1, engine.parity, engine.batch) == (report.top1, LogitParity(5, 0, 0.0, 0), "")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
@pytest.mark.parametrize(("images", "code_images", "ran", "with_codes"), [(3, 1, 3, 1), (4, 9, 4, 4), (64, 0, 5, 0)])
def test_reference_runs_as_many_images_as_it_is_told(
    bundle: Path, batch_size: int, images: int, code_images: int, ran: int, with_codes: int
) -> None:
    report = judged(bundle, batch_size=batch_size, code_images=code_images, reference_images=images)
    assert (report.reference.logits.images, report.reference.codes) == (ran, with_codes * CODES)
    assert (report.images, report.exit_code) == (5, 0)


def test_reference_that_flips_breaks_the_gate(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_eval, "ReferenceRunner", lambda path: _Turned(ReferenceRunner(path)))
    report = judged(bundle, code_images=0)
    flips = report.reference.logits.flips
    assert (flips > 0, report.exit_code) == (True, 1)
    said = f"The integer reference names another class than the oracle for {flips} images, and the limit is 0."
    assert report.broken == (said,)
    assert judged(bundle, Limits(max_flips=flips), code_images=0).exit_code == 0


def test_codes_that_differ_are_told_with_their_layer(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = ReferenceRunner.codes

    def off(self: ReferenceRunner, batch: FloatArray) -> dict[str, np.ndarray]:
        found = codes(self, batch)
        found["p.codes"][0, 3] += 1
        return found

    monkeypatch.setattr(ReferenceRunner, "codes", off)
    report = judged(bundle)
    assert (report.reference.differing, report.reference.first) == (3, "conv")  # pieces of 2, 2 and 1 images
    assert report.warnings == (f"the integer reference: 3 of {5 * CODES} codes differ, first in conv",)


def test_engine_that_flips_breaks_the_gates_and_is_closed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Turned] = []
    monkeypatch.setattr(bundle_eval, "open_engine", turned(made))
    report = judged(bundle, Limits(max_drop=-1000.0))
    assert report.exit_code == 1
    assert [text.split(" ")[1] for text in report.broken] == ["loses", "names"]
    assert [engine.closed for engine in made] == [True]


@pytest.mark.filterwarnings("ignore::engines.images.DataWarning")
def test_engine_is_closed_when_an_image_is_bad(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Turned] = []
    monkeypatch.setattr(bundle_eval, "open_engine", turned(made))
    (tmp_path / CLASSES[0]).mkdir()
    (tmp_path / CLASSES[0] / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError):
        evaluate_bundle(bundle, tmp_path, ["onnxruntime"], Limits(), version=VERSION)
    assert [engine.closed for engine in made] == [True]


def test_image_that_depends_on_its_batch_breaks_a_gate(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariance, "batch_dependence", lambda runner, images, sizes: f"image 1 of {sizes}")
    report = judged(bundle)
    assert (report.exit_code, report.broken) == (1, ("onnxruntime: image 1 of (8, 32).",))


def test_batches_are_not_judged_where_parts_are_in_float(with_float: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariance, "batch_dependence", lambda runner, images, sizes: "image 1")
    report = judged(with_float)
    assert (report.exit_code, report.engines[0].batch) == (0, "")


def test_engine_that_does_not_open_here_is_skipped(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> Runner:
        raise CannotRunHere("no driver.", "install one.")

    monkeypatch.setattr(bundle_eval, "open_engine", closed)
    report = judged(bundle)
    assert (report.exit_code, [(e.name, e.skipped) for e in report.engines]) == (3, [("onnxruntime", "no driver.")])
    assert judged(bundle, Limits(allow_skip=True)).exit_code == 0


@pytest.mark.filterwarnings("ignore::engines.images.DataWarning")
def test_folder_of_the_samples_gives_what_the_samples_give(bundle: Path, tmp_path: Path) -> None:
    with opened(bundle) as found:
        for index, (pixels, label) in enumerate(zip(found.samples.pixels, found.samples.labels, strict=True)):
            (tmp_path / CLASSES[label]).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / CLASSES[label] / f"{index}.png")
    report = evaluate_bundle(bundle, tmp_path, ["onnxruntime"], Limits(), version=VERSION)
    assert (report.exit_code, report.images, report.top1) == (0, 5, judged(bundle).top1)
