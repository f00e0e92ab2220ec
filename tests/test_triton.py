"""Triton repositories: the configuration is read by the published schema; folders are whole or absent."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from PIL import Image

from engines import engine_manifest
from engines.engine_manifest import EngineManifest
from engines.errors import InputError, WriteError
from engines.files import sha256_of
from engines.host import RuntimeName
from engines.int4_storage import pack_int4
from engines.ort import OrtRunner
from engines.profile import Shapes
from engines.qdq_graph import load_model
from engines.run_folder import RunFolder
from engines.triton import write_repository
from engines.triton_config import ServedModel, Tensor, model_config
from tests.engine_nets import VERSION, exported_run

CLASSES = ["cat", 'a "quoted" dog', "bird\nof\tprey", "Füchse", "狐", "back\\slash", "#7", "", " x ", "dog"]
SPEC = {"resize": None, "crop": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
OURS: dict[str, object] = {"target": "tensorrt", "recipe": {"bits": 8}, "classes": CLASSES, "preprocessing": SPEC}


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's own `model_config_pb2`, by its file: the package around it imports grpc."""
    files = importlib.metadata.files("tritonclient") or []
    (found,) = (file for file in files if file.as_posix() == "tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", found.locate())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(schema: ModuleType, text: str) -> Any:  # a protobuf message, whose fields are made at run time
    return text_format.Parse(text, schema.ModelConfig())


def with_engine(run: RunFolder, name: str, runtime: RuntimeName, profile: Mapping[str, Shapes] | None = None) -> Path:
    """A record as `build` leaves it, beside a file that is no real engine: nothing here loads it."""
    file = run / f"engines/{name}/model.engine"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"stands for an engine")
    record = EngineManifest(
        runtime=runtime,
        file=file.name,
        sha256=sha256_of(file),
        bytes=file.stat().st_size,
        onnx_sha256=sha256_of(run / "model.onnx"),
        versions={runtime: "10.16.1.11"},
        sm=75,
        gpu="Tesla T4",
        profile=dict(profile or {"input": ((1, 3, 16, 16), (4, 3, 16, 16), (16, 3, 16, 16))}),
        seconds=1.0,
    )
    engine_manifest.write(file.parent, record)
    return file


def test_onnx_file_is_served_on_the_cpu_in_batches(schema: ModuleType, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "r18", metadata=OURS)
    folder = write_repository(run, tmp_path / "models")
    assert folder == tmp_path / "models" / "r18"
    config = parsed(schema, (folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.platform) == ("r18", "onnxruntime", "onnxruntime_onnx")
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (32, [8])
    (given,), (made,) = config.input, config.output
    assert (given.name, given.data_type, list(given.dims)) == ("input", schema.TYPE_FP32, [3, 16, 16])
    assert (made.name, made.data_type, list(made.dims)) == ("logits", schema.TYPE_FP32, [10])
    assert made.label_filename == "labels.txt"
    assert [(group.kind, group.count) for group in config.instance_group] == [(schema.ModelInstanceGroup.KIND_CPU, 1)]
    assert config.version_policy.latest.num_versions == 1
    assert config.default_model_filename == "model.onnx"
    assert not config.HasField("optimization")
    assert (folder / "1" / "model.onnx").read_bytes() == (run / "model.onnx").read_bytes()
    files = {"1", "1/model.onnx", "README.md", "config.pbtxt", "labels.txt", "preprocessing.json"}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == files
    assert [path.name for path in folder.parent.iterdir()] == ["r18"]


def test_label_file_has_one_line_a_class_whatever_the_names_hold(tmp_path: Path) -> None:
    folder = write_repository(exported_run(tmp_path / "run", metadata=OURS), tmp_path / "models")
    labels = (folder / "labels.txt").read_text("utf-8").split("\n")
    assert labels == ["cat", 'a "quoted" dog', "bird of prey", "Füchse", "狐", "back\\slash", "#7", "", "x", "dog", ""]


@pytest.mark.parametrize("classes", [None, ["a", "b"]])
def test_output_without_a_name_for_each_value_gets_no_labels(
    schema: ModuleType, tmp_path: Path, classes: list[str] | None
) -> None:
    folder = write_repository(exported_run(tmp_path / "run", metadata=OURS | {"classes": classes}), tmp_path / "models")
    assert parsed(schema, (folder / "config.pbtxt").read_text()).output[0].label_filename == ""


def test_engine_of_tensorrt_is_served_on_gpus_within_its_profile(schema: ModuleType, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", metadata=OURS)
    engine = with_engine(run, "tensorrt", "tensorrt")
    folder = write_repository(run, tmp_path / "models", engine="tensorrt")
    config = parsed(schema, (folder / "config.pbtxt").read_text())
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (16, [4])
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert (folder / "1" / config.default_model_filename).read_bytes() == engine.read_bytes()
    assert "TensorRT 10.16.1.11 on Tesla T4 (SM 75)" in (folder / "README.md").read_text()


def test_engine_whose_smallest_batch_is_not_one_is_refused(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run")
    with_engine(run, "tensorrt", "tensorrt", {"input": ((4, 3, 16, 16),) * 3})
    with pytest.raises(InputError, match="takes batches from 4, and Triton sends single images"):
        write_repository(run, tmp_path / "models", engine="tensorrt")


def test_engine_of_rtx_or_of_another_name_or_a_changed_one_is_refused(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"has no engine 'tensorrt'; none was built"):
        write_repository(run, tmp_path / "models", engine="tensorrt")
    with_engine(run, "tensorrt-rtx-sm75", "tensorrt-rtx")
    with pytest.raises(InputError, match="TensorRT-RTX, which Triton can't load"):
        write_repository(run, tmp_path / "models", engine="tensorrt-rtx-sm75")
    with pytest.raises(InputError, match=r"no engine '\.\./engines/tensorrt-rtx-sm75'; it has tensorrt-rtx-sm75"):
        write_repository(run, tmp_path / "models", engine="../engines/tensorrt-rtx-sm75")
    with_engine(run, "tensorrt", "tensorrt").write_bytes(b"stands for anything!")
    with pytest.raises(InputError, match="is not what `faq-deploy build` wrote"):
        write_repository(run, tmp_path / "models", engine="tensorrt")
    assert not (tmp_path / "models").exists()


def test_fixed_batch_is_left_alone(schema: ModuleType, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", metadata=OURS, input_shape=(2, 3, 16, 16))
    config = parsed(schema, (write_repository(run, tmp_path / "models") / "config.pbtxt").read_text())
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (
        0,
        [2, 3, 16, 16],
        [2, 10],
    )
    assert not config.HasField("dynamic_batching")
    assert config.output[0].label_filename == "labels.txt"


def test_float_part_turns_the_optimizations_of_onnxruntime_off(schema: ModuleType, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", metadata=OURS, gemm=True)
    folder = write_repository(run, tmp_path / "models")
    assert parsed(schema, (folder / "config.pbtxt").read_text()).optimization.graph.level == 2
    assert "optimizations are off" in (folder / "README.md").read_text()


def test_weights_stored_in_four_bits_are_unpacked(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", metadata=OURS)
    model = load_model(run / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight_codes"):
            codes = np.clip(onnx.numpy_helper.to_array(tensor), -7, 7)
            tensor.CopyFrom(onnx.numpy_helper.from_array(codes, tensor.name))
    packed = pack_int4(model)
    onnx.save(packed, run / "model.onnx")
    run.record("export", version=VERSION, inputs=["quantized.pt"], outputs=["model.onnx"])
    served = write_repository(run, tmp_path / "models") / "1" / "model.onnx"
    types = {tensor.name: tensor.data_type for tensor in onnx.load(served).graph.initializer}
    assert types["conv.weight_codes"] == types["head.weight_codes"] == onnx.TensorProto.INT8
    assert onnx.TensorProto.INT4 in {t.data_type for t in onnx.load(run / "model.onnx").graph.initializer}
    batch = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    assert np.array_equal(OrtRunner(served)(batch), OrtRunner(run / "model.onnx")(batch))


def test_readme_prepares_a_picture_as_the_network_saw_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_repository(exported_run(tmp_path / "run", metadata=OURS), tmp_path / "models")
    text = (folder / "README.md").read_text()
    code = text.split("    from pathlib", 1)[1].split("\nThen", 1)[0]
    Image.fromarray(np.full((20, 24, 3), 255, np.uint8)).save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in f"    from pathlib{code}".splitlines()), found)
    assert (found["batch"].dtype, found["batch"].shape) == (np.float32, (1, 3, 16, 16))
    assert np.array_equal(found["batch"], np.full((1, 3, 16, 16), 2, np.float32))  # (255 / 255 - 0.5) / 0.25
    assert "client.InferInput('input', batch.shape, 'FP32')" in text
    assert "server.infer('run', [images]).as_numpy('logits')" in text


@pytest.mark.parametrize(
    ("name", "served"), [("résnet 18", "r_snet_18"), ("..hidden", "hidden"), ("...", "model"), ("a'b\"c\n", "a_b_c_")]
)
def test_name_that_is_no_folder_of_triton_is_made_one(
    schema: ModuleType, tmp_path: Path, name: str, served: str
) -> None:
    run = exported_run(tmp_path / name, metadata=OURS)
    folder = write_repository(run, tmp_path / "models")
    assert folder.name == served
    assert parsed(schema, (folder / "config.pbtxt").read_text()).name == served


def test_what_is_there_is_replaced_only_if_asked_and_only_if_it_is_a_model(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", metadata=OURS)
    folder = write_repository(run, tmp_path / "models")
    (folder / "1" / "old").touch()
    with pytest.raises(InputError, match="is there already"):
        write_repository(run, tmp_path / "models")
    assert (folder / "1" / "old").exists()
    write_repository(run, tmp_path / "models", force=True)
    assert not (folder / "1" / "old").exists()
    (folder / "config.pbtxt").unlink()
    with pytest.raises(InputError, match="is no model of Triton's"):
        write_repository(run, tmp_path / "models", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        write_repository(run, tmp_path / "file")


def test_full_disk_leaves_the_old_model_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = exported_run(tmp_path / "run", metadata=OURS)
    folder = write_repository(run, tmp_path / "models")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engines.triton.os.fsync", full)
    with pytest.raises(WriteError, match="No space left on device"):
        write_repository(run, tmp_path / "models", force=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_names_and_types_reach_triton_unchanged(schema: ModuleType) -> None:
    odd = 'a"b\\c\n\t\x01é狐'
    given = Tensor(odd, "TYPE_INT64", (-1, 4))
    model = ServedModel(odd, "tensorrt", (given, Tensor("y", "TYPE_BOOL", ())), (given,), best_batch=1, largest_batch=1)
    config = parsed(schema, model_config(model))
    assert (config.name, config.input[0].name, config.output[0].name) == (odd, odd, odd)
    assert [list(tensor.dims) for tensor in config.input] == [[-1, 4], [1]]
    assert [tensor.HasField("reshape") for tensor in config.input] == [False, True]
    assert [tensor.data_type for tensor in config.input] == [schema.TYPE_INT64, schema.TYPE_BOOL]
    assert not config.HasField("dynamic_batching")
