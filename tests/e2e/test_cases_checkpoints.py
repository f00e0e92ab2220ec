"""Cases C23 and C38 through the command line: checkpoints as training scripts leave them."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faq_deploy.stored_net import load_net
from tests.e2e.conftest import Call
from tests.e2e.photos import colour_folder, quantize_photos, write_nets
from tests.e2e.refusals import refusal

pytestmark = [pytest.mark.xdist_group("cases"), pytest.mark.filterwarnings("always::UserWarning")]

State = dict[str, Tensor]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with nets.py and data/."""
    write_nets(tmp_path)
    colour_folder(tmp_path / "data", each=2)
    return tmp_path


def state(seed: int = 1) -> State:
    """Weights of the factory `net`."""
    some = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "linear.weight": (3, 8), "linear.bias": (3,)}
    return {name: torch.randn(shape, generator=some) for name, shape in shapes.items()}


def prefixed(values: State, prefix: str) -> State:
    return {prefix + name: value for name, value in values.items()}


def loaded(call: Call, place: Path, payload: object, *options: object) -> tuple[State, str]:
    """The float weights of a run that was made from a checkpoint, and what was said on stderr."""
    torch.save(payload, place / "w.pth")
    run = place / "run"
    result = quantize_photos(
        call, f"{place / 'nets.py'}:net", place / "data", run, "--weights", place / "w.pth", "--force", *options
    )
    assert result.exit_code == 0, result.output
    net = load_net(run / "float.pt").net
    return {name: value.detach() for name, value in net.state_dict().items()}, result.stderr


def same(found: State, values: State) -> bool:
    return all(any(torch.equal(value, other) for other in found.values()) for value in values.values())


@pytest.mark.parametrize(
    "payload",
    [
        prefixed(state(), "_orig_mod."),
        prefixed(state(), "module._orig_mod."),
        prefixed(state(), "_orig_mod.module."),
        {"epoch": 3, "state_dict": prefixed(state(), "model.")},
        {"model_ema": {"module": prefixed(state(), "module.")}},
        prefixed(state(), "module.") | {"total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    ],
)
def test_c23_wrapped_checkpoints_give_the_weights_themselves(call: Call, place: Path, payload: object) -> None:
    found, _ = loaded(call, place, payload)
    assert same(found, state())


def test_c23_the_choice_between_plain_and_averaged_weights_is_stated(call: Call, place: Path) -> None:
    payload = {"state_dict": state(1), "state_dict_ema": state(2)}
    for options, seed, said in (((), 1, "the plain ones are used"), (("--ema",), 2, "'state_dict_ema' are used")):
        found, stderr = loaded(call, place, payload, *options)
        assert same(found, state(seed)) and not same(found, state(3 - seed))
        assert said in stderr


def test_c23_a_prefix_on_half_of_the_names_is_refused_with_counts(call: Call, place: Path) -> None:
    values = state()
    half = {("module." if name.startswith("conv") else "other.") + name: value for name, value in values.items()}
    torch.save(half, place / "w.pth")
    result = quantize_photos(
        call, f"{place / 'nets.py'}:net", place / "data", place / "run", "--weights", place / "w.pth"
    )
    message = refusal(result)
    assert re.search(r"\b[24]\b.*(linear|other)\.", message), message
    assert not (place / "run").exists()


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_c38_the_usual_checkpoint_loads(call: Call, place: Path) -> None:
    payload = {"model": state(), "args": argparse.Namespace(lr=0.1), "best": np.float64(71.2), "epoch": 3}
    assert same(loaded(call, place, payload)[0], state())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 46830571\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (None, "could run any code"),
    ],
)
def test_c38_other_files_are_refused_and_nothing_of_them_runs(
    call: Call, place: Path, content: bytes | None, said: str
) -> None:
    marker = place / "marker"
    if content is None:
        torch.save({"model": state(), "x": Hostile(marker)}, place / "w.pth")
    else:
        (place / "w.pth").write_bytes(content)
    result = quantize_photos(
        call, f"{place / 'nets.py'}:net", place / "data", place / "run", "--weights", place / "w.pth"
    )
    assert said in refusal(result)
    assert not marker.exists() and not (place / "run").exists()
