"""One tool's process in `speed.py`: it reads a command a line, and answers each with a line of JSON.

Commands are `step`, `memory`, `calibrate` and `export FILE`; the end of the input ends it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else benchmarks is not found

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import random_net
from benchmarks.peers.speed_subjects import SUBJECTS

__all__ = ["main"]

_CALIBRATION_BATCHES: Final = 5
_CLASSES: Final = 1000
_MIB: Final = 1 << 20


class _Worker:
    def __init__(self, subject: str, net: str, size: int, batch: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(batch, 3, size, size, generator=generator)
        self.labels = torch.randint(_CLASSES, (batch,), generator=generator)
        # peers of torch.export want the batch size that they train with, or any above 1
        self.subject = SUBJECTS[subject](random_net(net, self.images[:8]), self.images[:8])
        self.optimizer = torch.optim.SGD(self.subject.net.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step(self) -> dict[str, float]:
        """Seconds of CPU time of a training step."""
        self.subject.net.train()
        start = time.process_time()
        self._step(self.images, self.labels)
        return {"seconds": time.process_time() - start}

    def memory(self) -> dict[str, float]:
        """The most tensors that live at once in a step beyond those between two steps, gradients included, in MiB.

        torch's allocator counts them, so that the figure is the same in every run; what kernels use besides is not in.
        """
        self.subject.net.train()
        self._step(self.images[:2], self.labels[:2])
        gc.collect()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
            self._step(self.images, self.labels)
        assert found.profiler is not None and found.profiler.kineto_results is not None
        events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        return {"mib": max(itertools.accumulate(event.nbytes() for event in events)) / _MIB}

    def calibrate(self) -> dict[str, float]:
        """Seconds of CPU time."""
        batches = [self.images] * _CALIBRATION_BATCHES
        start = time.process_time()
        self.subject.calibrate(batches)
        return {"seconds": time.process_time() - start}

    def export(self, path: Path) -> dict[str, float]:
        """Seconds of CPU time and bytes of the file."""
        start = time.process_time()
        self.subject.export(self.images, path)
        seconds = time.process_time() - start
        data = path.with_name(path.name + ".data")
        return {"seconds": seconds, "bytes": path.stat().st_size + (data.stat().st_size if data.is_file() else 0)}

    def _step(self, images: Tensor, labels: Tensor) -> None:
        self.subject.before_step()
        self.optimizer.zero_grad()
        F.cross_entropy(self.subject.net(images), labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def main() -> None:
    """Answer commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("--net", default="resnet18", help="of torchvision")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images in a step")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # tools print; what they say is no answer
        worker = _Worker(arguments.subject, arguments.net, arguments.size, arguments.batch)
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            print(json.dumps(_answer(worker, line.split())), file=answers)


def _answer(worker: _Worker, command: list[str]) -> dict[str, object]:
    try:
        match command:
            case ["step" | "memory" | "calibrate" as name]:
                return dict(getattr(worker, name)())
            case ["export", path]:
                return dict(worker.export(Path(path)))
    except Exception as error:  # a peer's failure is a result
        traceback.print_exc()
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        return {"error": f"{type(error).__name__}: {first.strip()}"}
    raise ValueError(command)


if __name__ == "__main__":
    main()
