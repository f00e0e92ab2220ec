"""The experiments that a machine without a GPU can run, as data: what each answers and its command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["EXPERIMENTS", "FLOAT", "GROUPS", "MODEL", "Experiment", "Group", "chosen", "command", "run_name"]

Group = Literal["float", "lr", "8bit", "4bit", "control", "grid", "table2"]
GROUPS: Final[tuple[Group, ...]] = ("float", "lr", "8bit", "4bit", "grid", "control", "table2")

MODEL: Final = "builtin:resnet14-cifar"
FLOAT: Final = "float"
_THREE: Final = (0, 1, 2)

_LR: Final = "0.05"
_EPOCHS: Final = 12
_GAMMA: Final = "0.65"  # to 1 % of the first rate
_FEW: Final = 2  # for what is compared among itself
_FEW_LR: Final = "0.02"  # the paper's for CIFAR-10 (4.9); _rates tries others
_STEEP: Final = "0.1"


@dataclass(frozen=True)
class Experiment:
    """One training, with as many seeds as its claim needs.

    Attributes:
        name: of its results, with the seed behind it.
        group: of the queue.
        question: that it answers.
        arguments: of the verb, after model, weights, data and output.
        seeds: of image order, augmentation and calibration images; the float net is the same for all.
        verb: quantize, or train for float nets.
        start: float: the trained float net; random: from nothing.
        row: of the paper, which it repeats in small.
    """

    name: str
    group: Group
    question: str
    arguments: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    verb: Literal["quantize", "train"] = "quantize"
    start: Literal["float", "random"] = "float"
    row: str = ""


def run_name(experiment: Experiment, seed: int) -> str:
    """Of the run's folder and of its result file."""
    return f"{experiment.name}-{seed}"


def command(
    experiment: Experiment, seed: int, *, data: str = "cifar10", runs: str = "runs/experiments"
) -> tuple[str, ...]:
    """The arguments of `faq-deploy` for one seed.

    Args:
        experiment: of the plan.
        seed: one of its seeds.
        data: folder of images, or `cifar10:DIR`.
        runs: folder of run folders.

    Returns:
        From the verb on, without `--json`.
    """
    weights = f"{runs}/{FLOAT}-0/float.pth" if experiment.start == "float" else "random"
    chosen_seed = () if seed == 0 else ("--seed", str(seed))
    output = ("-o", f"{runs}/{run_name(experiment, seed)}")
    named = (experiment.verb, MODEL, "--weights", weights, "--data", data)
    return (*named, *experiment.arguments, *chosen_seed, *output)


def chosen(names: tuple[str, ...]) -> list[Experiment]:
    """Experiments by name or group, in the order asked for.

    Raises:
        KeyError: a name that is neither.
    """
    known = {e.name for e in EXPERIMENTS} | set(GROUPS)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise KeyError(f"{', '.join(unknown)}; there are {', '.join(sorted(known))}")
    found = [e for name in names for e in EXPERIMENTS if name in (e.name, e.group)]
    return list(dict.fromkeys(found))


def _set(**values: str) -> tuple[str, ...]:
    """`--set` of training keys; the data's weight decay is that of the float net (paper 4.9)."""
    keys = {"weight_decay": "5e-4", "weight_decay_for": "{}", "memory_format": "channels_last", "ema_decay": "0.99"}
    keys |= values
    return tuple(word for key, value in keys.items() for word in ("--set", f"training.{key}={value}"))


def _quantizer(batch_norm: str, **values: str) -> tuple[str, ...]:
    target = () if batch_norm == "fold" else ("--target", "paper", "--set", f"quantizer.batch_norm={batch_norm}")
    return (*target, *(word for key, value in values.items() for word in ("--set", f"quantizer.{key}={value}")))


def _short(epochs: int, lr: str, **training: str) -> tuple[str, ...]:
    return ("--epochs", str(epochs), "--lr", lr, "--batch-size", "128", *_set(**training))


_8BIT: Final = ("--recipe", "faq-8bit", *_short(1, "0.005"))
_8BIT_PAPER: Final = ("--recipe", "faq-8bit", *_short(1, "0.01"))  # the best of 0.002, 0.005, 0.01 and 0.02 at seed 0
_PAPERS_8BIT: Final = ("--recipe", "faq-8bit", *_short(1, "1e-4", ema_decay="0"))
_STILL: Final = ("--set", "training.freeze_exponents=7")  # folded weights' exponents change with every batch's variance
_4BIT: Final = ("--recipe", "faq-4bit", *_short(_EPOCHS, _LR, gamma=_GAMMA))


def _grid() -> list[Experiment]:
    """A4 x A7 x A12, the places where the paper's text can be read in two ways."""
    cells = [(up, sigma, norm) for up in ("next", "even") for sigma in ("R2", "R1") for norm in ("paper", "fit")]
    return [
        Experiment(
            f"grid-{up}-{sigma}-{norm}",
            "grid",
            "Which reading of the paper is best right after quantization, and after 2 epochs?",
            (
                *("--recipe", "faq-4bit", *_short(_FEW, _FEW_LR, gamma=_STEEP)),
                *_quantizer(norm, sigma_reading=sigma),
                *("--set", f"calibration.round_up={up}"),
            ),
        )
        for up, sigma, norm in cells
    ]


def _rates() -> list[Experiment]:
    question = "Which first learning rate suits 4 bits?"
    return [
        Experiment(
            f"lr-{lr}",
            "lr",
            question,
            ("--recipe", "faq-4bit", *_short(_FEW, lr, gamma=_STEEP)),
            row="4.9, learning rate",
        )
        for lr in ("0.0015", "0.005", "0.05")
    ]


def _main() -> list[Experiment]:
    paper = _quantizer("paper")
    return [
        *(
            Experiment(
                f"8bit-{name}-1e-4",
                "8bit",
                f"8 bits, the paper's rate, {form}",
                (*_PAPERS_8BIT, *more),
                row="4.9, 8 bits",
            )
            for name, form, more in (("fold", "power-of-two scales", ()), ("paper", "the paper's own form", paper))
        ),
        Experiment(
            "8bit-paper-0.005",
            "8bit",
            "8 bits, one epoch, the paper's own form, the rate of 8bit-fold",
            (*_8BIT, *paper),
            _THREE,
            row="4.9, 8 bits",
        ),
        Experiment("8bit-fold", "8bit", "8 bits, one epoch, power-of-two scales", _8BIT, _THREE, row="4.9, 8 bits"),
        Experiment(
            "8bit-paper",
            "8bit",
            "8 bits, one epoch, the paper's own form",
            (*_8BIT_PAPER, *paper),
            _THREE,
            row="4.9, 8 bits",
        ),
        Experiment("4bit-fold", "4bit", "4 bits, power-of-two scales", (*_4BIT, *_STILL), _THREE, row="4.9, 4 bits"),
        Experiment("4bit-paper", "4bit", "4 bits, the paper's own form", (*_4BIT, *paper), _THREE, row="4.9, 4 bits"),
        Experiment(
            "float-8bit-schedule",
            "control",
            "What does the 8-bit schedule give the float net?",
            _8BIT,
            verb="train",
        ),
        Experiment(
            "float-4bit-schedule",
            "control",
            "What does the 4-bit schedule give the float net?",
            _4BIT,
            verb="train",
        ),
    ]


def _one_change() -> list[Experiment]:
    """The rows of Table 2 in small: each differs from 4bit-short, or from 4bit-fold, in one thing."""

    def few(name: str, question: str, row: str, *more: str, epochs: int = _FEW, **training: str) -> Experiment:
        rate = _FEW_LR if epochs < _EPOCHS else _LR
        arguments = ("--recipe", "faq-4bit", *_short(epochs, rate, **({"gamma": _STEEP} | training)), *more)
        return Experiment(name, "table2", question, arguments, row=row)

    def scratch(name: str, question: str, row: str, **training: str) -> Experiment:
        arguments = ("--recipe", "faq-4bit", *_short(_EPOCHS, "0.1", **training), *fixed, *_STILL)
        return Experiment(name, "table2", question, arguments, start="random", row=row)

    fixed = ("--set", "calibration.method=fixed")
    step = {"schedule": "step", "gamma": "0.1", "milestones": "[4,8]"}
    grow = {"gamma": "0.316", "batch_doublings": "[1]"}
    tensor = _quantizer("fold", granularity="tensor")
    return [
        few("4bit-short", f"{_FEW} epochs instead of {_EPOCHS}", "Table 2, 2"),
        few("4bit-step", "Steps instead of an exponential", "Table 2, 5", *_STILL, epochs=_EPOCHS, **step),
        few("4bit-less-decay", "Half the weight decay", "Table 2, 6", weight_decay="2.5e-4"),
        few("4bit-uncalibrated", "No calibration", "Table 2, 7", *fixed),
        few("4bit-growing-batch", "A batch that doubles, as many updates", "Table 2, 4", epochs=3, **grow),
        few("4bit-per-tensor", "A scale per tensor", "", *tensor),
        few("4bit-frozen", "Weight exponents stay in the last epoch", "", freeze_exponents="1"),
        few("4bit-frozen-norm", "Batch norms use running statistics in the last epoch", "", freeze_batch_norm="1"),
        few("4bit-last-step", "The weights of the last step, not their average", "", ema_decay="0"),
        few("4bit-mse-ranges", "Activation ranges of least squared error", "", "--set", "calibration.method=mse"),
        few("4bit-distilled", "Half the loss against the float net", "", distill="0.5"),
        scratch("4bit-scratch-exponential", "From random weights, exponential from 0.1", "4.3", gamma=_GAMMA),
        scratch("4bit-scratch-step", "From random weights, steps from 0.1", "Table 2, 3", **step),
    ]


EXPERIMENTS: Final[tuple[Experiment, ...]] = (
    Experiment(
        FLOAT,
        "float",
        "The float net that all others start from",
        (
            *("--recipe", "cifar-float", "--epochs", "28", "--set", "training.milestones=[16,23]"),
            *("--set", "training.memory_format=channels_last", "--devices", "2"),
        ),
        verb="train",
        start="random",
        row="4.9, baseline",
    ),
    *_rates(),
    *_main(),
    *_grid(),
    *_one_change(),
)
