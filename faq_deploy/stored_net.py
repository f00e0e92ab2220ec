"""A quantized net on disk: graph, weights, exponents and what is needed to run it, with no user code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from engines.errors import InputError
from engines.files import atomic_path
from engines.preprocess import Preprocessing
from faq_deploy.graph import Graph
from faq_deploy.net import QuantizedNet
from faq_deploy.recipe import Recipe, dump_toml, parse_recipe
from faq_deploy.rewrite import assemble
from faq_deploy.torch_file import read_torch_file, write_torch_file

__all__ = ["NetFacts", "StoredNet", "load_net", "save_net", "write_net"]

_FORMAT: Final = 1


class NetFacts(BaseModel):
    """What a run knows about its net besides the numbers.

    Attributes:
        model: as named on the command line.
        weights: where they came from, in words.
        weights_sha256: of the checkpoint file, if there was one.
        classes: names, in the order of the logits.
        preprocessing: of every image that goes in.
        ranges: one record an activation quantizer (see `ActivationRange`).
        epoch: epochs of fine-tuning behind these weights; 0 if calibrated only.
        kept: which weights these are: `float` (before fine-tuning), `best` or `last`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    weights: str = ""
    weights_sha256: str | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    ranges: list[dict[str, float | int | str | bool]]
    epoch: int = 0
    kept: str = "float"


class StoredNet(BaseModel):
    """A loaded file: the net in eval and quantized mode, its recipe and its facts."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    net: QuantizedNet
    recipe: Recipe
    facts: NetFacts


def save_net(path: Path, net: QuantizedNet, recipe: Recipe, facts: NetFacts) -> None:
    """Write a net, whole or not at all.

    Raises:
        InputError: the disk is full or the folder can't be written.
    """
    with atomic_path(path) as temporary:
        write_net(temporary, net, recipe, facts)


def write_net(path: Path, net: QuantizedNet, recipe: Recipe, facts: NetFacts) -> None:
    """Write a net to a file that has no name yet, as in `atomic_path`. Tensors and strings only: nothing unpickles.

    Raises:
        OSError: the disk is full.
    """
    record = {
        "format": _FORMAT,
        "graph": net.graph.to_json(),
        "recipe": dump_toml(recipe),
        "facts": facts.model_dump_json(),
        "state": {key: value.detach().cpu() for key, value in net.state_dict().items()},
    }
    write_torch_file(path, record)


def load_net(path: Path) -> StoredNet:
    """Read what `save_net` wrote.

    Raises:
        InputError: damaged, from a newer version, or not such a file.
    """
    remedy = "run `faq-deploy quantize` again."
    record: dict[str, Any] = read_torch_file(path, _FORMAT, remedy)
    try:
        recipe = parse_recipe(record["recipe"], f"The recipe in {path}")
        facts = NetFacts.model_validate_json(record["facts"])
        net = assemble(Graph.from_json(record["graph"]), _parameters(record["state"]), recipe)
        net.load_state_dict(record["state"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError, InputError) as error:
        raise InputError(f"{path} is damaged, or not a file of faq-deploy.", remedy) from error
    net.set_mode("quantize")
    return StoredNet(net=net.eval(), recipe=recipe, facts=facts)


def _parameters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("layers."): value for key, value in state.items()}
