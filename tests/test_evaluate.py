"""What an evaluation does with an engine whose logits depend on the batch."""

from __future__ import annotations

import numpy as np
import pytest

from engines.runner import FloatArray
from faq_deploy.evaluate import _differences
from faq_deploy.gate import judge
from faq_deploy.limits import Limits
from faq_deploy.stage_runs import _run_batch
from faq_deploy.stages import Tally


class Runner:
    """Logits that are right alone, and beside them in a batch of `wrong`."""

    name = "some engine"

    def __init__(self, wrong: int = 0) -> None:
        self.wrong = wrong

    def __call__(self, batch: FloatArray) -> FloatArray:
        logits = np.stack([batch[:, 0, 0, 0], batch[:, 0, 0, 1]], axis=1)
        return logits + np.float32(0.25) if len(batch) == self.wrong else logits

    def close(self) -> None:
        self.wrong = 0


@pytest.mark.parametrize(("in_float", "gates", "exit_code"), [(False, 3, 1), (True, 2, 0)])
def test_engine_that_depends_on_the_batch_fails_unless_parts_are_in_float(
    in_float: bool, gates: int, exit_code: int
) -> None:
    images = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)
    labels = np.array([1, 1, 1])
    quantized = Tally("PyTorch quantized", "quantized", Runner())
    engine = Tally("engine e", "engine", Runner(wrong=8), batches=(2, 8))
    _run_batch(images, labels, quantized, [engine], in_float)
    found, verdict = judge([quantized.stage(), engine.stage()], Limits())
    assert (len(found), verdict.exit_code) == (gates, exit_code)
    said = "engine e: image 0 gets other logits in a batch of 8 (at position 0) than alone: 2 differ, by up to 0.25"
    assert list(_differences([quantized, engine])) == [said]
