"""In-place ops of plain networks made functional without torch's second trace, which took half of `prepare`'s time.

torch.export keeps `relu_` and `add_`; `run_decompositions` traces the program once more to get rid of them. A network
of the ops below needs only this: each of them makes a new tensor (flatten alone gives a view), so that an in-place op
changes nothing but the tensor that it names.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import fx
from torch.export import ExportedProgram

from faq_deploy.dropout_marks import MARKS

__all__ = ["is_plain", "made_functional"]

_ATEN: Final = torch.ops.aten

_FUNCTIONAL: Final[dict[Any, Any]] = {
    _ATEN.relu_.default: _ATEN.relu.default,
    _ATEN.hardtanh_.default: _ATEN.hardtanh.default,
    _ATEN.silu_.default: _ATEN.silu.default,
    _ATEN.hardswish_.default: _ATEN.hardswish.default,
    _ATEN.add_.Tensor: _ATEN.add.Tensor,
}
_NEW: Final[frozenset[Any]] = frozenset(
    {
        *_FUNCTIONAL.values(),
        *(_ATEN.conv2d.default, _ATEN.batch_norm.default, _ATEN.linear.default, _ATEN.mul.Tensor, _ATEN.cat.default),
        *(_ATEN.sigmoid.default, _ATEN.hardsigmoid.default),
        *(_ATEN.max_pool2d.default, _ATEN.avg_pool2d.default, _ATEN.adaptive_avg_pool2d.default, _ATEN.mean.dim),
        *MARKS,
    }
)
_VIEW: Final = _ATEN.flatten.using_ints


def is_plain(program: ExportedProgram) -> bool:
    """Whether every op is known here, and no in-place op changes an input, a parameter, or a tensor that has a view.

    Args:
        program: of torch.export, before decompositions.
    """
    owner: dict[fx.Node, fx.Node] = {}  # of the memory that an in-place op's result shares
    viewed: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target == _VIEW:
            viewed |= {node, *(owner.get(read, read) for read in node.all_input_nodes)}
        elif node.target in _FUNCTIONAL:
            changed = node.args[0]
            if not isinstance(changed, fx.Node) or changed.op != "call_function":
                return False
            owner[node] = owner.get(changed, changed)
            if owner[node] in viewed:
                return False
        elif node.target not in _NEW:
            return False
    return True


def made_functional(program: ExportedProgram) -> ExportedProgram:
    """The same program without in-place ops; those who read a changed tensor later read the op's result.

    Args:
        program: a plain one; changed in place.
    """
    places = {node: place for place, node in enumerate(program.graph.nodes)}
    for node, place in places.items():
        if node.target == _VIEW:  # as torch calls it then: nodes are named for it
            node.target, node.args, node.kwargs = _ATEN.view.default, (node.args[0], list(node.meta["val"].shape)), {}
        if node.target not in _FUNCTIONAL:
            continue
        node.target = _FUNCTIONAL[node.target]
        changed = node.args[0]
        assert isinstance(changed, fx.Node)
        for reader in [reader for reader in changed.users if places[reader] > place]:
            reader.replace_input_with(changed, node)
    return program
