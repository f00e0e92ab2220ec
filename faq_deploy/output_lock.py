"""The lock of the folder that a training writes to, held by one of its processes for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from engines.folder_lock import locked
from faq_deploy.new_run import QuantizeOptions
from faq_deploy.output_folder import check_output
from faq_deploy.ranks import Ranks

__all__ = ["output_of"]


@contextlib.contextmanager
def output_of(options: QuantizeOptions, ranks: Ranks, verb: str) -> Iterator[None]:
    """Let no other command write to `options.output` until the block ends.

    A folder that was absent goes again where the block fails before it puts something there.

    Args:
        options: of the training; without `resume`, the folder may be made.
        ranks: its processes; the first one holds the lock.
        verb: "quantize" or "train".

    Raises:
        InputError: as `check_output`, which says best why a folder won't do.
        FolderInUse: another command writes there.
    """
    with contextlib.ExitStack() as held:

        def hold() -> None:
            if not options.resume:
                check_output(options.output, force=options.force)
            held.enter_context(locked(options.output, verb, make=not options.resume))

        ranks.first_does(hold)
        yield
