"""A refused network: the message names the user's file and modules, and the smallest part that fails is saved."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from engines import failing_part
from engines.engine_source import EngineSource
from engines.failing_part import explained, with_modules
from engines.profile import Profile
from engines.tensorrt import BuilderRefusal, BuiltEngine, build_rtx
from tests.engine_nets import classifier, needs_rtx

MODULES = {"conv1": "features.0", "fc": "head.fc", "fc.weight_dq": "head.fc"}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("node 'conv1' (Conv): bad", "node 'conv1' (Conv, module features.0): bad"),
        ("Cannot compile operation 'fc' for Turing", "Cannot compile operation 'fc' (module head.fc) for Turing"),
        ("no implementation for node conv1 + relu.", "no implementation for node conv1 (module features.0) + relu."),
        ("node 'fc.padded.reshape' (Reshape)", "node 'fc.padded.reshape' (Reshape, module head.fc)"),
        ("it doesn't take node 'conv1'", "it doesn't take node 'conv1' (module features.0)"),
        ("node 'conv10' (Conv): bad", "node 'conv10' (Conv): bad"),
        ("conv1 is only mentioned", "conv1 is only mentioned"),
    ],
)
def test_nodes_come_with_their_module(said: str, shown: str) -> None:
    assert with_modules(said, MODULES) == shown


@pytest.fixture
def source(tmp_path: Path) -> EngineSource:
    path = classifier(tmp_path / "prepared" / "model.onnx", gemm=True, metadata={"modules": {"classifier": "head.fc"}})
    return EngineSource(path, onnx.load(path), ())


def _build(path: Path) -> BuiltEngine:
    return build_rtx(path, 75, Profile(), path.with_suffix(".engine"))


@needs_rtx
def test_smallest_part_that_is_refused_is_named_and_saved(source: EngineSource, tmp_path: Path) -> None:
    with pytest.raises(BuilderRefusal) as caught:
        _build(source.path)
    error = explained(caught.value, source, tmp_path / "mine.onnx", tmp_path / "engine", _build)
    assert error.what == (
        f"{tmp_path}/mine.onnx could not be built for SM 75: Myelin: Cannot compile operation 'classifier' (module "
        "head.fc) for Turing (SM75): FP32 GEMM is not supported. The smallest part that is refused in the same way: "
        "Gemm classifier (module head.fc)."
    )
    assert error.remedy.endswith(f"See {tmp_path}/engine/failing.onnx.")
    part = onnx.load(tmp_path / "engine/failing.onnx")
    assert [node.op_type for node in part.graph.node] == ["Gemm"]
    with pytest.raises(BuilderRefusal, match="FP32 GEMM is not supported"):
        _build(tmp_path / "engine/failing.onnx")


def test_network_without_a_smaller_failing_part_saves_none(source: EngineSource, tmp_path: Path) -> None:
    refusal = BuilderRefusal(f"{source.path} could not be built for SM 86: too deep.", "make it smaller.")

    def fails_otherwise(path: Path) -> None:
        raise BuilderRefusal(f"{path} is refused by the ONNX parser: it has no outputs.", "export again.")

    error = explained(refusal, source, Path("mine.onnx"), tmp_path / "engine", fails_otherwise)
    assert (error.what, error.remedy) == ("mine.onnx could not be built for SM 86: too deep.", "make it smaller.")
    assert not (tmp_path / "engine").exists()


def test_search_ends_in_time(source: EngineSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    refusal = BuilderRefusal("It could not be built.", "make it smaller.")
    explained(refusal, source, Path("mine.onnx"), tmp_path / "engine", asked.append, seconds=0.0)
    assert asked == []


def test_parts_fail_alike_where_only_names_and_numbers_differ() -> None:
    first, second, other = (
        BuilderRefusal(what, "")
        for what in (
            "/a/model.onnx could not be built: operation 'conv1' for Turing (SM75): FP32 GEMM is not supported.",
            "/b/model.onnx could not be built: operation 'part.2' for Turing (SM75): FP32 GEMM is not supported.",
            "/b/model.onnx could not be built: operation 'conv1' for Turing (SM75): INT4 is not supported.",
        )
    )
    signature = failing_part._signature
    assert signature(first, Path("/a/model.onnx")) == signature(second, Path("/b/model.onnx"))
    assert signature(first, Path("/a/model.onnx")) != signature(other, Path("/b/model.onnx"))
