"""Which of a model's outputs `prepare` keeps, and that none is left out without a word."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from engines.errors import InputError
from faq_deploy.capture import USUAL_OUTPUTS, choose_outputs

__all__ = ["OutputWarning", "outputs_said"]


class OutputWarning(UserWarning):
    """Outputs of a model were left out without being named."""


def outputs_said(outputs: Collection[str], wanted: str | None) -> tuple[str, ...]:
    """As `choose_outputs`, but of several outputs none goes without a word.

    Args:
        outputs: labels of what the model returns.
        wanted: a label, `*` for all, or None where nothing was said.

    Raises:
        InputError: as there; or nothing was said, and no output has one of the names that logits usually have.
    """
    chosen = choose_outputs(outputs, wanted)
    if wanted is not None or len(outputs) == 1:
        return chosen
    names = ", ".join(outputs)
    if chosen[0] not in USUAL_OUTPUTS:
        raise InputError(
            f"the model returns {len(outputs)} outputs, {names}, and which of them to keep is not said.",
            f'pass output="*" to prepare to keep all, or one of them, such as output="{chosen[0]}".',
        )
    warnings.warn(
        f'the model returns {names}: {chosen[0]} is kept, the rest is left out. output="*" keeps all, '
        f'output="{chosen[0]}" leaves them out without this line.',
        OutputWarning,
        stacklevel=5,  # the caller of prepare, which calls rewrite, which calls capture
    )
    return chosen
