"""Target onnxruntime on an emulated CPU without VNNI: the default form is exact there, `--cpu vnni` is not."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from faq_deploy.agreement import torch_codes
from tests.nets import Inverted, PreActivation, Small, with_statistics
from tests.quantized import images, make_recipe, quantized_net
from tests.test_onnx_export import run_export

QEMU = shutil.which("qemu-x86_64")
pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed (Debian package qemu-user)"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator runs this machine's x86-64 Python"),
]

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[3])
from engines.ort import OrtRunner, cpu_features
stored = np.load(sys.argv[2])
print(int((OrtRunner(Path(sys.argv[1]), threads=1)(stored["images"]) != stored["logits"]).sum()))
"""


def differing_logits(model: nn.Module, cpu: str, folder: Path) -> int:
    stored = quantized_net(with_statistics(model), make_recipe("onnxruntime", cpu=cpu))
    path = run_export(stored, folder).path
    signs = torch.randint(0, 2, (8, 3, 16, 16), generator=torch.Generator().manual_seed(1)) * 2 - 1
    data = np.concatenate([images(8, seed=3).numpy(), (signs * 1e4).float().numpy()])
    np.savez(folder / "io.npz", images=data, logits=torch_codes(stored.net, data)[1])
    assert QEMU is not None
    command = [QEMU, "-cpu", "Haswell", sys.executable, "-c", PROGRAM]
    command += [str(path), str(folder / "io.npz"), str(Path(__file__).parents[1])]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return int(result.stdout)


@pytest.mark.parametrize("make", [Small, PreActivation, Inverted])
def test_default_form_is_exact_without_vnni(make: type[nn.Module], tmp_path: Path) -> None:
    assert differing_logits(make(), "any", tmp_path) == 0


def test_eight_bit_codes_saturate_without_vnni(tmp_path: Path) -> None:
    assert differing_logits(Small(16), "vnni", tmp_path) > 0
