"""Lightning Fabric for the processes there are: devices, precision, and how they reach each other."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import torch

from engines.errors import CannotRunHere, InputError
from faq_deploy.launcher import processes_here

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import Precision

__all__ = ["launched_fabric"]

_STEP_TIMEOUT: Final = datetime.timedelta(minutes=10)  # no step and no batch of images takes so long


def launched_fabric(device: torch.device, precision: str, count: int) -> Fabric:
    """A launched Fabric; where there is a process group already, one more that uses it.

    Args:
        device: to train on; with several processes only its kind counts.
        precision: `fp32`, `bf16` or `fp16`, of the products in training.
        count: of processes in all, which torchrun's environment variables tell apart.

    Raises:
        InputError: one GPU was named for several processes.
        CannotRunHere: fewer GPUs than processes.
    """
    from lightning_fabric import Fabric  # costs a second, which other verbs need not pay
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    cuda, mixed = device.type == "cuda", _precision(device, precision)
    if cuda and count > 1:
        _require_gpus(device, count)
    with _silent_lightning():
        if count == 1:
            devices = [device.index or 0] if cuda else 1
            alone = LightningEnvironment()  # else the tasks of a SLURM job would be taken for ranks
            fabric = Fabric(accelerator=device.type, devices=devices, plugins=[alone, mixed])
        else:
            strategy = DDPStrategy(
                cluster_environment=TorchElasticEnvironment(),
                process_group_backend="nccl" if cuda else "gloo",
                timeout=_STEP_TIMEOUT,
                broadcast_buffers=False,  # running statistics are averaged, exponents max-reduced
            )
            here = processes_here()
            nodes = count // here
            fabric = Fabric(accelerator=device.type, devices=here, num_nodes=nodes, strategy=strategy, plugins=[mixed])
        fabric.launch()
    return fabric


def _require_gpus(device: torch.device, count: int) -> None:
    if device != torch.device("cuda"):
        raise InputError(f"--device {device} is one GPU, but there are {count} processes.", "pass --device cuda.")
    here, found = processes_here(), torch.cuda.device_count()
    if found < here:
        raise CannotRunHere(
            f"{here} processes need as many GPUs, and there {'is' if found == 1 else 'are'} {found} here.",
            "pass fewer --devices, or --device cpu.",
        )


def _precision(device: torch.device, precision: str) -> Precision:
    """Fabric's part that computes products in 16 bits; for fp16 with a scale for the losses, on CPUs too."""
    from lightning_fabric.plugins.precision import MixedPrecision, Precision

    if precision == "fp32":
        return Precision()
    if precision == "bf16":
        return MixedPrecision("bf16-mixed", device.type)
    return MixedPrecision("16-mixed", device.type, scaler=torch.amp.GradScaler(device.type))


@contextlib.contextmanager
def _silent_lightning() -> Iterator[None]:
    """Keep Fabric from announcing devices and ranks."""
    loggers = [logging.getLogger(name) for name in ("lightning_fabric", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
