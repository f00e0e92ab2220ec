"""The paper's seven networks at 8 bits as TensorRT-RTX engines for four GPU architectures: size and seconds.

Weights are random (seeded) with batch norms settled on noise; the files are written without export's comparison of
codes, which benchmarks/networks.py makes. Nothing runs on a GPU. Each network is built in a process of its own, and
one that has figures isn't built again.

python benchmarks/engines.py
python benchmarks/engines.py --only vgg16_bn --again
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from pydantic import BaseModel

from benchmarks.common import this_machine
from engines.files import write_atomic

__all__ = ["NETWORKS", "SMS", "EngineFigures", "NetworkFigures", "Record", "main", "measure", "table", "write_onnx"]

NETWORKS: Final = ("resnet18", "resnet34", "resnet50", "resnet152", "inception_v3", "densenet161", "vgg16_bn")
SMS: Final = (75, 86, 89, 120)
RESULTS: Final = Path(__file__).resolve().parent / "results" / "engines.json"
_IMAGES: Final = 8  # of noise, to calibrate on


class EngineFigures(BaseModel):
    """One engine; `failed` says why there is none."""

    bytes: int = 0
    seconds: float = 0.0
    failed: str = ""


class NetworkFigures(BaseModel):
    """One network's ONNX file, and its engines by architecture."""

    onnx_bytes: int
    engines: dict[str, EngineFigures]


class Record(BaseModel):
    """All networks, and where the last of them was built."""

    machine: dict[str, str | float] = {}
    tensorrt_rtx: str = ""
    networks: dict[str, NetworkFigures] = {}


def main() -> None:
    """Build what has no figures yet, and print the table."""
    parser = argparse.ArgumentParser(
        description="The networks of Table 1 as engines.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", choices=NETWORKS, help="one network")
    parser.add_argument("--again", action="store_true", help="build also what has figures")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, for one network
    arguments = parser.parse_args()
    for network in NETWORKS:
        if arguments.only not in (None, network):
            continue
        if arguments.here:
            _record(network, measure(network))
        elif arguments.again or network not in _read().networks:
            command = [sys.executable, __file__, "--here", "--only", network]
            result = subprocess.run(command, check=False)
            print(f"{network}: {'done' if result.returncode == 0 else 'FAILED'}", file=sys.stderr, flush=True)
    if not arguments.here:
        print(table(_read()))


def measure(network: str) -> NetworkFigures:
    """Write one network's ONNX file and build its engines.

    Args:
        network: of torchvision.

    Returns:
        Its figures; an engine that could not be built says why.
    """
    from engines.build import build_onnx_file
    from engines.build_options import BuildOptions
    from faq_deploy import __version__

    engines: dict[str, EngineFigures] = {}
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "model.onnx", Path(folder) / "engines"
        write_onnx(network, path)
        results = build_onnx_file(path, output, ["tensorrt-rtx"], SMS, BuildOptions(), version=__version__)
        for sm, result in zip(SMS, results, strict=True):
            built = result.manifest
            engines[str(sm)] = (
                EngineFigures(bytes=built.bytes, seconds=built.seconds)
                if built is not None
                else EngineFigures(failed=result.reason)
            )
        return NetworkFigures(onnx_bytes=path.stat().st_size, engines=engines)


def table(record: Record) -> str:
    """Markdown of what was measured.

    Args:
        record: as the JSON file holds it.

    Returns:
        One row a network.
    """
    heads = ["network", "ONNX, MB", *(f"SM {sm}, MB" for sm in SMS), *(f"SM {sm}, s" for sm in SMS)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for network in NETWORKS:
        figures = record.networks.get(network)
        if figures is not None:
            engines = [figures.engines[str(sm)] for sm in SMS]
            megabytes = ["failed" if engine.failed else f"{engine.bytes / 1e6:.1f}" for engine in engines]
            seconds = ["" if engine.failed else f"{engine.seconds:.1f}" for engine in engines]
            lines.append([network, f"{figures.onnx_bytes / 1e6:.1f}", *megabytes, *seconds])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_onnx(network: str, path: Path) -> None:
    """Write a network of torchvision as a QDQ file: random weights, 8 bits, target `tensorrt`."""
    import onnx
    import torch
    from onnx import helper

    from benchmarks.common import quantized, random_net, recipe_of
    from faq_deploy.emit import emit_graph
    from faq_deploy.onnx_export import IR_VERSION, OPSET

    size = 299 if network == "inception_v3" else 224
    images = torch.randn(_IMAGES, 3, size, size, generator=torch.Generator().manual_seed(1))
    stored = quantized(random_net(network, images), images, recipe_of(8, "tensorrt"))
    with torch.inference_mode():
        graph = emit_graph(stored.net, "tensorrt")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)


def _record(network: str, measured: NetworkFigures) -> None:
    from engines.host import this_host

    record = _read()
    networks = {**record.networks, network: measured}
    machine = {key: value for key, value in asdict(this_machine()).items() if isinstance(value, str | float | int)}
    rtx = this_host().versions.get("tensorrt-rtx", "")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    text = Record(machine=machine, tensorrt_rtx=rtx, networks=networks).model_dump_json(indent=1)
    write_atomic(RESULTS, text + "\n")


def _read() -> Record:
    return Record.model_validate_json(RESULTS.read_text()) if RESULTS.is_file() else Record()


if __name__ == "__main__":
    main()
