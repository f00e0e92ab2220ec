"""The processes that train one net together, and what they tell each other; one process where no more are asked for."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from engines.errors import CannotRunHere, FaqError
from faq_deploy.heap import keep_freed_memory
from faq_deploy.launched_fabric import launched_fabric
from faq_deploy.launcher import started_by_launcher, started_processes

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["RankLost", "Ranks", "is_first_to_tell", "one_process", "open_ranks"]

_T = TypeVar("_T")

_WORK_TIMEOUT: Final = datetime.timedelta(days=1)  # the first process may calibrate alone for long
_TOLD: Final = "faq-deploy: told"


class RankLost(CannotRunHere):
    """Another process of the run ended, so that this one cannot go on (exit code 3)."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.told = started_by_launcher()  # which says what became of the other one


class _Told(FaqError):
    """Another process failed, with this code, and says why."""

    told = True

    def __init__(self, what: str, remedy: str, exit_code: int) -> None:
        super().__init__(what, remedy)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """The processes that train together; one where nothing else is asked for.

    With `count` 1 nothing is sent: every method gives back what it got.

    Attributes:
        fabric: launched.
        rank: of this process in all, from 0.
        count: of processes in all.
        device: that this process trains on.
    """

    fabric: Fabric
    rank: int
    count: int
    device: torch.device
    _words: dist.ProcessGroup | None = field(default=None, repr=False)  # gloo, for objects and flags on the CPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def maximum(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over ranks, of any dtype that the device's backend reduces (not bool)."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def total(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over ranks, added in one order on all of them."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace float tensors by their mean over ranks, in one message; all have the same bits afterwards.

        Args:
            tensors: of one dtype, on this rank's device; the same shapes on every rank.
        """
        if self.count == 1 or not tensors:
            return
        with torch.no_grad():
            flat = self.total(torch.cat([tensor.reshape(-1) for tensor in tensors])).div_(self.count)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            torch._foreach_copy_(list(tensors), [p.reshape(t.shape) for p, t in zip(parts, tensors, strict=True)])

    def agree(self, requested: bool) -> bool:
        """Whether any rank was asked, such as by a signal; the same answer on all of them."""
        if self.count == 1:
            return requested
        flag = torch.tensor(int(requested))
        with _losses_told():
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._words)
        return bool(flag)

    def barrier(self) -> None:
        """Wait, for as long as it takes, until all ranks are here."""
        self.agree(False)

    def first_does(self, work: Callable[[], _T]) -> _T | None:
        """Let the first rank do something while the others wait.

        Args:
            work: may write files and take long.

        Returns:
            What it returned, on the first rank; None on the others.

        Raises:
            FaqError: `work` did; on the others it is one that has been told.
        """
        failure: FaqError | None = None
        result: _T | None = None
        if self.is_first:
            try:
                result = work()
            except FaqError as error:
                failure = error
        self._share(failure)
        if failure is not None:
            raise failure
        return result

    def first_then_all(self, work: Callable[[], _T]) -> _T:
        """Do the same on every rank, on the others after the first one succeeded: a failure is told once.

        Args:
            work: such as to open a model or data.

        Raises:
            FaqError: `work` did on the first rank; on the others it is one that has been told.
        """
        if self.count == 1:
            return work()
        done = self.first_does(lambda: (work(),))
        return work() if done is None else done[0]

    def gathered(self, value: _T) -> list[_T]:
        """Each rank's value, in the order of the ranks, on all of them; pickled on its way."""
        if self.count == 1:
            return [value]
        values: list[_T | None] = [None] * self.count
        with _losses_told():
            dist.all_gather_object(values, value, group=self._words)
        return cast("list[_T]", values)

    def in_precision(self, precision: str) -> Ranks:
        """The same ranks, with a Fabric that computes products in `fp32`, `bf16` or `fp16`."""
        return (
            self if precision == "fp32" else replace(self, fabric=launched_fabric(self.device, precision, self.count))
        )

    def _reduced(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.count == 1:
            return tensor
        result = tensor.detach().clone()
        with _losses_told():
            dist.all_reduce(result, operation)
        return result

    def _share(self, failure: FaqError | None) -> None:
        if self.count == 1:
            return
        message = [None if failure is None else (failure.what, failure.remedy, failure.exit_code)]
        with _losses_told():
            dist.broadcast_object_list(message, src=0, group=self._words)
        if message[0] is not None and not self.is_first:
            raise _Told(*message[0])


def one_process(device: torch.device, precision: str = "fp32") -> Ranks:
    """This process alone.

    Args:
        device: to train on.
        precision: `fp32`, `bf16` or `fp16`, of the products in training.
    """
    return Ranks(launched_fabric(device, precision, 1), 0, 1, device)


@contextlib.contextmanager
def open_ranks(device: torch.device) -> Iterator[Ranks]:
    """All processes that `torchrun` or `--devices` started, of which this is one; this one alone where none did.

    Args:
        device: the kind of device to train on; with several processes each takes its own of that kind.

    Yields:
        The ranks, in fp32. Errors that come from the end of another process are `RankLost` inside.

    Raises:
        InputError: one GPU was named for several processes.
        CannotRunHere: fewer GPUs than processes, or the other processes can't be reached.
    """
    if device.type == "cpu":
        keep_freed_memory()
    count = started_processes()
    if count == 1:
        yield one_process(device)
        return
    with _losses_told():
        fabric = launched_fabric(device, "fp32", count)
        words = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_WORK_TIMEOUT))
        yield Ranks(fabric, fabric.global_rank, count, fabric.device, words)
        dist.destroy_process_group()  # after an error it is still needed, to agree on who tells it


def is_first_to_tell() -> bool:
    """Whether an error of this process is to be printed: no other one has told its own before."""
    if started_processes() == 1:
        return True
    if not dist.is_initialized():  # until then all do the same
        return os.environ["RANK"] == "0"
    try:
        return int(dist.distributed_c10d._get_default_store().add(_TOLD, 1)) == 1
    except RuntimeError:  # the process that kept the count is gone
        return False


@contextlib.contextmanager
def _losses_told() -> Iterator[None]:
    """Say in a sentence that another process is gone, whatever the backend calls it."""
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise RankLost(
            "Another process of this training ended or can't be reached, so this one stops.",
            "see what the other process said; continue with --resume.",
        ) from error


def _is_loss(error: RuntimeError) -> bool:
    """Whether an error says that another process can't be reached: gloo's and NCCL's own, in backward too."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text or "connection" in text
