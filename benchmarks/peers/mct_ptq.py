"""Post-training quantization with Sony's Model Compression Toolkit: power-of-two activations, float weight scales.

Its default platform: 8 bits, symmetric weights by channel, activation ranges that are powers of two by the least
squared error, bias correction. No label is used, nothing is trained.

Install: pip install model-compression-toolkit==2.6.1 (it asks for pydantic<2.12: an environment of its own, where
faq-deploy's checkout is on the path; pydantic 2.14 was there in our run, and worked)

python benchmarks/peers/mct_ptq.py --weights float.pth --data DIR --seed 0
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else the script finds neither benchmarks nor engines

from typing import Any

from torch import Tensor, nn

from benchmarks.peers.peer_run import Method, Outcome, Setup, keep_record, make_parser, open_setup
from engines.errors import CannotRunHere, InputError

__all__ = ["main"]


def main() -> None:
    """Quantize, measure, and write the record."""
    parser = make_parser("Post-training quantization with Model Compression Toolkit.", trains=False)
    arguments = parser.parse_args()
    if arguments.bits != 8:
        raise InputError("This script runs the toolkit's default platform, which has 8 bits.", "pass --bits 8.")
    setup = open_setup(arguments)
    float_top1 = setup.top1(setup.net)
    begin = time.perf_counter()
    net, version = quantize(setup)
    seconds = time.perf_counter() - begin
    found = setup.top1(net)
    print(f"float {float_top1:.2f} %, quantized {found:.2f} %", file=sys.stderr)
    method = Method(
        name="mct-ptq-8bit",
        method="PTQ, power-of-two activations by least squared error",
        library="model-compression-toolkit",
        version=version,
        scales="float",
        script="mct_ptq.py",
        notes="Its default platform: activation scales are powers of two, weight scales floats; bias correction.",
    )
    keep_record(arguments, setup, method, Outcome(float_top1, found, found, seconds))


def quantize(setup: Setup) -> tuple[nn.Module, str]:
    """The float net with the toolkit's quantizers, and the toolkit's version.

    Args:
        setup: whose calibration images give the ranges.
    """
    try:
        mct: Any = import_module("model_compression_toolkit")
    except ImportError as error:
        what = f"This script needs Model Compression Toolkit ({error})."
        raise CannotRunHere(what, "pip install model-compression-toolkit==2.6.1") from error

    def images() -> Iterator[list[Tensor]]:
        for batch in setup.calibration():
            yield [batch]

    made: tuple[Any, Any] = mct.ptq.pytorch_post_training_quantization(setup.net, images)
    return made[0], str(mct.__version__)


if __name__ == "__main__":
    main()
