"""One architecture, tried in a process of its own: traced, quantized, exported, compared; the outcome as JSON.

python benchmarks/trial.py torchvision:resnet18
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else benchmarks/calibration.py hides the package

from benchmarks.common import quantized, recipe_of, settle

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ATTENTION", "TARGETS", "Outcome", "Trial", "attempt", "limit_memory", "peak_mib"]

TARGETS: Final = ("tensorrt", "onnxruntime")
ATTENTION: Final = "attention is not supported"  # how a transformer is refused

_ORDER: Final = (*TARGETS, "")
_SIZES: Final = (64, 96, 160)  # pixels: tried in turn before the architecture's own
_USUAL: Final = 224  # a few take other sizes with their published weights than without
_CALIBRATION, _COMPARED = 8, 4  # images

Status = Literal["exact", "refused", "differs", "bug"]


@dataclass(frozen=True)
class Outcome:
    """What became of an architecture in one target.

    Attributes:
        status: `exact`: identical codes and logits in PyTorch, the integer reference and onnxruntime; `refused`: an
            InputError; `differs`: other codes somewhere; `bug`: any other exception.
        reason: the error's sentence.
        nodes, quantizers, layers, proven: of the quantized net, and of its certificate.
        codes: that were compared with each of the two runtimes.
        onnx_bytes: of the file.
        seconds: of all.
    """

    status: Status
    reason: str = ""
    nodes: int = 0
    quantizers: int = 0
    layers: int = 0
    proven: int = 0
    codes: int = 0
    onnx_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Trial:
    """An architecture's outcomes.

    Attributes:
        model: as the command line names it.
        family: the torchvision name or timm's module.
        size: of the images, in pixels.
        parameters: in the float model.
        peak_mib: resident memory.
        outcomes: by target; the one of "" stands for a process that was stopped (time or memory).
    """

    model: str
    family: str
    size: int = 0
    parameters: int = 0
    peak_mib: int = 0
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """Of all targets: the worst."""
        order = ("bug", "differs", "refused", "exact")
        found = {o.status for o in self.outcomes.values()}
        return next((status for status in order if status in found), "bug")

    @property
    def is_transformer(self) -> bool:
        """Refused because it multiplies activations by activations."""
        return any(ATTENTION in o.reason for o in self.outcomes.values())

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Trial:
        """What `to_json` wrote."""
        raw = json.loads(text)
        outcomes = {target: Outcome(**raw["outcomes"][target]) for target in _ORDER if target in raw["outcomes"]}
        return Trial(**{**raw, "outcomes": outcomes})


def limit_memory(gib: float) -> None:
    """Let this process fail to allocate beyond `gib` rather than the whole machine run out."""
    limit = int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def peak_mib() -> int:
    """The largest resident memory of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def attempt(model: str, family: str, targets: Sequence[str]) -> Trial:
    """Try one architecture with seeded random weights on noise images."""
    import torch

    from faq_deploy.models import load_model

    loaded = load_model(model, "random", seed=0)
    net = loaded.module
    parameters = sum(p.numel() for p in net.parameters())
    channels, *_, own = loaded.input_size or (3, 224, 224)
    size = next((s for s in (*_SIZES, own, _USUAL) if _runs(net, channels, s)), own)
    images = torch.randn(_CALIBRATION, channels, size, size, generator=torch.Generator().manual_seed(1))
    _wake(net)
    settle(net, images)
    outcomes: dict[str, Outcome] = {}
    for target in targets:
        refused = next((o for o in outcomes.values() if o.status == "refused"), None)
        outcomes[target] = refused or _outcome(net, images, target)  # the model is refused, whatever the target
    return Trial(model, family, size, parameters, peak_mib(), outcomes)


def _outcome(net: nn.Module, images: Tensor, target: str) -> Outcome:
    from engines.errors import InputError
    from faq_deploy.onnx_export import export_onnx
    from faq_deploy.versions import engine_versions

    start = time.perf_counter()
    try:
        stored = quantized(net, images, recipe_of(8, target))
        with tempfile.TemporaryDirectory() as folder:
            checked = images[:_COMPARED].numpy()
            path = Path(folder) / "model.onnx"
            result = export_onnx(stored, path, checked, versions=engine_versions(), checkpoint_sha256="0" * 64)
    except InputError as error:
        return Outcome("refused", error.what, seconds=time.perf_counter() - start)
    except Exception as error:  # whatever it is, it goes into the table
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        what = f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:300]}"
        return Outcome("bug", what, seconds=time.perf_counter() - start)
    differing = [a for a in result.agreements if not a.equal]
    reason = "; ".join(f"{a.runtime}: {a.differing} codes, first in {a.first}" for a in differing)
    return Outcome(
        "differs" if differing else "exact",
        reason,
        nodes=len(stored.net.graph.nodes),
        quantizers=len(stored.net.quantizers()),
        layers=len(result.bounds),
        proven=sum(b.proven for b in result.bounds),
        codes=result.agreements[0].codes_compared,
        onnx_bytes=result.bytes,
        seconds=time.perf_counter() - start,
    )


def _runs(net: nn.Module, channels: int, size: int) -> bool:
    """Whether the float model takes such images: many have fixed sizes, or too many strides."""
    import torch

    try:
        with torch.inference_mode():
            return bool(torch.isfinite(net(torch.zeros(2, channels, size, size))).all())
    except Exception:  # of the model's own code
        return False


def _wake(net: nn.Module) -> None:
    """Fill parameters that start as zeros, else the branches that they scale would compute nothing."""
    import torch

    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.endswith("bias") and not bool(parameter.any()):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)


def main() -> None:
    """Try and print one line of JSON."""
    parser = argparse.ArgumentParser(description="One architecture.", allow_abbrev=False)
    parser.add_argument("model", help="such as timm:resnet18")
    parser.add_argument("--family", default="", help="for the table")
    parser.add_argument("--target", choices=TARGETS, action="append", help="repeatable; both if absent")
    parser.add_argument("--memory-gib", type=float, default=8.0, help="limit of this process")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    limit_memory(arguments.memory_gib)
    trial = attempt(arguments.model, arguments.family, arguments.target or TARGETS)
    print(trial.to_json(), flush=True)


if __name__ == "__main__":
    main()
