"""Ours in the peers' loop: power-of-two scales by the paper's rule, batch norms folded live.

python benchmarks/peers/ours.py --weights float.pth --data DIR --bits 4 --epochs 8 --seed 0
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else the script finds neither benchmarks nor engines

from benchmarks.common import this_machine
from benchmarks.peers.peer_run import make_parser, open_setup, train, written_command
from benchmarks.peers.record import RESULTS, Record, write_record
from faq_deploy import __version__
from faq_deploy.calibrate import calibrate
from faq_deploy.recipe import load_recipe, override
from faq_deploy.rewrite import rewrite

__all__ = ["main"]


def main() -> None:
    """Calibrate, train, and write the record."""
    parser = make_parser("Our quantization-aware training, in the peers' loop.", trains=True)
    arguments = parser.parse_args()
    machine, setup = this_machine(), open_setup(arguments)
    recipe = override(load_recipe("faq-8bit"), {"bits": arguments.bits})
    float_top1 = setup.top1(setup.net)
    images = list(setup.calibration())
    net = rewrite(setup.net, images[0][:2], recipe)
    calibrate(net, images, recipe.calibration, recipe.target)
    calibrated = setup.top1(net)
    print(f"float {float_top1:.2f} %, calibrated {calibrated:.2f} %", file=sys.stderr, flush=True)
    outcome = train(net, setup, [], calibrated, before_step=net.refresh)
    seed, training = str(arguments.seed), setup.recipe.training
    record = Record(
        name=f"ours-{arguments.bits}bit-{training.epochs}-epochs",
        method="QAT, power-of-two scales by the paper's rule",
        library="faq-deploy",
        version=__version__,
        weight_bits=arguments.bits,
        activation_bits=arguments.bits,
        scales="po2",
        granularity="channel",
        start="float",
        images="train",
        epochs=training.epochs,
        lr=training.lr,
        schedule=training.schedule,
        float_top1=float_top1,
        calibrated_top1={seed: calibrated},
        top1={seed: outcome.last},
        best_top1={},
        seconds=round(outcome.seconds, 1),
        threads=1,
        hardware=f"{machine.cpu}, {machine.cores} cores, no GPU",
        torch=machine.torch,
        commit=machine.commit,
        command=written_command(arguments, "ours.py"),
        notes="Batch norms are inside the weights: all multipliers are powers of two; the last ReLU has 7 bits.",
    )
    if not arguments.steps:
        print(write_record(record, arguments.output or RESULTS))


if __name__ == "__main__":
    main()
