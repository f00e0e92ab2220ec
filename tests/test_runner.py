"""C16: what runs on a CPU takes a batch in any memory layout; tests of the TensorRT runner say the same of that one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engines.ort import OrtRunner
from engines.reference import ReferenceRunner
from engines.runner import FloatArray, Runner
from tests.onnx_nets import images, residual_net, saved

LAYOUTS: dict[str, Callable[[FloatArray], npt.NDArray[np.float32]]] = {
    "Fortran order": np.asfortranarray,
    "channels last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "every second image": lambda x: np.repeat(x, 2, axis=0)[::2],
    "mirrored view": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "big endian": lambda x: x.astype(">f4"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [ReferenceRunner, OrtRunner])
def test_every_layout_of_the_same_numbers_gives_the_same_logits(
    kind: Callable[[Path], Runner], layout: str, tmp_path: Path
) -> None:
    runner = kind(saved(residual_net("tensorrt", 0), tmp_path))
    batch = images(3, 4, 33)
    same = LAYOUTS[layout](batch)
    assert np.array_equal(same, batch)
    assert (same.strides, same.dtype.byteorder) != (batch.strides, batch.dtype.byteorder)
    assert np.array_equal(runner(same).view(np.uint32), runner(batch).view(np.uint32))
