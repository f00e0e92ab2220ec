"""The gate file: what is read, what flags change, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import InputError
from faq_deploy.cli_eval import GATE_OPTIONS
from faq_deploy.limits import Limits, limits_from, read_limits

FILE = """
max_drop = 0.5
drop_against = "float"
required_runtimes = ["onnxruntime", "tensorrt-rtx"]
min_top1 = 70
allow_skip = true
"""


@pytest.fixture
def gates(tmp_path: Path) -> Path:
    (tmp_path / "gate.toml").write_text(FILE)
    return tmp_path / "gate.toml"


def test_flags_go_before_the_file_and_the_file_before_the_defaults(gates: Path) -> None:
    found = read_limits(gates, {"max_drop": 0.2, "max_flips": 3})
    assert (found.max_drop, found.max_flips, found.min_top1) == (0.2, 3, 70.0)
    assert (found.drop_against, found.allow_skip, found.max_regression) == ("float", True, 0.5)
    assert found.required_runtimes == ("onnxruntime", "tensorrt-rtx")


def test_every_key_is_an_option_and_has_a_meaning() -> None:
    assert list(GATE_OPTIONS) == list(Limits.model_fields)
    for key in Limits.model_fields:
        assert f"        {key}: " in (Limits.__doc__ or ""), key
    shown = {key: str(field.default) for key, field in Limits.model_fields.items() if field.default not in (None, ())}
    assert {key: GATE_OPTIONS[key] for key in shown} == shown | {"allow_skip": "", "allow_undecided": ""}


@pytest.mark.parametrize(
    ("text", "said", "remedy"),
    [
        ("max_dorp = 1", "'max_dorp' is no gate", "did you mean max_drop?"),
        ("min_int8 = 1", "'min_int8' is no gate", "did you mean min_int8_share?"),
        ("speed = 1", "'speed' is no gate", "the keys are max_drop, drop_against,"),
        ("[gates]\nmax_drop = 1", "'gates' is no gate", "the keys are"),
        ("max_drop = -0.1", "max_drop = -0.1 can't be: input should be greater than or equal to 0", "max_drop: points"),
        ("max_drop = nan", "max_drop = nan can't be", "max_drop: points"),
        ("max_drop = inf", "max_drop = inf can't be", "max_drop: points"),
        (
            "min_top1 = 100.5",
            "min_top1 = 100.5 can't be: input should be less than or equal to 100",
            "min_top1: percent",
        ),
        ("max_flips = 0.5", "max_flips = 0.5 can't be", "max_flips: images"),
        ("min_int8_share = 95", "min_int8_share = 95 can't be", "min_int8_share: of an engine's multiply-adds"),
        ("max_latency_ratio = 0", "max_latency_ratio = 0 can't be", "max_latency_ratio"),
        ("max_engine_bytes = 0", "max_engine_bytes = 0 can't be", "max_engine_bytes: size of an engine file"),
        ('required_runtimes = ["tensorflow"]', "required_runtimes = 'tensorflow' can't be", "must have an engine"),
        ('required_runtimes = "tensorrt"', "should be a valid list", "each must have an engine that ran"),
        ("max_drop = ", "can't be read", "write TOML"),
    ],
)
def test_what_can_not_be_is_refused_by_its_key(tmp_path: Path, text: str, said: str, remedy: str) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_limits(path, {})
    assert said in caught.value.what and str(path) in caught.value.what
    assert remedy in caught.value.remedy


def test_an_impossible_flag_is_the_command_lines(gates: Path) -> None:
    with pytest.raises(InputError, match="the command line: min_top1 = 101 can't be"):
        read_limits(gates, {"min_top1": 101})
    with pytest.raises(InputError, match="the command line: max_regression = -1"):
        limits_from({"max_regression": -1}, "the command line")


def test_a_missing_binary_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.toml does not exist"):
        read_limits(tmp_path / "none.toml", {})
    with pytest.raises(InputError, match="can't be read"):
        read_limits(tmp_path, {})
    path = tmp_path / "gate.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="can't be read"):
        read_limits(path, {})
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(InputError, match="can't be read"):
        read_limits(path, {})
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(InputError, match="too large"):
        read_limits(path, {})
