"""What the shell is given to complete, through Click's own classes, and that it comes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete, get_completion_class
from click.testing import CliRunner

import cli
from faq_deploy.completion import SHELLS
from faq_deploy.recipe import list_recipes

ROOT = Path(__file__).parents[1]


def completed(*words: str) -> list[tuple[str, str]]:
    """Type and value of what completes the last word."""
    complete = ShellComplete(cli.main, {}, "faq-deploy", "_FAQ_DEPLOY_COMPLETE")
    return [(item.type, item.value) for item in complete.get_completions(list(words[:-1]), words[-1])]


def names(*words: str) -> list[str]:
    found = completed(*words)
    assert {kind for kind, _ in found} <= {"plain"}
    return [value for _, value in found]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/a with two engines, runs/b, photos/ and x.onnx, in the working folder."""
    for run in ("a", "b"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "manifest.json").write_text("{}")
    for engine in ("onnxruntime", "tensorrt-sm86"):
        (tmp_path / "runs" / "a" / "engines" / engine).mkdir(parents=True)
        (tmp_path / "runs" / "a" / "engines" / engine / "manifest.json").write_text("{}")
    (tmp_path / "photos").mkdir()
    (tmp_path / "x.onnx").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_verbs_and_choices_are_completed() -> None:
    assert names("qu") == ["quantize"]
    assert names("quantize", "--target", "") == ["tensorrt", "onnxruntime", "paper"]
    assert names("completion", "") == list(SHELLS)


def test_recipes_are_completed_by_name_and_else_by_file() -> None:
    assert names("quantize", "net.py:net", "--recipe", "faq") == ["faq-4bit", "faq-8bit"]
    assert names("recipes", "show", "") == list(list_recipes())
    assert names("inspect", "net.py:net", "--recipe", "digits-f") == ["digits-float"]
    assert completed("train", "net.py:net", "--recipe", "./m") == [("file", "./m")]


@pytest.mark.parametrize("verb", ["export", "eval", "bundle", "compare", "analyze"])
def test_run_folders_are_completed(runs: Path, verb: str) -> None:
    words = ("analyze", "noise") if verb == "analyze" else (verb,)
    assert names(*words, "") == ["runs/a", "runs/b"]
    assert names(*words, "runs/b") == ["runs/b"]
    assert completed(*words, "ph") == [("dir", "ph")]
    assert completed(*words, "[") == [("dir", "[")]


def test_build_takes_models_too_and_compare_a_second_run(runs: Path) -> None:
    assert names("build", "") == ["runs/a", "runs/b", "x.onnx"]
    assert names("compare", "runs/a", "runs/") == ["runs/a", "runs/b"]


def test_engines_are_those_of_the_run(runs: Path) -> None:
    assert names("eval", "runs/a", "--engine", "") == ["onnxruntime", "tensorrt-sm86"]
    assert names("eval", "runs/a", "--engine", "t") == ["tensorrt-sm86"]
    assert names("bundle", "runs/a", "--triton", "--engine", "o") == ["onnxruntime"]
    assert names("eval", "runs/b", "--engine", "") == []
    assert names("eval", "--engine", "") == []


def test_data_devices_and_weights(runs: Path) -> None:
    assert names("quantize", "net.py:net", "--data", "dig") == ["digits"]
    assert completed("quantize", "net.py:net", "--data", "ph") == [("file", "ph")]
    assert names("quantize", "net.py:net", "--device", "c") == ["cpu", "cuda"]
    assert completed("quantize", "net.py:net", "--weights", "r") == [("file", "r")]


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_clicks_own(shell: str) -> None:
    result = CliRunner().invoke(cli.main, ["completion", shell])
    assert result.exit_code == 0, result.output
    assert "_FAQ_DEPLOY_COMPLETE" in result.stdout and "faq-deploy" in result.stdout
    assert get_completion_class(shell) is not None


def test_bash_completes_by_the_script_itself(runs: Path) -> None:
    program = Path(sys.executable).parent / "faq-deploy"
    script = f"""
        eval "$({program} completion bash)"
        complete -p faq-deploy
        COMP_WORDS=({program} export runs/); COMP_CWORD=2
        _faq_deploy_completion {program}; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _faq_deploy_completion faq-deploy",
        *("runs/a", "runs/b"),
    ]


def test_completing_loads_neither_torch_nor_numpy_nor_pydantic(runs: Path) -> None:
    code = (
        "import json, sys, cli; from click.shell_completion import ShellComplete as S;"
        "s = S(cli.main, {}, 'faq-deploy', 'X');"
        "s.get_completions(['eval', 'runs/a', '--engine'], ''); s.get_completions(['quantize', '--recipe'], '');"
        "print(json.dumps(sorted(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert {"torch", "numpy", "pydantic", "onnx"}.isdisjoint(json.loads(done.stdout))
