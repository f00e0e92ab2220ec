"""A net on disk: what comes back, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from engines.errors import InputError
from faq_deploy.stored_net import StoredNet, load_net, save_net
from tests.nets import PreActivation, Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net


@pytest.fixture(scope="module")
def stored() -> StoredNet:
    return quantized_net(with_statistics(Small()), make_recipe())


@pytest.fixture
def file(stored: StoredNet, tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    save_net(path, stored.net, stored.recipe, stored.facts)
    return path


@pytest.mark.parametrize(
    ("target", "bits", "batch_norm"),
    [
        ("tensorrt", 8, "fold"),
        ("tensorrt", 4, "fold"),
        ("onnxruntime", 8, "fold"),
        ("onnxruntime", 4, "fold"),
        ("paper", 8, "paper"),
        ("paper", 4, "fit"),
    ],
)
def test_net_comes_back_with_the_same_codes_and_needs_no_user_code(
    tmp_path: Path, target: str, bits: int, batch_norm: str
) -> None:
    stored = quantized_net(with_statistics(Small()), make_recipe(target, bits, batch_norm))
    save_net(tmp_path / "net.pt", stored.net, stored.recipe, stored.facts)
    back = load_net(tmp_path / "net.pt")
    assert (back.recipe, back.facts, back.net.graph) == (stored.recipe, stored.facts, stored.net.graph)
    assert not back.net.training
    codes, logits = stored.net.codes(images(4, seed=9))
    same, same_logits = back.net.codes(images(4, seed=9))
    assert isinstance(logits, torch.Tensor)
    assert isinstance(same_logits, torch.Tensor)
    assert torch.equal(logits, same_logits)
    assert codes.keys() == same.keys()
    assert all(torch.equal(codes[name], same[name]) for name in codes)


def test_float_mode_comes_back_too(stored: StoredNet, file: Path) -> None:
    back = load_net(file)
    back.net.set_mode("float")
    stored.net.set_mode("float")
    with torch.inference_mode():
        assert torch.equal(back.net(images()), stored.net(images()))
    stored.net.set_mode("quantize")


def test_same_net_gives_the_same_bytes(stored: StoredNet, file: Path) -> None:
    first = file.read_bytes()
    back = load_net(file)
    save_net(file, back.net, back.recipe, back.facts)
    assert file.read_bytes() == first


def test_newer_format_is_refused(file: Path) -> None:
    torch.save(torch.load(file, weights_only=True) | {"format": 99}, file)
    with pytest.raises(InputError, match=r"newer faq-deploy \(format 99, this one reads up to 1\)") as caught:
        load_net(file)
    assert "upgrade" in caught.value.remedy


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_file_cut_short_is_damaged(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r"net\.pt is damaged"):
        load_net(file)


@pytest.mark.parametrize("key", ["format", "graph", "recipe", "facts", "state"])
@pytest.mark.parametrize("change", ["absent", "empty", "number", "list"])
def test_record_with_a_part_missing_or_of_another_kind_is_refused(file: Path, key: str, change: str) -> None:
    record = torch.load(file, weights_only=True)
    values = {"empty": type(record[key])(), "number": 7.5, "list": [1]}
    if change == "absent":
        del record[key]
    else:
        record[key] = values[change]
    torch.save(record, file)
    if (key, change) == ("format", "empty"):
        assert load_net(file).net.graph.nodes  # format 0 is older than ours
        return
    with pytest.raises(InputError) as caught:
        load_net(file)
    assert str(file) in caught.value.what


def test_graph_or_weights_of_another_net_are_refused(file: Path) -> None:
    other = quantized_net(with_statistics(PreActivation()), make_recipe())
    record = torch.load(file, weights_only=True)
    for change in ({"graph": other.net.graph.to_json()}, {"state": other.net.state_dict()}):
        torch.save(record | change, file)
        with pytest.raises(InputError, match=r"net\.pt is damaged"):
            load_net(file)


@pytest.mark.parametrize(
    "record",
    [nn.Linear(1, 1), {"a": 1}, [1, 2], "text", torch.zeros(3)],
    ids=["module", "dict", "list", "str", "tensor"],
)
def test_another_torch_file_is_refused(tmp_path: Path, record: object) -> None:
    torch.save(record, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"net\.pt is damaged, or not a file of faq-deploy"):
        load_net(tmp_path / "net.pt")


class Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_code_in_a_file_is_not_run(file: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    record = torch.load(file, weights_only=True)
    torch.save(record | {"extra": Trap(trap)}, file)
    with pytest.raises(InputError, match="is damaged"):
        load_net(file)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(InputError, match="is damaged"):
        load_net(tmp_path / "plain.pt")
    assert not trap.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert trap.exists()  # it works where somebody does unpickle


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pt"):
        load_net(tmp_path / "absent.pt")
