"""Checkpoints as people have them: wrapped, prefixed, half precision, damaged, hostile, or not checkpoints at all."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.errors import InputError
from faq_deploy.weights import WeightsWarning, head_classes, load_into, read_checkpoint, require_finite_weights

State = dict[str, Tensor]


class SmallNet(nn.Module):
    """A net with every kind of entry that a checkpoint has."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.bn(self.conv(x)).mean((2, 3)))
        return logits


class WrappedNet(nn.Module):
    """A user's net whose own attribute is called like a wrapper's prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SmallNet()


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def small_net(seed: int, num_classes: int = 4) -> SmallNet:
    torch.manual_seed(seed)
    net = SmallNet(num_classes)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.1)
    return net.eval()


def state_of(seed: int, num_classes: int = 4) -> State:
    return small_net(seed, num_classes).state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def saved(tmp_path: Path, payload: object, name: str = "net.pth", *, legacy: bool = False) -> Path:
    path = tmp_path / name
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    return path


def equal_logits(one: nn.Module, other: nn.Module) -> bool:
    images = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        return torch.equal(one(images), other(images))


def what(error: pytest.ExceptionInfo[InputError]) -> str:
    assert error.value.what.endswith(".")
    assert error.value.what.count("\n") == 0
    return error.value.what


# --- wrappers and prefixes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod.module."],
)
@pytest.mark.parametrize("wrappers", [(), ("state_dict",), ("model",), ("model_state_dict",), ("ema", "module")])
def test_wrapped_and_prefixed_checkpoints_give_the_same_logits(
    tmp_path: Path, prefix: str, wrappers: tuple[str, ...]
) -> None:
    payload: object = prefixed(state_of(1), prefix)
    for key in reversed(wrappers):
        payload = {"epoch": 3, key: payload}
    net = SmallNet().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeightsWarning)
        load_into(net, read_checkpoint(saved(tmp_path, payload)), "net.pth")
    assert equal_logits(net, small_net(1))


def test_real_wrappers_load(tmp_path: Path) -> None:
    inner = small_net(1)
    compiled = torch.compile(inner)
    assert isinstance(compiled, nn.Module)
    wrapped = {
        "compiled": compiled,
        "parallel": nn.DataParallel(inner),
        "averaged": torch.optim.swa_utils.AveragedModel(inner),
    }
    for name, module in wrapped.items():
        net = SmallNet().eval()
        load_into(net, read_checkpoint(saved(tmp_path, module.state_dict(), f"{name}.pth")), name)
        assert equal_logits(net, inner)


def test_a_prefix_that_the_model_has_itself_stays() -> None:
    torch.manual_seed(0)
    net = WrappedNet()
    load_into(net, prefixed(state_of(1), "model."), "net.pth")
    load_into(net, prefixed(state_of(2), "module.model."), "net.pth")
    assert equal_logits(net.model.eval(), small_net(2))


def test_a_prefix_on_half_of_the_names_is_refused_with_counts_and_examples() -> None:
    state = state_of(1)
    mixed = {(f"module.{key}" if key.startswith("bn.") else key): value for key, value in state.items()}
    with pytest.raises(InputError) as error:
        load_into(SmallNet(), mixed, "half.pth")
    assert what(error) == (
        "half.pth does not fit the model: 4 of the model's 9 entries are missing (bn.weight, bn.bias, bn.running_mean, "
        "...) and 4 of the file's 9 are unknown to it (module.bn.weight, module.bn.bias, module.bn.running_mean, ...); "
        "in the file 'module.' stands before the model's names."
    )
    assert error.value.remedy.endswith("take the prefix off: {k.removeprefix('module.'): v for k, v in state.items()}.")


def test_one_missing_parameter_is_refused() -> None:
    state = {key: value for key, value in state_of(1).items() if key != "fc.bias"}
    with pytest.raises(InputError) as error:
        load_into(SmallNet(), state, "net.pth")
    assert what(error) == (
        "net.pth does not fit the model: 1 of the model's 9 entries are missing (fc.bias); a whole layer or a part of "
        "it, fc, was not saved."
    )


def test_num_batches_tracked_may_be_missing_or_unknown(tmp_path: Path) -> None:
    state = state_of(1)  # with the versions that torch keeps beside the tensors
    del state["bn.num_batches_tracked"]
    net = SmallNet().eval()
    load_into(net, read_checkpoint(saved(tmp_path, state)), "net.pth")
    load_into(net, state | {"fc.num_batches_tracked": torch.tensor(3)}, "net.pth")
    assert equal_logits(net, small_net(1))


def test_profiler_counters_are_ignored_with_a_line() -> None:
    counters = {"total_ops": torch.zeros(1), "conv.total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)}
    net = SmallNet().eval()
    with pytest.warns(WeightsWarning, match=r"net\.pth: 3 counters of a profiler are ignored"):
        load_into(net, prefixed(state_of(1) | counters, "module."), "net.pth")
    assert equal_logits(net, small_net(1))


def test_old_names_of_densenet_files_are_understood() -> None:
    def block(norm: str, conv: str) -> nn.ModuleDict:
        return nn.ModuleDict({"denselayer1": nn.ModuleDict({norm: nn.BatchNorm2d(2), conv: nn.Conv2d(2, 2, 1)})})

    torch.manual_seed(0)
    published = block("norm1", "conv1").state_dict()
    old = {key.replace("norm1", "norm.1").replace("conv1", "conv.1"): value for key, value in published.items()}
    net = block("norm1", "conv1")
    load_into(net, old, "densenet.pth")
    assert all(torch.equal(value, published[key]) for key, value in net.state_dict().items())


# --- averaged weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_plain_or_averaged_weights_are_chosen_and_the_choice_is_stated(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path, {"state_dict": state_of(1), key: {"module": state_of(2), "decay": 0.99}})
    for prefer_ema, seed, said in ((False, 1, r"the plain ones are used \(--ema"), (True, 2, f"{key!r} are used")):
        net = SmallNet().eval()
        with pytest.warns(WeightsWarning, match=said):
            load_into(net, read_checkpoint(path, prefer_ema=prefer_ema), "net.pth")
        assert equal_logits(net, small_net(seed))


def test_asking_for_averaged_weights_that_are_not_there_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": state_of(1), "ema": {"decay": 0.9, "updates": 7}})
    with pytest.raises(InputError, match="no averaged"):
        read_checkpoint(path, prefer_ema=True)


# --- what training scripts save beside the weights ----------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_the_usual_training_checkpoint_loads(tmp_path: Path, legacy: bool) -> None:
    payload = {
        "model": state_of(1),
        "args": argparse.Namespace(lr=0.1, output_dir=pathlib.Path("runs")),
        "best": np.float64(71.2),
        "steps": np.int64(7),
        "seen": collections.Counter("ab"),
        "optimizer": torch.optim.SGD(SmallNet().parameters(), 0.1, momentum=0.9).state_dict(),
        "epoch": 3,
    }
    state = read_checkpoint(saved(tmp_path, payload, legacy=legacy))
    assert state.keys() == state_of(1).keys()


def test_the_harmless_types_are_allowed_only_while_reading(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": state_of(1), "args": argparse.Namespace(lr=0.1)})
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state_of(1).items()}
    net = SmallNet()
    load_into(net, state, "half.pth")
    assert {value.dtype for value in net.parameters()} == {torch.float32}
    assert torch.equal(net.fc.weight.data, state["fc.weight"].float())


# --- the head -----------------------------------------------------------------------------------------------


def test_head_classes_reads_the_count_through_prefixes_and_any_order() -> None:
    state = state_of(1, num_classes=7)
    assert head_classes(SmallNet(4), state) == 7
    assert head_classes(SmallNet(4), prefixed(state, "module.")) == 7
    assert head_classes(SmallNet(4), dict(sorted(state.items(), reverse=True))) == 7
    assert head_classes(SmallNet(4), {"something": torch.zeros(3, 3)}) is None


def test_another_class_count_is_refused_with_both_counts_and_the_flag() -> None:
    with pytest.raises(InputError) as error:
        load_into(SmallNet(12), state_of(1, num_classes=10), "resnet18.pth")
    assert what(error) == "resnet18.pth has 10 classes, but the model was made for 12."
    assert "--num-classes 10" in error.value.remedy


def test_other_shapes_are_refused_with_examples() -> None:
    state = state_of(1) | {"conv.weight": torch.zeros(3, 1, 5, 5), "fc.weight": torch.zeros(7, 3)}
    with pytest.raises(InputError) as error:
        load_into(SmallNet(), state, "net.pth")
    assert what(error) == (
        "net.pth does not fit the model: 2 of 9 entries have another shape "
        "(conv.weight is 3x1x5x5 instead of 3x1x3x3, fc.weight is 7x3 instead of 4x3)."
    )


def test_integer_weights_are_refused() -> None:
    state = state_of(1) | {"conv.weight": torch.zeros(3, 1, 3, 3, dtype=torch.int8)}
    with pytest.raises(InputError, match=r"conv\.weight is torch\.int8"):
        load_into(SmallNet(), state, "net.pth")


# --- NaN ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["conv.weight", "bn.running_var", "fc.bias"])
def test_nan_and_inf_are_refused_by_name(key: str, bad: float) -> None:
    state = state_of(1)
    state[key].flatten()[-1] = bad
    with pytest.raises(InputError, match=rf"net\.pth: {key} holds NaN or Inf \(1 of {state[key].numel()} values\)"):
        load_into(SmallNet(), state, "net.pth")


def test_a_half_precision_weight_beyond_its_range_is_refused() -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in state_of(1).items()}
    state["fc.weight"] = (state["fc.weight"].float() * 1e6).half()
    with pytest.raises(InputError, match=r"fc\.weight holds NaN or Inf"):
        load_into(SmallNet(), state, "net.pth")


def test_a_finite_model_passes() -> None:
    net = small_net(1)
    require_finite_weights(net, "net")
    net.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError):
        require_finite_weights(net, "net")


# --- hostile and whole-module pickles -----------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_is_not_run(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "marker"
    path = saved(tmp_path, {"model": state_of(1), "x": Hostile(marker)}, legacy=legacy)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert "system to be unpickled, which could run any code: not loaded" in what(error)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Hostile(marker)))  # it is armed: ordinary unpickling does run it
    assert marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_model_is_named_as_one(tmp_path: Path, legacy: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch can't find the source of test classes
        path = saved(tmp_path, small_net(1), legacy=legacy)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert "is a whole pickled model (" in what(error)
    assert "SmallNet" in what(error)
    assert "state_dict()" in error.value.remedy


# --- what is no checkpoint ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n  <!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 46830571\n", "is a Git-LFS pointer"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "is compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
        (b"\x93NUMPY\x01\x00" + bytes(20), "is a NumPy array"),
        (bytes(range(100, 200)), "is not a file of PyTorch weights (it starts with b'defghijk')"),
        (b"PK\x03\x04" + bytes(100), "is cut short"),
        (b"\x80\x02garbage that is no pickle", "is damaged"),
        (pickle.dumps({"a": 1}), "is damaged, or is a pickle that torch.save did not write"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert said in what(error)
    assert str(path) in what(error)


def test_a_git_lfs_pointer_comes_with_the_command(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert "git lfs pull" in error.value.remedy


def test_other_archives_are_named_for_what_they_are(tmp_path: Path) -> None:
    script, numbers = tmp_path / "script.pt", tmp_path / "numbers.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it; files of it remain
        torch.jit.save(torch.jit.trace(small_net(1), torch.zeros(1, 1, 5, 5)), script)  # type: ignore[no-untyped-call]
    with numbers.open("wb") as stream:
        np.savez(stream, x=np.ones(3))
    exported = tmp_path / "exported.pt2"
    with zipfile.ZipFile(exported, "w") as archive:
        archive.writestr("exported/archive_format", "pt2")
    for path, said in ((script, "TorchScript"), (numbers, "zip archive"), (exported, "torch.export")):
        with pytest.raises(InputError, match=said):
            read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_file_is_named_as_one(tmp_path: Path, legacy: bool, share: float) -> None:
    path = saved(tmp_path, state_of(1), legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cut short|damaged"):
        read_checkpoint(path)


def test_a_damaged_archive_directory_is_named_as_one(tmp_path: Path) -> None:
    path = saved(tmp_path, state_of(1))
    content = path.read_bytes()
    name = content.rindex(b"version")  # in the directory at the end of the file
    path.write_bytes(content[:name] + b"\xff" + content[name + 1 :])
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(path)


def test_missing_files_folders_and_onnx_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07\x12\x04")
    for name, said in (("absent.pth", "do not exist"), (".", "are a folder"), ("net.onnx", "is an ONNX file")):
        with pytest.raises(InputError, match=said):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("payload", [[1, 2], {}, {"epoch": 3, "lr": 0.1}, torch.zeros(3)])
def test_a_file_without_weights_is_refused(tmp_path: Path, payload: object) -> None:
    with pytest.raises(InputError, match="holds no weights"):
        read_checkpoint(saved(tmp_path, payload))


# --- safetensors --------------------------------------------------------------------------------------------


def safetensors_bytes(state: State) -> bytes:
    """Written from the format's description, independently of the reader."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.bfloat16: "BF16"}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for key in sorted(state):
        content = state[key].contiguous().view(-1).view(torch.uint8).numpy().tobytes() if state[key].numel() else b""
        header[key] = {
            "dtype": names[state[key].dtype],
            "shape": list(state[key].shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("name", ["net.safetensors", "net.bin"])
def test_safetensors_load_bit_for_bit(tmp_path: Path, name: str) -> None:
    state = state_of(1)
    state["fc.weight"] = state["fc.weight"].half()
    (tmp_path / name).write_bytes(safetensors_bytes(state | {"module.none": torch.zeros(0, 3)}))
    found = read_checkpoint(tmp_path / name)
    assert torch.equal(found.pop("module.none"), torch.zeros(0, 3))
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    whole = safetensors_bytes(state_of(1))
    path = tmp_path / "net.safetensors"
    for content in (b"", b"short", whole[:40], whole[:-1], whole.replace(b'"F32"', b'"F99"', 1), b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"net\.safetensors"):
            read_checkpoint(path)
    overlapping = json.dumps({"a": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(struct.pack("<Q", len(overlapping)) + overlapping + bytes(16))
    with pytest.raises(InputError, match="cut short or damaged"):
        read_checkpoint(path)
