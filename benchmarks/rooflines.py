"""The paper's networks at 8 bits against NVIDIA's data sheets: multiply-adds, bytes, and the least time. No GPU needed.

python benchmarks/rooflines.py --networks resnet18 resnet50
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import Cell
from benchmarks.engines import NETWORKS, write_onnx
from engines.files import write_atomic
from engines.gpu_limits import GPUS
from engines.kernel_costs import kernel_costs
from engines.qdq_graph import load_model
from engines.roofline import bound

__all__ = ["BATCHES", "RESULTS", "figures", "main"]

RESULTS: Final = Path(__file__).resolve().parent / "results" / "rooflines.json"
BATCHES: Final = (1, 32)


def figures(path: Path) -> dict[str, Cell]:
    """One network's counts, and `GPU, precision, batch` in milliseconds.

    Args:
        path: a QDQ file.
    """
    costs = kernel_costs(load_model(path))
    macs, weights = sum(cost.macs for cost in costs), sum(cost.weight_bytes for cost in costs)
    found: dict[str, Cell] = {
        "macs": macs,
        "int8_macs": sum(cost.macs for cost in costs if cost.int8),
        "weight_bytes": weights,
        "activation_bytes": sum(cost.bytes("int8", 1) for cost in costs) - weights,
    }
    for gpu in GPUS:
        for batch in BATCHES:
            found[f"{gpu.name}, int8, {batch}"] = bound(costs, gpu, "int8", batch).ms
            found[f"{gpu.name}, fp16, {batch}"] = bound(costs, gpu, "fp16", batch).ms
    return found


def main() -> None:
    """Count, and write after each network."""
    parser = argparse.ArgumentParser(description="Rooflines of the networks of Table 1.", allow_abbrev=False)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    for network in parser.parse_args().networks:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(network, path)
            known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            known[network] = figures(path)
            write_atomic(RESULTS, json.dumps(known, indent=1) + "\n")
        print(f"{network}: {known[network]['macs'] / 1e9:.2f} G multiply-adds", flush=True)


if __name__ == "__main__":
    main()
