"""Small trainings for several processes. Run as a program by `launcher.launch`, each process does them all."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from engines.errors import FaqError, InputError
from engines.image_batches import BadImages
from engines.images import ArrayImages
from engines.preprocess import Preprocessing
from engines.run_folder import RunFolder
from faq_deploy.batch_statistics import synchronize
from faq_deploy.finetune import finetune
from faq_deploy.launcher import launch
from faq_deploy.live_norm import LiveNorm
from faq_deploy.net import QuantizedNet
from faq_deploy.progress import LineReporter
from faq_deploy.quantize import Batches
from faq_deploy.quantized_batch_norm import QuantizedBatchNorm
from faq_deploy.ranks import Ranks, open_ranks
from faq_deploy.recipe import dump_toml, override
from faq_deploy.torch_eval import top1_percent
from tests.nets import Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net

CPU = torch.device("cpu")
KINDS = ("plain", "fold", "paper")
NORMS = ("live", "quantized")


def launch_jobs(folder: Path, job: str, count: int = 2) -> int:
    """Run a job in several processes; returns the code that `launch` gives."""
    return launch(count, [sys.executable, "-m", "tests.rank_jobs", job, str(folder)])


class Plain(nn.Module):
    """Two convolutions without batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.next(self.conv(x).relu()).relu().mean((2, 3)))
        return logits


def photos() -> ArrayImages:
    """44 images of 16 x 16 pixels: batches of 16, 16 and 12."""
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.arange(44) % 5)
    pixels = rng.integers(0, 120, (44, 16, 16, 3)) + 25 * labels[:, None, None, None]
    plain = Preprocessing(resize=None, crop=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return ArrayImages(pixels.astype(np.uint8), labels, tuple("abcde"), plain)


def train(
    folder: Path, kind: str, ranks: Ranks, *, epochs: int = 1, resume: bool = False, sync: bool = True
) -> QuantizedNet:
    """Fine-tune a calibrated net; with `sync`, batch norms take all processes' images."""
    torch.manual_seed(7)
    model = Plain() if kind == "plain" else with_statistics(Small())
    recipe = make_recipe(batch_norm="fold" if kind == "plain" else kind)
    changes: dict[str, object] = {"training.epochs": epochs, "training.batch_size": 16, "training.augment": "shift"}
    recipe = override(recipe, changes | {"training.lr": 0.02, "training.sync_batch_norm": sync})
    net = quantized_net(model.eval(), recipe, images()).net
    if sync and ranks.count > 1:
        synchronize(net)
    finetune(
        net,
        train=Batches(photos(), recipe, "shift", 0, "error", BadImages(), ranks),
        val=lambda: 50.0,
        training=recipe.training,
        weight_decay=1e-4,
        run=RunFolder(folder),
        recipe_toml=dump_toml(recipe),
        device=CPU,
        ranks=ranks,
        reporter=LineReporter(Console(quiet=True)),
        before_step=net.before_step,
        resume=resume,
    )
    return net


def random_net() -> nn.Module:
    """The same on every process, right by chance."""
    torch.manual_seed(4)
    net = Plain().eval()
    for value in net.parameters():
        nn.init.normal_(value)
    return net


def norm_of(kind: str) -> LiveNorm | QuantizedBatchNorm:
    """A batch norm of 4 channels in training."""
    constants = [torch.tensor(values) for values in ((1.0, 0.5, -1.5, 2.0), (0.0, 1.0, 0.5, -1.0))]
    constants += [torch.tensor([0.1, 0.0, 2.0, -1.0]), torch.tensor([1.0, 4.0, 0.5, 2.0])]
    if kind == "live":
        return LiveNorm(*constants, eps=1e-5, momentum=0.1).train()
    norm = QuantizedBatchNorm(*constants, eps=1e-5, momentum=0.1, constants="fit")
    norm.mode = "quantize"
    norm.accumulator_exponent.fill_(-12)
    norm.fit_exponent()
    return norm.train()


def normalized(kind: str, part: slice, *, synchronized: bool) -> dict[str, Tensor]:
    """What a batch norm gives for some of 8 images: the result, the gradients, the running statistics."""
    generator = torch.Generator().manual_seed(2)
    x, wanted = (torch.randn(8, 4, 6, 6, generator=generator) for _ in range(2))
    norm = norm_of(kind)
    norm.synchronized = synchronized
    mine = (1.5 * x + 0.7)[part].requires_grad_()
    y = norm(mine)
    (y * wanted[part]).sum().backward()
    parameters = {f"of_{name}": value.grad for name, value in norm.named_parameters() if value.grad is not None}
    assert mine.grad is not None
    return {"y": y.detach(), "of_x": mine.grad, **parameters, **dict(norm.named_buffers())}


def messages(ranks: Ranks) -> dict[str, object]:
    """What the ranks tell each other."""

    def fail() -> None:
        raise InputError("The folder is full.", "empty it.")

    low, high = torch.full((2, 2), float(ranks.rank)), torch.full((3,), 4.0 * ranks.rank)
    ranks.mean_([low, high])
    try:
        ranks.first_then_all(fail)
        failure = (0, "", False)
    except FaqError as error:
        failure = (error.exit_code, error.what, error.told)
    return {
        "rank": ranks.rank,
        "total": ranks.total(torch.tensor([1.0, ranks.rank])).tolist(),
        "maximum": ranks.maximum(torch.tensor([ranks.rank, -ranks.rank], dtype=torch.int32)).tolist(),
        "mean": (low.tolist(), high.tolist()),
        "agree": (ranks.agree(ranks.rank == 1), ranks.agree(False)),
        "gathered": ranks.gathered(f"from {ranks.rank}"),
        "first": ranks.first_does(lambda: "done"),
        "all": ranks.first_then_all(lambda: ranks.rank),
        "failure": failure,
    }


def _all(folder: Path, ranks: Ranks) -> None:
    part = slice(0, 3) if ranks.rank == 0 else slice(3, 8)
    results: dict[str, object] = {"messages": messages(ranks)}
    results |= {kind: normalized(kind, part, synchronized=True) for kind in NORMS}
    results["top1"] = top1_percent(random_net(), photos(), batch_size=8, ranks=ranks)
    for kind in KINDS:
        results[f"trained {kind}"] = train(folder / kind, kind, ranks).state_dict()
    results["apart"] = train(folder / "apart", "fold", ranks, sync=False).state_dict()
    train(folder / "from 2", "plain", ranks)
    results["from 1"] = train(folder / "from 1", "plain", ranks, epochs=2, resume=True).state_dict()
    torch.save(results, folder / f"{ranks.rank}.pt")


def _dying(folder: Path, ranks: Ranks) -> None:
    """The second process is killed between two collectives, as by the system for want of memory."""
    ranks.barrier()
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.total(torch.zeros(1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        with open_ranks(CPU) as opened:
            {"all": _all, "dying": _dying}[sys.argv[1]](Path(sys.argv[2]), opened)
    except FaqError as error:
        print("told" if error.told else error.what, file=sys.stderr)
        sys.exit(error.exit_code)
