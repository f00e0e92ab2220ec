"""FAQ fine-tuning and plain float training: what is trained, and how a run is continued."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engines.errors import InputError
from engines.run_folder import RunFolder
from faq_deploy import checkpoint
from faq_deploy.averaged_weights import AveragedWeights
from faq_deploy.checkpoint import MetricsLog, TrainingState
from faq_deploy.interrupt import Interrupted, StopSignals
from faq_deploy.progress import TrainingReporter
from faq_deploy.ranks import Ranks, one_process
from faq_deploy.recipe import TrainingSection
from faq_deploy.repeatable import repeatable
from faq_deploy.training_loop import TrainingLoop, copy_of_state
from faq_deploy.update_step import BatchSource, UpdateStep
from faq_deploy.watch import Closeness

__all__ = ["BatchSource", "FinetuneResult", "Interrupted", "finetune"]


@dataclass(frozen=True)
class _Terms:
    """What a checkpoint must agree on with the training that goes on from it."""

    training: TrainingSection
    weight_decay: float
    recipe_toml: str
    steps_per_epoch: int


@dataclass(frozen=True)
class FinetuneResult:
    """What training gave. The net itself holds the last weights.

    Attributes:
        best_state: state dict of the epoch with the best validation top-1, the earlier of equals; on the CPU.
        best_epoch: epochs done when it was taken; 0 if nothing was trained, or every epoch was worse than no training.
        best_top1: its validation top-1 in percent.
        last_top1: that of the last epoch.
        epochs_done: in all.
        seconds: of training in all, resumed parts included, without validation and checkpoints.
        steps: in all.
        nothing_to_do: a resumed training was complete already; no file was touched.
    """

    best_state: Mapping[str, Tensor]
    best_epoch: int
    best_top1: float
    last_top1: float
    epochs_done: int
    seconds: float
    steps: int
    nothing_to_do: bool = False


def finetune(
    net: nn.Module,
    *,
    train: BatchSource,
    val: Callable[[], float],
    training: TrainingSection,
    weight_decay: float,
    run: RunFolder,
    recipe_toml: str,
    device: torch.device,
    reporter: TrainingReporter,
    before_step: Callable[[bool], None] | None = None,
    start_top1: float | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    ranks: Ranks | None = None,
    teacher: nn.Module | None = None,
    changed: bool = False,
    pretrained: bool = False,
) -> FinetuneResult:
    """Train with SGD, momentum and cross entropy; keep checkpoints and metrics in the run folder.

    On the CPU, a resumed training gives bitwise the weights of an uninterrupted one.

    Args:
        net: gives logits (N, classes); left on `device`, in eval mode, with the last weights.
        train: the batches.
        val: top-1 in percent of `net` as it is, in eval mode; called after each epoch.
        training: epochs, learning rates, momentum, seed. With 0 epochs the net is only validated.
        weight_decay: of every parameter.
        run: gets `checkpoint.pt` (each epoch, each `checkpoint_seconds`, and when stopped) and `metrics.jsonl`.
        recipe_toml: the resolved recipe; a checkpoint of another one is refused, but for its number of epochs.
        device: where to train.
        reporter: told about steps and epochs.
        before_step: called before the first forward of each step of the optimizer (recomputes the weights' exponents),
            with whether training.freeze_exponents wants them to stay.
        start_top1: of `net` as it comes, validation top-1 in percent: it stays the best until an epoch is as good. None
            where the net is worth nothing yet.
        resume: go on from the run's checkpoint.
        checkpoint_seconds: of training between checkpoints.
        ranks: the processes that train together; None is this one alone.
        teacher: the float net, on `device` and in eval mode, where training.distill is over 0.
        changed: resume under another recipe than the checkpoint's; its batch size only between epochs.
        pretrained: the weights are worth staying close to: leaving them is worth a warning.

    Returns:
        The best weights, and how it went.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the checkpoint holds the last step.
        InputError: a checkpoint that can't be continued, no training images, NaN or Inf, a full disk.

    Source: paper 3.3.
    """
    net.to(device)
    terms = _Terms(training, weight_decay, recipe_toml, train.steps_per_epoch)
    state = _resumable(run, terms, changed) if resume else None
    if training.epochs == 0:
        return _untrained(net, val)
    if train.steps_per_epoch < 1:
        raise InputError("There are no training images.", "give a folder with images, or set training.epochs to 0.")
    optimizer = _optimizer(net, training, weight_decay)
    closeness = Closeness(net, pretrained)
    if state is not None:
        _restore(net, optimizer, state, run)
        _take_over(optimizer, state, terms)
        if state.epoch == training.epochs:
            _settle(net, training, state, before_step)
            reporter.note(f"nothing to do: all {training.epochs} epochs of {run.path} are done")
            return _result(state, nothing_to_do=True)
    ranks = ranks or one_process(device)
    if state is None:
        state = _new_state(net, optimizer, terms, start_top1)
    begun, unwritten = state, state.global_step == 0 or changed  # a changed recipe must outlive a kill, too
    ranks.first_does(lambda: _make_resumable(run, begun, fresh=unwritten))
    update = UpdateStep(net, optimizer, training, ranks, before_step, teacher)
    _train(update, train, val, run, reporter, state, closeness, checkpoint_seconds)
    return _result(state)


def _train(
    update: UpdateStep,
    train: BatchSource,
    val: Callable[[], float],
    run: RunFolder,
    reporter: TrainingReporter,
    state: TrainingState,
    closeness: Closeness,
    checkpoint_seconds: float,
) -> None:
    """The loop, with all that must be undone or closed behind it."""
    ranks = update.ranks
    try:
        with contextlib.ExitStack() as stack:
            log = None
            if ranks.is_first:
                log = stack.enter_context(contextlib.closing(MetricsLog(run / checkpoint.METRICS, state.metrics_bytes)))
            signals = stack.enter_context(StopSignals())
            stack.enter_context(repeatable(ranks.device))
            stack.enter_context(reporter)
            loop = TrainingLoop(update, train, val, run, reporter, state, log, closeness, signals)
            loop.train_to_the_end(checkpoint_seconds)
    except KeyboardInterrupt:
        what = f"Training was stopped at once; {run / checkpoint.CHECKPOINT} is its last checkpoint."
        raise Interrupted(what, "continue with --resume.") from None
    finally:
        update.close()


def _settle(
    net: nn.Module, training: TrainingSection, state: TrainingState, before_step: Callable[[bool], None] | None
) -> None:
    """Leave the net as the end of its training did."""
    if training.ema_decay > 0:
        average = AveragedWeights(net, training.ema_decay)
        average.load(state.average)
        average.put_in()
        if before_step is not None:
            before_step(training.freeze_exponents > 0)
    net.eval()


def _new_state(
    net: nn.Module, optimizer: torch.optim.Optimizer, terms: _Terms, start_top1: float | None
) -> TrainingState:
    agreed = terms.recipe_toml, terms.weight_decay, terms.steps_per_epoch
    state = TrainingState(*agreed, net.state_dict(), optimizer.state_dict())
    if start_top1 is not None:
        state.best, state.best_top1 = copy_of_state(net), start_top1
    return state


def _take_over(optimizer: torch.optim.Optimizer, state: TrainingState, terms: _Terms) -> None:
    """Go on under the recipe of now, which a changed training has another of."""
    for group in optimizer.param_groups:
        group["momentum"], group["weight_decay"] = terms.training.momentum, terms.weight_decay
    state.recipe_toml, state.weight_decay = terms.recipe_toml, terms.weight_decay
    state.steps_per_epoch = terms.steps_per_epoch


def _make_resumable(run: RunFolder, state: TrainingState, *, fresh: bool) -> None:
    """From here on, a kill leaves something to resume."""
    checkpoint.remove_leftovers(run)
    if fresh:
        checkpoint.save_state(run, state)


def _untrained(net: nn.Module, val: Callable[[], float]) -> FinetuneResult:
    net.eval()
    top1 = float(val())
    return FinetuneResult(copy_of_state(net), 0, top1, top1, epochs_done=0, seconds=0.0, steps=0)


def _optimizer(net: nn.Module, training: TrainingSection, weight_decay: float) -> torch.optim.Optimizer:
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    if not weights:
        raise InputError("The network has no weights to train.", "set training.epochs to 0.")
    return torch.optim.SGD(weights, training.lr, training.momentum, weight_decay=weight_decay)


def _resumable(run: RunFolder, terms: _Terms, changed: bool) -> TrainingState:
    """The run's checkpoint, if this training continues it: same recipe, same data, at least the epochs begun."""
    state = checkpoint.load_state(run)
    path = run / checkpoint.CHECKPOINT
    changes = checkpoint.recipe_differences(state.recipe_toml, terms.recipe_toml)
    if not changes and terms.weight_decay != state.weight_decay:
        changes.append(f"weight decay: {state.weight_decay} became {terms.weight_decay}")
    if changed:
        changes = []
    if terms.steps_per_epoch != state.steps_per_epoch and not (changed and state.step_in_epoch == 0):
        changes.append(f"batches in an epoch: {state.steps_per_epoch} became {terms.steps_per_epoch}")
    if changes:
        raise InputError(
            f"{path} belongs to another training ({'; '.join(changes)}).",
            "undo these changes to continue with --resume, or train again from the start with --force.",
        )
    begun = state.epoch + (state.step_in_epoch > 0)
    if terms.training.epochs < begun:
        raise InputError(
            f"{path} is in or after epoch {begun}, but training.epochs is {terms.training.epochs}.",
            f"ask for at least {begun} epochs, or train again from the start with --force.",
        )
    return state


def _restore(net: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, run: RunFolder) -> None:
    try:
        net.load_state_dict(state.net)
        optimizer.load_state_dict(state.optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{run / checkpoint.CHECKPOINT} is of another network: {' '.join(str(error).split())}.",
            "name the same model, or train again from the start with --force.",
        ) from error


def _result(state: TrainingState, *, nothing_to_do: bool = False) -> FinetuneResult:
    return FinetuneResult(
        best_state=state.best,
        best_epoch=state.best_epoch,
        best_top1=state.best_top1,
        last_top1=state.last_top1,
        epochs_done=state.epoch,
        seconds=state.seconds,
        steps=state.global_step,
        nothing_to_do=nothing_to_do,
    )
