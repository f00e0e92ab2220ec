"""Ours in the peers' loop: power-of-two scales by the paper's rule, batch norms folded live.

python benchmarks/peers/ours.py --weights float.pth --data DIR --bits 4 --epochs 8 --seed 0
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else the script finds neither benchmarks nor engines

from benchmarks.peers.peer_run import Method, keep_record, make_parser, open_setup, train
from faq_deploy import __version__
from faq_deploy.activation_exponents import calibrate
from faq_deploy.recipe import load_recipe, override
from faq_deploy.rewrite import rewrite

__all__ = ["main"]


def main() -> None:
    """Calibrate, train, and write the record."""
    parser = make_parser("Our quantization-aware training, in the peers' loop.", trains=True)
    arguments = parser.parse_args()
    setup = open_setup(arguments)
    recipe = override(load_recipe("faq-8bit"), {"bits": arguments.bits})
    float_top1 = setup.top1(setup.net)
    images = list(setup.calibration())
    net = rewrite(setup.net, images[0][:2], recipe)
    calibrate(net, images, recipe.calibration, recipe.target)
    outcome = train(net, setup, [], float_top1, before_step=net.refresh)
    epochs = setup.recipe.training.epochs
    method = Method(
        name=f"ours-{arguments.bits}bit-{epochs}-epochs",
        method="QAT, power-of-two scales by the paper's rule",
        library="faq-deploy",
        version=__version__,
        scales="po2",
        script="ours.py",
        notes="Batch norms are inside the weights: all multipliers are powers of two; the last ReLU has 7 bits.",
    )
    keep_record(arguments, setup, method, outcome)


if __name__ == "__main__":
    main()
