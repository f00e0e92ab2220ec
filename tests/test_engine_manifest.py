"""C15: a file that is not the recorded engine, or not for this machine, is found out before a runtime sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engines import engine_manifest
from engines.engine_manifest import EngineManifest, check
from engines.errors import CannotRunHere, InputError
from engines.files import sha256_of
from engines.host import Gpu, Host

ENGINE = bytes(range(256)) * 12
ONNX = b"the ONNX file, of another length"
HOST = Host(Gpu("NVIDIA A10", 86, 24 << 30), {"tensorrt": "10.13.3.9", "onnxruntime": "1.32.0"})


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(ONNX)
    return path


def _engine(folder: Path, onnx: Path, data: bytes = ENGINE) -> Path:
    folder.mkdir()
    (folder / "model.engine").write_bytes(data)
    manifest = EngineManifest(
        runtime="tensorrt",
        file="model.engine",
        sha256=sha256_of(folder / "model.engine"),
        bytes=len(data),
        onnx_sha256=sha256_of(onnx),
        versions={"tensorrt": "10.13.3.9", "faq-deploy": "0.1.0"},
        sm=86,
        gpu="NVIDIA A10",
        profile={"input": ((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8))},
        seconds=1.5,
        target="tensorrt",
        notes=("Built for a test.",),
    )
    engine_manifest.write(folder, manifest)
    return folder


@pytest.fixture
def folder(tmp_path: Path, onnx: Path) -> Path:
    return _engine(tmp_path / "tensorrt", onnx)


def test_untouched_engine_passes_with_its_record_unchanged(folder: Path, onnx: Path) -> None:
    manifest = check(folder, sha256_of(onnx), HOST)
    assert manifest == engine_manifest.read(folder)
    assert manifest.profile == {"input": ((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8))}
    assert manifest.versions["tensorrt"] == "10.13.3.9"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", r"is empty \(0 of 3,072 bytes\)"),
        (ENGINE[: len(ENGINE) // 2], r"has 1,536 bytes and `faq-deploy build` wrote 3,072: it is cut short"),
        (ENGINE[:1024] + bytes([ENGINE[1024] ^ 1]) + ENGINE[1025:], "is not what `faq-deploy build` wrote"),
        (ENGINE * 2, "has 6,144 bytes and .* wrote 3,072: it is another file"),
        (ONNX, "is the ONNX file, not an engine built from it"),
    ],
    ids=["empty", "first half", "one bit flipped", "larger engine", "ONNX renamed"],
)
def test_changed_engine_is_named_and_exits_2(folder: Path, data: bytes, found: str) -> None:
    (folder / "model.engine").write_bytes(data)
    with pytest.raises(InputError, match=rf"tensorrt/model\.engine {found}") as caught:
        check(folder)  # without a host: no runtime or GPU is asked for
    assert caught.value.exit_code == 2
    assert "faq-deploy build" in caught.value.remedy


def test_engine_of_another_run_is_named(folder: Path, onnx: Path, tmp_path: Path) -> None:
    other_onnx = tmp_path / "other.onnx"
    other_onnx.write_bytes(b"another net")
    other = _engine(tmp_path / "other", other_onnx, ENGINE[::-1])
    shutil.copyfile(other / "model.engine", folder / "model.engine")
    with pytest.raises(InputError, match="is not what `faq-deploy build` wrote: its sha256 is"):
        check(folder, sha256_of(onnx))
    shutil.copyfile(other / "manifest.json", folder / "manifest.json")  # now the folder agrees with itself
    assert check(folder).onnx_sha256 == sha256_of(other_onnx)
    with pytest.raises(InputError, match="was built from another ONNX file"):
        check(folder, sha256_of(onnx))


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_another_runtime_version_exits_3_with_both_versions(folder: Path) -> None:
    _edit(folder, versions={"tensorrt": "10.14.0.1"})
    with pytest.raises(CannotRunHere, match=r"built by tensorrt 10\.14\.0\.1, and 10\.13\.3\.9 is installed") as caught:
        check(folder, None, HOST)
    assert caught.value.exit_code == 3


def test_missing_runtime_exits_3(folder: Path) -> None:
    with pytest.raises(CannotRunHere, match="needs tensorrt, which is not installed here"):
        check(folder, None, Host(HOST.gpu, {}))


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        (None, r"needs an NVIDIA GPU \(SM 86\), and there is none here"),
        (Gpu("NVIDIA L4", 89, 24 << 30), r"was built for SM 86, and the GPU here is NVIDIA L4 \(SM 89\)"),
        (Gpu("NVIDIA RTX 3090", 86, 24 << 30), "was built on NVIDIA A10, and the GPU here is NVIDIA RTX 3090"),
    ],
)
def test_another_gpu_exits_3(folder: Path, gpu: Gpu | None, said: str) -> None:
    with pytest.raises(CannotRunHere, match=said):
        check(folder, None, Host(gpu, HOST.versions))


def test_engine_built_ahead_of_time_runs_on_any_gpu_of_its_architecture(folder: Path) -> None:
    _edit(folder, runtime="tensorrt-rtx", gpu=None, versions={"tensorrt-rtx": "1.7.1.116"})
    host = Host(Gpu("NVIDIA RTX 3090", 86, 24 << 30), {"tensorrt-rtx": "1.7.1.116"})
    assert check(folder, None, host).gpu is None


def test_damaged_file_is_found_before_a_missing_gpu(folder: Path) -> None:
    (folder / "model.engine").write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        check(folder, None, Host(None, {}))


def test_onnxruntime_engine_runs_in_any_version(folder: Path) -> None:
    _edit(folder, runtime="onnxruntime", sm=None, gpu=None, profile={}, versions={"onnxruntime": "1.20.0"})
    assert check(folder, None, Host(None, HOST.versions)).runtime == "onnxruntime"


@pytest.mark.parametrize(
    ("hardware", "built_on", "gpu", "runs"),
    [
        ("exact", 86, Gpu("NVIDIA RTX 3090", 86, 24 << 30), False),
        ("same-cc", 86, Gpu("NVIDIA RTX 3090", 86, 24 << 30), True),
        ("same-cc", 86, Gpu("NVIDIA L4", 89, 24 << 30), False),
        ("ampere+", 86, Gpu("NVIDIA L4", 89, 24 << 30), True),
        ("ampere+", 86, Gpu("NVIDIA A100", 80, 40 << 30), True),
        ("ampere+", 86, Gpu("Tesla T4", 75, 16 << 30), False),
    ],
)
def test_engine_for_other_hardware_runs_there_and_nowhere_else(
    folder: Path, hardware: str, built_on: int, gpu: Gpu, runs: bool
) -> None:
    _edit(folder, sm=built_on, options={"hardware": hardware})
    host = Host(gpu, HOST.versions)
    if runs:
        assert check(folder, None, host).options == {"hardware": hardware}
        return
    with pytest.raises(CannotRunHere, match=gpu.name) as caught:
        check(folder, None, host)
    assert ("and newer GPUs" in caught.value.what) == (hardware == "ampere+")


@pytest.mark.parametrize(
    ("built", "found", "loads"),
    [
        ("10.13.3.9", "10.13.3.9", True),
        ("10.13.3.9", "10.16.1.11", True),
        ("10.13.3.9", "11.4.0.106", True),
        ("10.13.3.9", "10.12.0.36", False),
        ("11.0.0.1", "10.16.1.11", False),
        ("11.0.0.1", "12.0.0.1", False),
        ("", "10.13.3.9", False),
    ],
)
def test_version_compatible_engine_loads_in_later_versions(folder: Path, built: str, found: str, loads: bool) -> None:
    _edit(folder, versions={"tensorrt": built}, options={"version_compatible": True})
    assert engine_manifest.loads_in(engine_manifest.read(folder), found) is loads
    _edit(folder, options={"version_compatible": False})
    assert engine_manifest.loads_in(engine_manifest.read(folder), found) is (built == found)


def test_record_of_before_the_options_is_read(folder: Path) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    for name in ("baseline", "options"):
        del record[name]
    (folder / "manifest.json").write_text(json.dumps(record))
    manifest = check(folder, None, HOST)
    assert (manifest.baseline, manifest.options) == (False, {})


def test_missing_engine_is_named(folder: Path) -> None:
    (folder / "model.engine").unlink()
    with pytest.raises(InputError, match=r"model\.engine is missing although manifest\.json lists it"):
        check(folder)


def test_folder_without_record_holds_no_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no engine \(manifest\.json is missing\)"):
        check(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "\x00"])
def test_damaged_record_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json (can't be read|is damaged)"):
        check(folder)


def test_record_of_a_newer_version_asks_for_an_upgrade(folder: Path) -> None:
    _edit(folder, format=2, something="new")
    with pytest.raises(InputError, match="made by a newer faq-deploy") as caught:
        check(folder)
    assert caught.value.remedy.startswith("upgrade faq-deploy")


@pytest.mark.parametrize("name", ["../model.engine", "/etc/passwd", "a\\b", ""])
def test_record_can_only_name_a_file_beside_it(folder: Path, name: str) -> None:
    _edit(folder, file=name)
    with pytest.raises(InputError, match="is damaged at file"):
        check(folder)
