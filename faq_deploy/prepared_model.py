"""What `prepare` returns: the quantized net as an ordinary module that knows its recipe and its state."""

from __future__ import annotations

import copy
import json
import weakref
import zlib
from collections.abc import Mapping
from typing import Final, get_args

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils import _pytree as pytree

from engines.errors import InputError
from faq_deploy.batch_norm import BatchNormMode
from faq_deploy.batch_statistics import in_backward_pass
from faq_deploy.net import QuantizedNet
from faq_deploy.place import Target
from faq_deploy.recipe import Recipe
from faq_deploy.shifted import Shifted
from faq_deploy.weight_names import essential, misfit, some

__all__ = ["PreparedModel"]

_FORMAT: Final = 1  # of the signature
_CALIBRATED: Final = -1  # its place in the signature

# Which prepared model a module belongs to: one that two of them share would get the exponents of both.
_OWNERS: weakref.WeakKeyDictionary[nn.Module, weakref.ReferenceType[nn.Module]] = weakref.WeakKeyDictionary()


class PreparedModel(nn.Module):
    """A model on fixed-point grids. Call it, train it and save its `state_dict` as any other module.

    Until `faq_deploy.calibrate` it computes what the float model does. From then on it quantizes: in training mode
    each forward first fits the exponents of the weights to the weights of now (paper 3.1.1), in eval mode they stay.

    Args:
        net: as `rewrite` made it.
        recipe: resolved.
        name: of the model, for the metadata of exported files.
        example: float32, shape (N, C, H, W), N at least 1: images to check an exported file with until calibration
            brings some.
        structure: how the float model packs its outputs; None gives a tensor, or a tuple of several.

    Attributes:
        net: the layers and their graph.
        recipe: what was chosen.
        name: of the model.
        samples: float32 images on the CPU, shape (N, C, H, W), which `export` compares.

    Buffers:
        signature: int64, shape (6,): format, target, bits, batch norm mode, checksum of all grids, and 1 once it is
            calibrated. `load_state_dict` refuses the tensors of another net by it.
    """

    signature: Tensor

    def __init__(
        self,
        net: QuantizedNet,
        recipe: Recipe,
        name: str,
        example: Tensor,
        structure: pytree.TreeSpec | None = None,
    ) -> None:
        super().__init__()
        self._structure = structure
        self.net, self.recipe, self.name = net, recipe, name
        self.samples = example.detach().cpu().clone()
        self._calibrated = False  # the signature's last entry, without a look at the device
        self.register_buffer("signature", torch.tensor([*_signature(net, recipe), 0]))
        self.claim()

    # torch.compile would fuse what must round alike, and what refits exponents in place; the public
    # torch.compiler.disable would import its 2 s of modules wherever this one is imported
    @_disable_dynamo
    def forward(self, images: Tensor) -> object:
        """What the float model returned, of the same images.

        Args:
            images: float32, shape (N, C, H, W).

        Returns:
            Logits, float32, (N, classes). Where the recipe keeps all outputs: what the model returned, a dict, say.
        """
        if self.training and self._calibrated and not in_backward_pass():
            self.net.before_step(False)
        found = self.net(images)
        if self._structure is None:
            return found
        return pytree.tree_unflatten([found] if isinstance(found, Tensor) else list(found), self._structure)

    @property
    def is_calibrated(self) -> bool:
        """Whether the exponents are fixed, and it computes on the grids."""
        return self._calibrated

    @property
    def device(self) -> torch.device:
        """Where its tensors are.

        Raises:
            InputError: on several devices.
        """
        found = {tensor.device for tensor in (*self.net.parameters(), *self.net.buffers())}
        if len(found) > 1:
            raise InputError(
                f"the prepared model lies on {' and '.join(sorted(map(str, found)))}.",
                "move all of it with model.to(device).",
            )
        return found.pop()

    def refresh(self) -> None:
        """Fit the exponents of the weights to the weights of now, as each training forward does by itself.

        For weights that came in another way: averaged, or copied tensor by tensor.

        Raises:
            InputError: it isn't calibrated.
        """
        self.require_calibrated("refresh it")
        self.net.refresh()

    def require_calibrated(self, what: str) -> None:
        """Refuse to go on without exponents.

        Args:
            what: was asked for, as in "can't WHAT".

        Raises:
            InputError: it isn't calibrated.
        """
        if not self._calibrated:
            raise InputError(
                f"the model is not calibrated: can't {what}.", "call faq_deploy.calibrate(model, batches) first."
            )

    def mark(self, *, calibrated: bool) -> None:
        """Take over whether the exponents are fixed; all layers quantize from then on, or compute in float."""
        self._calibrated = calibrated
        self.signature[_CALIBRATED] = int(calibrated)
        self.net.set_mode("quantize" if calibrated else "float")
        for quantizer in self.net.quantizers().values():
            quantizer.observer = None

    def frozen(self) -> QuantizedNet:
        """A copy of the net on the CPU, in eval mode: what is exported. The model itself stays as it is."""
        net = copy.deepcopy(self.net).cpu().to(memory_format=torch.contiguous_format)
        return net.eval().requires_grad_(False)

    def claim(self) -> None:
        """Make sure that no other prepared model holds modules of this one.

        Raises:
            InputError: another one does.
        """
        for module in self.net.modules():
            reference = _OWNERS.get(module)
            owner = None if reference is None else reference()
            if owner is not None and owner is not self and any(other is module for other in owner.modules()):
                name = next(name for name, other in self.named_modules() if other is module)
                raise InputError(
                    f"{name} belongs to two prepared models: calibrating or training one would change the other.",
                    "copy.deepcopy one of them, or prepare the float model once for each.",
                )
            _OWNERS[module] = weakref.ref(self)

    def load_state_dict(
        self, state_dict: Mapping[str, object], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Take over weights, exponents and whether it is calibrated; nothing changes where they don't fit.

        Args:
            state_dict: of a model that was prepared alike.
            strict: refuse names that are missing or unknown.
            assign: keep the given tensors instead of copying their values.

        Raises:
            InputError: it is of another net, target or recipe, or names or shapes don't fit.
        """
        own, given = self.state_dict(), state_dict
        if "signature" in given:
            _refuse_other(given["signature"], self.signature)
        optional = {f"{name}.offset" for name, module in self.named_modules() if isinstance(module, Shifted)}
        missing = essential(key for key in own if key not in given and key not in optional)
        unknown = essential(key for key in given if key not in own)
        wrapped = any(key.endswith(".signature") for key in unknown)
        if strict and (missing or unknown) and ("signature" in given or wrapped):
            found = misfit(own, given, missing, unknown, "state dict")
            raise InputError(f"the state dict does not fit the model: {found.what}.", found.remedy)
        _refuse_shapes(own, given)
        loaded: _IncompatibleKeys = super().load_state_dict(state_dict, strict, assign)
        return loaded

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        given = _refuse_other(state_dict.get(f"{prefix}signature"), self.signature)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.mark(calibrated=bool(given[_CALIBRATED]))


def _refuse_other(given: object, own: Tensor) -> Tensor:
    """The signature of a state dict, unless it is another net's."""
    if not isinstance(given, Tensor) or given.is_meta:
        raise InputError(
            "the state dict is not that of a prepared model.",
            "load float weights into the float model, and prepare it then.",
        )
    difference = _difference(given.tolist(), own.tolist())
    if difference:
        raise InputError(
            f"the state dict is of another net: {difference}.",
            "prepare the model with the target and the recipe that the state was saved with.",
        )
    return given


def _refuse_shapes(own: Mapping[str, Tensor], given: Mapping[str, object]) -> None:
    shapes = {key: value.shape for key, value in given.items() if isinstance(value, Tensor)}
    differ = [key for key in own if key in shapes and shapes[key] != own[key].shape]
    if differ:
        said = some(f"{key} is {[*shapes[key]]} instead of {[*own[key].shape]}" for key in differ)
        raise InputError(
            f"the state dict does not fit the model: {len(differ)} of {len(own)} entries have another shape ({said}).",
            "prepare the float model that it was saved from, with as many classes.",
        )


def _signature(net: QuantizedNet, recipe: Recipe) -> list[int]:
    """All but the last entry."""
    grids = [(name, q.grid.bits, q.grid.signed, q.clip) for name, q in net.quantizers().items()]
    weights = [(name, w.grid.bits, w.per_channel) for name, w in net.weighted().items()]
    checksum = zlib.crc32(json.dumps([grids, weights]).encode())
    target, norm = get_args(Target).index(recipe.target), get_args(BatchNormMode).index(recipe.quantizer.batch_norm)
    return [_FORMAT, target, recipe.bits, norm, checksum]


def _difference(given: list[int], own: list[int]) -> str:
    """In words, or "" where tensors of one fit the other."""
    if len(given) != len(own) or given[0] != own[0]:
        return f"its signature has format {given[0] if given else 'none'}, this version reads {own[0]}"
    words: list[tuple[str, tuple[object, ...]]] = [
        ("target", get_args(Target)),
        ("bits", ()),
        ("batch norm", get_args(BatchNormMode)),
    ]
    for place, (word, names) in enumerate(words, start=1):
        if given[place] != own[place]:
            theirs, ours = (names[n] if n < len(names) else n for n in (given[place], own[place]))
            return f"its {word} is {theirs}, the model's is {ours}"
    return "" if given[-2] == own[-2] else "its layers have other grids, or other names"
