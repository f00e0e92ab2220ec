"""Several builds of one engine: the worst counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines import rebuilds
from engines.errors import CannotRunHere, InputError
from engines.host import Gpu, Host
from engines.ort import OrtRunner
from engines.profile import Profile
from engines.qdq_graph import load_model
from engines.rebuilds import check_here, rebuild, same_as_reference
from engines.runner import FloatArray
from engines.tensorrt import BuiltEngine
from tests.layer_forms import layer
from tests.onnx_nets import residual_net, saved


def builder(file: Path, contents: bytes) -> Callable[[], BuiltEngine]:
    """Builds that write one byte of `contents` each."""
    left = list(contents)

    def build() -> BuiltEngine:
        file.write_bytes(bytes([left.pop(0)]))
        return BuiltEngine(file, "10.13", 1.0, {}, (), notes=("said",))

    return build


@pytest.mark.parametrize(
    ("contents", "said"),
    [(b"aa", "each time the same file"), (b"aba", "2 different files"), (b"abc", "3 different files")],
)
def test_what_was_seen_is_noted(tmp_path: Path, contents: bytes, said: str) -> None:
    times = len(contents)
    built = rebuild(builder(tmp_path / "e", contents), times)
    assert built.notes == ("said", f"Built {times} times: {said}; not run here.")
    seen: list[bytes] = []
    rebuild(builder(tmp_path / "e", contents), times, lambda engine: seen.append(engine.read_bytes()))
    assert b"".join(seen) == contents


def test_one_build_is_neither_run_nor_noted(tmp_path: Path) -> None:
    def never(engine: Path) -> str:
        return "was run"

    assert rebuild(builder(tmp_path / "e", b"a"), 1, never).notes == ("said",)


def test_the_worst_build_decides_and_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^Build 2 of 3 gives 7 of 28 logits other than the integer reference\."):
        rebuild(
            builder(tmp_path / "e", b"abc"),
            3,
            lambda e: "gives 7 of 28 logits other than the integer reference" if e.read_bytes() == b"b" else None,
        )
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("error", [CannotRunHere("it does not run", ""), KeyboardInterrupt()])
def test_build_that_does_not_run_is_not_left_behind(tmp_path: Path, error: BaseException) -> None:
    def check(engine: Path) -> str | None:
        raise error

    with pytest.raises(type(error)):
        rebuild(builder(tmp_path / "e", b"ab"), 2, check)
    assert not (tmp_path / "e").exists()


class OffByAStep(OrtRunner):
    """A runner whose second image has one wrong logit."""

    def __call__(self, batch: FloatArray) -> FloatArray:
        logits = super().__call__(batch).copy()
        logits[1, 2] = np.nextafter(logits[1, 2], np.float32(np.inf))
        return logits


def test_engine_is_held_against_the_integer_reference_bit_for_bit(tmp_path: Path) -> None:
    path = saved(residual_net("tensorrt", 0), tmp_path)
    assert same_as_reference(path, Profile(), OrtRunner)(path) is None
    said = same_as_reference(path, Profile(), OffByAStep)(path)
    assert said == "gives 1 of 28 logits other than the integer reference"


def test_builds_are_run_only_where_they_can_be_and_promise_to_be_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(residual_net("tensorrt", 0), tmp_path)
    model = load_model(path)
    monkeypatch.setattr(rebuilds, "this_host", lambda: Host(None, {}))
    assert check_here("tensorrt", None, model, path, Profile()) is None
    monkeypatch.setattr(rebuilds, "this_host", lambda: Host(Gpu("A10", 86, 1), {}))
    assert check_here("tensorrt", None, model, path, Profile()) is not None
    assert check_here("tensorrt-rtx", 86, model, path, Profile()) is not None
    assert check_here("tensorrt-rtx", 89, model, path, Profile()) is None
    opened: list[bool] = []

    class Opened(OrtRunner):
        def __init__(self, engine: Path, package: str, *, host_code: bool) -> None:
            opened.append(host_code)
            super().__init__(engine)

    monkeypatch.setattr(rebuilds, "TensorRTRunner", Opened)
    for host_code in (False, True):  # a version-compatible engine loads only where its own code is allowed
        check = check_here("tensorrt", None, model, path, Profile(), host_code=host_code)
        assert check is not None
        assert check(path) is None
    assert opened == [False, True]
    in_float = layer("Conv", (3, 6, 6), (4, 3, 3, 3), quantized=False)
    assert check_here("tensorrt", None, in_float, path, Profile()) is None
