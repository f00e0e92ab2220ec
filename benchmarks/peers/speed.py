"""Training steps, calibration, export and the exported file's speed: ours beside other tools, on one core.

python benchmarks/peers/speed.py --environments DIR
python benchmarks/peers/speed.py --environments DIR --net resnet18 --size 128 --batch 8 --rounds 2
python benchmarks/peers/speed.py --environments DIR --net mobilenet_v2 --together 4

Each tool gets a process, and each that is not in this environment one of its own in DIR, made on first use with pinned
versions; torch is shared with this one. The processes take turns step by step, each with one thread, and CPU time is
counted, so that other work on the machine spoils little. A training step is forward, backward and SGD with momentum.
All of them at once need much memory, with MobileNet v2 at batch 32 over 23 GiB: with --together N no more than N tools
run at a time, each such group beside a float net of its own, by which its ratios are taken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else benchmarks is not found

import numpy as np

from benchmarks.common import Row, interleaved, make_parser, median_ratio, noise, publish, this_machine
from benchmarks.inference import quantize_static_file
from engines.ort import OrtRunner

__all__ = ["TOOLS", "Tool", "main"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_WORKER: Final = Path(__file__).with_name("speed_worker.py")
_FLOAT: Final = "float"
_STATIC: Final = "onnxruntime's quantize_static"


@dataclass(frozen=True)
class Tool:
    """What is compared.

    Attributes:
        subject: in `speed_subjects`.
        name: in the table.
        package: whose version is shown; "" for this checkout.
        requirements: of its environment; none where this one will do.
        calibrates: how it finds ranges.
    """

    subject: str
    name: str
    package: str = ""
    requirements: tuple[str, ...] = ()
    calibrates: str = "99.99 percentile"


TOOLS: Final = (
    Tool("float", _FLOAT, calibrates="forward passes alone"),
    Tool("ours", "faq-deploy, `fold`"),
    Tool("ours-paper", "faq-deploy, batch norm mode `paper`"),
    Tool("ours-onnxruntime", "faq-deploy, `fold`, target `onnxruntime`"),
    Tool(
        "modelopt",
        "NVIDIA ModelOpt",
        "nvidia-modelopt",
        ("nvidia-modelopt==0.47.0", "requests==2.34.2", "huggingface_hub==2.4.0", "omegaconf==2.4.0"),
    ),
    Tool("torch.ao", "torch.ao, FX mode", "torch", calibrates="minimum and maximum"),
    Tool("torchao", "torchao, PT2E", "torchao", ("torchao==0.18.0", "onnxscript==0.7.2"), "minimum and maximum"),
    Tool("brevitas", "Brevitas, power-of-two scales", "brevitas", ("brevitas==0.13.4", "onnxoptimizer==0.4.2")),
)


@dataclass
class _Process:
    """A tool's process and what it has answered.

    Attributes:
        tool: which.
        program: it.
        steps, calibrations: seconds of CPU time.
        memory: MiB of a step.
        file: what it exported, if it could.
        size: of that in bytes, with what lies beside it.
        export: seconds.
        errors: by command.
    """

    tool: Tool
    program: subprocess.Popen[str]
    steps: list[float] = field(default_factory=list)
    calibrations: list[float] = field(default_factory=list)
    memory: float | None = None
    file: Path | None = None
    size: float | None = None
    export: float | None = None
    errors: dict[str, str] = field(default_factory=dict)

    def ask(self, command: str) -> dict[str, object]:
        """Send a command and wait for its answer; an error is kept, and answered with nothing."""
        assert self.program.stdin is not None
        print(command, file=self.program.stdin, flush=True)
        return self.answer(command)

    def answer(self, command: str) -> dict[str, object]:
        """The next line of the process."""
        assert self.program.stdout is not None
        line = self.program.stdout.readline()
        if not line:
            raise SystemExit(f"{self.tool.name} ended with exit code {self.program.wait()} at `{command}`.")
        found: dict[str, object] = json.loads(line)
        if "error" in found:
            self.errors[command.split()[0]] = str(found["error"])
            return {}
        return found


def main() -> None:
    """Measure and print."""
    parser = make_parser("Ours beside other tools, one core.", rounds=5)
    parser.add_argument("--environments", type=Path, metavar="DIR", required=True, help="where the tools are installed")
    parser.add_argument(
        "--net", action="append", help="of torchvision; repeatable; resnet18 and mobilenet_v2 if absent"
    )
    parser.add_argument(
        "--tool", action="append", choices=[t.subject for t in TOOLS[1:]], help="repeatable; all if absent"
    )
    parser.add_argument("--together", type=int, default=len(TOOLS), metavar="N", help="tools that take turns at a time")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images in a step")
    arguments = parser.parse_args()
    machine = this_machine()
    if arguments.together < 1:
        parser.error("--together takes 1 or more")
    base, *tools = [t for t in TOOLS if t.subject == _FLOAT or not arguments.tool or t.subject in arguments.tool]
    pythons = {tool.subject: _environment(arguments.environments, tool) for tool in (base, *tools)}
    groups = [[base, *tools[i : i + arguments.together]] for i in range(0, len(tools), arguments.together)]
    title = f"Ours beside other tools: batches of {arguments.batch}, {arguments.size} pixels, {arguments.rounds} rounds"
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for net in arguments.net or ["resnet18", "mobilenet_v2"]:
                for group in groups:
                    rows += _rows(net, group, pythons, Path(folder), arguments)
    finally:  # what was measured before a tool ended, for want of memory perhaps, is kept
        if rows:
            publish(title, machine, rows, arguments)


def _environment(folder: Path, tool: Tool) -> Path:
    """The Python that has the tool; what both need comes from the environment of this process."""
    if not tool.requirements:
        return Path(sys.executable)
    own = folder / tool.subject
    python, stamp = own / "bin" / "python", own / "requirements.txt"
    wanted = "\n".join(tool.requirements) + "\n"
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"Installing {', '.join(tool.requirements)} into {own}.", file=sys.stderr)
        venv.create(own, with_pip=True, clear=True)
        site = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
        shared = sysconfig.get_path("purelib")
        Path(site, "zz_shared.pth").write_text(f"{shared}\n")  # at the end of the path: the tool's own go first
        subprocess.run([python, "-m", "pip", "install", "-q", *tool.requirements], check=True)
        stamp.write_text(wanted)
    return python


def _rows(
    net: str, tools: Sequence[Tool], pythons: Mapping[str, Path], folder: Path, arguments: argparse.Namespace
) -> list[Row]:
    processes = [_started(tool, pythons[tool.subject], net, arguments) for tool in tools]
    try:
        _measure(processes, net, folder, arguments.rounds)
    finally:
        for process in processes:
            process.program.kill()
            process.program.wait()
    speeds = _inference(processes, folder / f"{net}-static.onnx", arguments)
    return [_row(net, process, processes[0], speeds) for process in processes] + _static_row(net, speeds)


def _started(tool: Tool, python: Path, net: str, arguments: argparse.Namespace) -> _Process:
    command = [python, _WORKER, tool.subject, "--net", net, "--size", arguments.size, "--batch", arguments.batch]
    program = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
    )
    process = _Process(tool, program)
    process.answer("start")  # one after the other: two that start together need the memory of both
    print(f"{net}: {tool.name} is ready.", file=sys.stderr)
    return process


def _measure(processes: Sequence[_Process], net: str, folder: Path, rounds: int) -> None:
    for process in processes:
        found = process.ask("memory")  # warms up too
        process.memory = float(str(found["mib"])) if found else None
    for number in range(rounds):
        for process in processes if number % 2 == 0 else processes[::-1]:
            process.steps.append(float(str(process.ask("step")["seconds"])))
    for number in range(max(2, rounds // 2)):
        for process in processes if number % 2 == 0 else processes[::-1]:
            found = process.ask("calibrate")
            if found:
                process.calibrations.append(float(str(found["seconds"])))
    for process in processes:
        file = folder / f"{net}-{process.tool.subject}.onnx"
        found = process.ask(f"export {file}")
        if found:
            process.file, process.export = file, float(str(found["seconds"]))
            process.size = float(str(found["bytes"]))
        print(f"{net}: {process.tool.name} is measured.", file=sys.stderr)


def _inference(processes: Sequence[_Process], static: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a batch in onnxruntime, by tool; a file that onnxruntime refuses has none."""
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    images = np.random.default_rng(1).standard_normal(shape, np.float32)
    files = {process.tool.name: process.file for process in processes if process.file is not None}
    source = files.get(_FLOAT)
    if source is not None:
        quantize_static_file(source, static, images[:8])
        files[_STATIC] = static
    runners: dict[str, OrtRunner] = {}
    for name, file in files.items():
        try:
            runners[name] = OrtRunner(file, threads=1)
            runners[name](images)
        except Exception as error:  # a file that a peer wrote
            runners.pop(name, None)
            process = next(p for p in processes if p.tool.name == name)
            process.errors["onnxruntime"] = str(error).splitlines()[0]
    seconds = interleaved({n: partial(r, images) for n, r in runners.items()}, arguments.rounds, time.process_time)
    for runner in runners.values():
        runner.close()
    return seconds


def _row(net: str, process: _Process, base: _Process, speeds: Mapping[str, Sequence[float]]) -> Row:
    tool = process.tool
    return {
        "net": net,
        "tool": tool.name,
        "version": version(tool.package) if tool.package and not tool.requirements else _pinned(tool),
        "step by float": median_ratio(process.steps, base.steps),
        **noise(process.steps),
        "step, s": statistics.median(process.steps),
        "memory of a step, MiB": process.memory,
        "memory by float": process.memory / base.memory if process.memory and base.memory else None,
        "calibration by forward passes": median_ratio(process.calibrations, base.calibrations)
        if process.calibrations
        else None,
        "ranges": tool.calibrates,
        "export, s": process.export,
        "file, MB": process.size / 1e6 if process.size else None,
        "onnxruntime by fp32": median_ratio(speeds[_FLOAT], speeds[tool.name]) if tool.name in speeds else None,
        "failed": "; ".join(f"{command}: {text}" for command, text in process.errors.items()) or None,
    }


def _static_row(net: str, speeds: Mapping[str, Sequence[float]]) -> list[Row]:
    if _STATIC not in speeds:
        return []
    ratio = median_ratio(speeds[_FLOAT], speeds[_STATIC])
    return [{"net": net, "tool": _STATIC, "version": version("onnxruntime"), "onnxruntime by fp32": ratio}]


def _pinned(tool: Tool) -> str | None:
    return tool.requirements[0].partition("==")[2] if tool.requirements else None


if __name__ == "__main__":
    main()
