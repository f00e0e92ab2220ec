"""What is not there is refused before PyTorch is loaded, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from engines.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
DIGITS = ("builtin:digits-resnet", "--data", "digits")
CASES: dict[tuple[str, ...], str] = {
    ("quantize", "--data", "digits", "-o", "new"): "No MODEL was named.",
    ("quantize", "torchvision:resnet18", "--data", "absent", "-o", "new"): "The data folder absent does not exist.",
    ("quantize", "absent.py:net", "--data", "digits", "-o", "new"): "absent.py does not exist",
    ("quantize", *DIGITS, "--weights", "absent.pth", "-o", "new"): "The weights absent.pth do not exist.",
    ("quantize", *DIGITS, "--recipe", "absent", "-o", "new"): "There is no recipe 'absent'.",
    ("quantize", *DIGITS, "-o", "run"): "run already holds a run.",
    ("train", "builtin:digits-resnet", "--data", "run/manifest.json", "-o", "new"): "is a file, not a folder",
    ("train", *DIGITS, "-o", "run/manifest.json"): "run/manifest.json is a file.",
    ("init", *DIGITS, "-o", "recipe.txt"): "recipe.txt is not named as a TOML file.",
    ("init", "builtin:digits-resnet", "--data", "absent"): "The data folder absent does not exist.",
    ("inspect", "torchvision:resnet18", "--weights", "absent/r18"): "The weights absent/r18 do not exist.",
    ("export", "absent"): "absent holds no run",
    ("eval", "absent"): "absent holds no run",
    ("eval", "absent.onnx", "--samples", "mine.py:val"): "absent.onnx does not exist.",
    ("analyze", "noise", "absent"): "absent holds no run",
    ("analyze", "similarity", "absent"): "absent holds no run",
    ("analyze", "exponents", "absent"): "absent holds no run",
}
CALLS = """
import json, sys
from click.testing import CliRunner
import cli
for words in json.load(sys.stdin):
    result = CliRunner().invoke(cli.main, words)
    print(json.dumps([result.exit_code, result.stderr, "torch" in sys.modules]))
"""


def test_what_is_not_there_is_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").record("calibrate", version="0")
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        input=json.dumps([*CASES]),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (words, said), (code, stderr, loaded) in zip(CASES.items(), answers, strict=True):
        assert (code, loaded) == (2, False), (words, stderr)
        assert said in stderr
        assert len(stderr.splitlines()) == 2  # the sentence and its remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
