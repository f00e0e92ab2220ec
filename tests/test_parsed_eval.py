"""What the command line of `eval` becomes: limits from flags and from a gate file."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from engines.errors import InputError
from faq_deploy.cli_eval import eval_options as declared
from faq_deploy.limits import Limits
from faq_deploy.parsed_options import eval_options, report_files


def parsed(*arguments: str) -> dict[str, object]:
    """What Click makes of arguments of `eval`."""

    @click.command()
    @declared
    def command(**options: object) -> None:
        """Stand in for `eval`."""

    found: dict[str, object] = command.make_context("eval", list(arguments)).params
    return found | {"on_bad_image": found["on_bad_image"]}


def test_without_flags_the_limits_are_the_defaults() -> None:
    assert eval_options(parsed())[0].limits == Limits()


def test_zero_is_a_limit_of_its_own(tmp_path: Path) -> None:
    gates = tmp_path / "gate.toml"
    gates.write_text("max_drop = 2\nmax_flips = 9\nmax_regression = 3\nallow_skip = true\n")
    flags = ("--max-drop", "0", "--max-flips", "0", "--max-regression", "0")
    limits = eval_options(parsed("--gates", str(gates), *flags))[0].limits
    assert (limits.max_drop, limits.max_flips, limits.max_regression, limits.allow_skip) == (0, 0, 0, True)
    limits = eval_options(parsed("--gates", str(gates)))[0].limits
    assert (limits.max_drop, limits.max_flips, limits.max_regression, limits.allow_skip) == (2, 9, 3, True)


def test_every_gate_has_a_flag() -> None:
    flags: tuple[str, ...] = (
        "--max-drop",
        "1",
        "--drop-against",
        "float",
        "--max-flips",
        "2",
        "--max-float-drop",
        "3",
        "--min-top1",
        "4",
    )
    flags += ("--max-fall", "5", "--max-class-drop", "6", "--max-latency-ratio", "7", "--min-int8-share", "0.8")
    flags += ("--metric", "top-3", "--max-metric-drop", "6.5")
    flags += ("--max-engine-bytes", "9", "--require-runtime", "tensorrt", "--require-runtime", "onnxruntime")
    flags += ("--max-regression", "10", "--max-latency-growth", "11", "--max-bytes-growth", "12")
    flags += ("--allow-skip", "--allow-undecided")
    limits = eval_options(parsed(*flags))[0].limits
    assert list(limits.model_dump().values()) == [
        *(1, "float", 2, 3, 4, 5, 6, 6.5, 7, 0.8, 9, ("tensorrt", "onnxruntime"), 10, 11, 12, True, True)
    ]


def test_a_metric_goes_with_its_limit() -> None:
    metric = eval_options(parsed("--metric", "mean-iou"))[0].metric
    assert metric is not None
    assert metric.name == "mean-iou"
    with pytest.raises(InputError, match="--max-metric-drop has no metric to judge"):
        eval_options(parsed("--max-metric-drop", "1"))
    with pytest.raises(InputError, match="there is no metric 'f1'"):
        eval_options(parsed("--metric", "f1"))


@pytest.mark.parametrize("flag", ["--max-drop=nan", "--max-drop=-1", "--max-fall=inf", "--min-int8-share=2"])
def test_an_impossible_limit_is_refused(flag: str) -> None:
    with pytest.raises(InputError, match="the command line: "):
        eval_options(parsed(flag))


def test_baseline_and_files_for_ci_are_passed_on(tmp_path: Path) -> None:
    options = parsed("--baseline", "old", "--junit", "j.xml", "--markdown", "m.md", "--data", "here")
    wanted, data = eval_options(options)
    assert (wanted.baseline, data) == (Path("old"), "here")
    files = report_files(options)
    assert (files.junit, files.markdown) == (Path("j.xml"), Path("m.md"))
