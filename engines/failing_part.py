"""When a builder refuses a network: where in the PyTorch model that is, and the smallest part refused alike, saved."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import onnx

from engines.engine_source import EngineSource, temporary_onnx
from engines.files import atomic_path
from engines.onnx_metadata import modules_of
from engines.qdq_graph import label
from engines.reduce import reduce
from engines.tensorrt import BuilderRefusal

__all__ = ["FAILING", "explained", "with_modules"]

FAILING: Final = "failing.onnx"

_NOT_LAYERS: Final = ("QuantizeLinear", "DequantizeLinear", "Constant", "Identity", "Cast")
_MOST_NAMES: Final = 3
# "node 'conv1' (Conv)" of the parser; "operation 'conv1'", "node conv1 + relu" and "[conv1...fc]" of the builder
_NAMED: Final = re.compile(r"(?<!\w)'(?P<quoted>[^']+)'(?: \((?P<operator>\w+)\))?|(?<=node )(?P<plain>[^\s',:;(]+)")

Build = Callable[[Path], object]


def explained(
    refusal: BuilderRefusal, source: EngineSource, onnx_path: Path, folder: Path, build: Build, *, seconds: float = 60.0
) -> BuilderRefusal:
    """Say more of a refusal: the user's own file and modules, and the smallest part that fails, saved.

    Args:
        refusal: as the builder gave it.
        source: what was to be built.
        onnx_path: the user's file, which messages name.
        folder: of the engine; the part is saved there as `failing.onnx`.
        build: builds a file and throws the engine away; raises as for `source`.
        seconds: for the search.

    Returns:
        The refusal to show.

    Raises:
        WriteError: the part could not be saved.
    """
    modules = modules_of(source.model)
    signature = _signature(refusal, source.path)

    def fails(part: onnx.ModelProto) -> bool:
        with temporary_onnx(part) as path:
            try:
                build(path)
            except BuilderRefusal as other:
                return _signature(other, path) == signature
        return False

    part = reduce(source.model, fails, seconds=seconds)
    what = with_modules(refusal.what.replace(str(source.path), str(onnx_path)), modules)
    if part is source.model:
        return BuilderRefusal(what, refusal.remedy)
    with atomic_path(folder / FAILING) as temporary, temporary_onnx(part) as path:
        temporary.write_bytes(path.read_bytes())
    return BuilderRefusal(f"{what} {_smallest(part, modules)}", f"{refusal.remedy} See {folder / FAILING}.")


def with_modules(text: str, modules: Mapping[str, str]) -> str:
    """A message with the PyTorch module behind each node that it names.

    Args:
        text: of a parser or builder.
        modules: as `modules_of` gives them.

    Returns:
        Such as "node 'conv1' (Conv, module features.0): not supported".
    """

    def add(match: re.Match[str]) -> str:
        module = _module(match["quoted"] or match["plain"], modules)
        if module is None:
            return match[0]
        if match["operator"]:
            return match[0].removesuffix(")") + f", module {module})"
        return f"{match[0]} (module {module})"

    return _NAMED.sub(add, text)


def _module(name: str, modules: Mapping[str, str]) -> str | None:
    """A pass names what it adds after the node that it adds it for: "fc.padded" belongs to "fc"."""
    while name not in modules:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return modules[name]


def _signature(refusal: BuilderRefusal, path: Path) -> str:
    """A refusal without names and numbers: parts of a network fail in the same way if these are equal."""
    text = refusal.what.replace(str(path), "")
    text = re.sub(r"(?<!\w)'[^']*'|(?<=node )\S+|\[[^\]]*\]", "", text)
    return re.sub(r"\d+", "", text)


def _smallest(part: onnx.ModelProto, modules: Mapping[str, str]) -> str:
    layers = [node for node in part.graph.node if node.op_type not in _NOT_LAYERS] or list(part.graph.node)
    named = [(label(node), _module(node.name, modules)) for node in layers[:_MOST_NAMES]]
    texts = [f"{name} (module {module})" if module else name for name, module in named]
    more = f" and {len(layers) - _MOST_NAMES} more" if len(layers) > _MOST_NAMES else ""
    return f"The smallest part that is refused in the same way: {', '.join(texts)}{more}."
