"""The verb `demo`: the main job on embedded data, as commands of this very tool."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Final

__all__ = ["commands", "run"]

_SMS: Final = ("75", "86", "89", "120")


def commands(output: Path) -> list[list[str]]:
    """Every command of the demo, in order, without the program's name.

    Args:
        output: folder for the runs.
    """
    float_run = output / "float"
    result = [
        [
            "train",
            "builtin:digits-resnet",
            "--data",
            "digits",
            "--recipe",
            "digits-float",
            "-o",
            str(float_run),
            "--force",
        ]
    ]
    for target in ("tensorrt", "onnxruntime"):
        for bits, drop in (("8", "0.5"), ("4", "1.5")):
            run = str(output / f"{target}-{bits}bit")
            quantize = ["quantize", "builtin:digits-resnet", "--weights", str(float_run / "float.pth")]
            quantize += ["--data", "digits", "--recipe", f"digits-{bits}bit", "--target", target, "-o", run, "--force"]
            build = ["build", run, "--runtime", "onnxruntime"]
            if target == "tensorrt" and find_spec("tensorrt_rtx") is not None:
                build += ["--runtime", "tensorrt-rtx", *[part for sm in _SMS for part in ("--sm", sm)]]
            judge = ["eval", run, "--max-drop", "0", "--max-flips", "0", "--max-float-drop", drop, "--allow-undecided"]
            judge += ["--reference-images", "1000", "--code-images", "1000", "--engine", "onnxruntime"]
            result += [quantize, ["export", run], build, judge]
    return result


def run(output: Path) -> int:
    """Run them one after the other, each printed before it starts; stop at the first that fails.

    Args:
        output: folder for the runs.

    Returns:
        The exit code of the last command that ran.
    """
    program = shutil.which("faq-deploy")
    start = [program] if program else [sys.executable, "-m", "cli"]
    began = time.monotonic()
    print("$ export OMP_NUM_THREADS=1  # a net this small gains nothing from more, and loses where others compute too")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for arguments in commands(output):
        print(f"\n$ {shlex.join(['faq-deploy', *arguments])}", flush=True)
        code = subprocess.run([*start, *arguments], check=False, env=environment).returncode
        if code != 0:
            return code
    print(f"\nDone in {time.monotonic() - began:.0f} s. Open {output / 'tensorrt-8bit' / 'report.html'} in a browser.")
    return 0
