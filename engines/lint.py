"""Rules on QDQ ONNX: what a runtime would refuse, round differently, or silently run in float."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import onnx

from engines import lint_int4, lint_kernels, lint_layers, lint_pools, lint_quantizers
from engines.errors import InputError
from engines.int4_storage import unpack_int4
from engines.lint_view import Hit
from engines.qdq_graph import QdqGraph, read_graph

__all__ = ["RULES", "Finding", "Level", "Rule", "lint"]

Level = Literal["error", "warning", "info"]

_ANY: Final = frozenset({"tensorrt", "onnxruntime", "paper", None})
_TENSORRT: Final = frozenset({"tensorrt"})
_NOT_ORT: Final = frozenset({"tensorrt", None})
_ENGINES: Final = frozenset({"tensorrt", "onnxruntime", None})
_ORT: Final = frozenset({"onnxruntime"})


@dataclass(frozen=True)
class Rule:
    """One rule.

    Args:
        level: error: wrong results, or a refusal; warning: slow in silence; info: good to know.
        targets: for which it holds; None stands for "no target given".
        check: finds the places.
        as_stored: it looks at weights stored in 4 bits as they are; all others see them as INT8.
    """

    level: Level
    targets: frozenset[str | None]
    check: Callable[[QdqGraph], Iterator[Hit]]
    as_stored: bool = False


@dataclass(frozen=True)
class Finding:
    """One place where a rule is broken.

    Args:
        rule: id, a key of RULES.
        level: of the rule.
        node: name of the node.
        message: one sentence that names the thing.
        remedy: what to do about it.
    """

    rule: str
    level: Level
    node: str
    message: str
    remedy: str


RULES: Final[Mapping[str, Rule]] = {
    "scale-positive": Rule("error", _ANY, lint_quantizers.scale_positive),
    "explicit-zero-point": Rule("error", _ANY, lint_quantizers.explicit_zero_point),
    "per-channel-activation": Rule("error", _ANY, lint_quantizers.per_channel_activation),
    "zero-point": Rule("error", _TENSORRT, lint_quantizers.nonzero_zero_point),
    "unsigned-codes": Rule("error", _TENSORRT, lint_quantizers.unsigned_codes),
    "clip-on-codes": Rule("error", _TENSORRT, lint_quantizers.clip_on_codes),
    "float-clip": Rule("error", _TENSORRT, lint_quantizers.misplaced_float_clip),
    "bias-grid": Rule("error", _ANY, lint_layers.bias_off_grid),
    "conv-transpose-axis": Rule("error", _NOT_ORT, lint_layers.per_channel_conv_transpose),
    "pool-ceil-mode": Rule("error", _ANY, lint_pools.ceil_mode_over_padding),
    "ir-version": Rule("error", _ANY, lint_layers.ir_version_too_new),
    "int4-opset": Rule("error", _ANY, lint_int4.int4_opset, as_stored=True),
    "int4-odd": Rule("error", _TENSORRT, lint_int4.int4_odd, as_stored=True),
    "scalar-scale": Rule("warning", _ANY, lint_quantizers.rank_one_scale),
    "one-sided-layer": Rule("warning", _ANY, lint_layers.one_sided_layer),
    "conv-transpose-dilated": Rule("warning", _TENSORRT, lint_layers.strided_and_dilated_conv_transpose),
    "skip-input": Rule("warning", _NOT_ORT, lint_layers.float_skip_input),
    "add-inputs": Rule("warning", _ORT, lint_layers.float_add_input),
    "grouped-int8": Rule("warning", _NOT_ORT, lint_kernels.grouped_int8),
    "concat-scales": Rule("warning", _ENGINES, lint_layers.unequal_concat_scales),
    "transposed-weight": Rule("warning", _ANY, lint_layers.transposed_weight),
    "pool-ties": Rule("warning", _ENGINES, lint_pools.pool_can_tie),
    "int4-convolution": Rule("warning", _NOT_ORT, lint_int4.int4_convolution, as_stored=True),
    "scale-power-of-two": Rule("info", _ANY, lint_quantizers.scale_power_of_two),
    "half-precision-scale": Rule("info", _ANY, lint_quantizers.half_precision_scale),
    "packed-weights": Rule("info", _NOT_ORT, lint_int4.packed_weights, as_stored=True),
}


def lint(model: onnx.ModelProto, target: str | None = None) -> list[Finding]:
    """Check a QDQ model, ours or anybody's.

    Args:
        model: with its weights loaded, as stored (`load_model(path, unpack=False)`): of an unpacked one the rules
            about INT4 have nothing to say.
        target: "tensorrt", "onnxruntime" or "paper"; None checks what holds for every engine.

    Returns:
        Findings, errors first, then warnings, then information; each level in the order of RULES.

    Raises:
        InputError: there is no such target.
    """
    if target not in _ANY:
        raise InputError(f"there is no target {target!r}.", "pass tensorrt, onnxruntime or paper.")
    stored = read_graph(model)
    unpacked = unpack_int4(model)
    graph = stored if unpacked is model else read_graph(unpacked)
    return [
        Finding(name, rule.level, hit.node, hit.message, hit.remedy)
        for level in ("error", "warning", "info")
        for name, rule in RULES.items()
        if rule.level == level and target in rule.targets
        for hit in rule.check(stored if rule.as_stored else graph)
    ]
