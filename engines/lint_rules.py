"""The lint rules: id, level, what they hold for, what they say; each has a page in docs/lint.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from engines import (
    lint_chains,
    lint_file,
    lint_int4,
    lint_kernels,
    lint_layers,
    lint_pools,
    lint_quantizers,
    lint_sums,
)
from engines.lint_view import Hit
from engines.qdq_graph import QdqGraph

__all__ = ["PAGES", "RULES", "Level", "Rule", "page_of"]

Level = Literal["error", "warning", "info"]

PAGES: Final = "docs/lint.md"
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
        about: what it demands, in one sentence.
        check: finds the places.
        sees: what the check is given. "file" is the model alone, whose weights may be anywhere; "stored" has weights of
            4 bits as they are stored; "codes" has them as INT8.
    """

    level: Level
    targets: frozenset[str | None]
    about: str
    check: Callable[[QdqGraph], Iterator[Hit]]
    sees: Literal["file", "stored", "codes"] = "codes"


RULES: Final[Mapping[str, Rule]] = {
    "external-data": Rule(
        "error", _ANY, "Weights lie in the file or beside it.", lint_file.external_data, sees="file"
    ),
    "missing-opset": Rule(
        "error", _ANY, "The file names the version of each operator set that it uses.", lint_file.missing_opset,
        sees="file",
    ),
    "ir-version": Rule(
        "error", _ANY, "The IR version is no newer than the operator set needs.", lint_file.ir_version_too_new
    ),
    "scale-positive": Rule(
        "error", _ANY, "Every scale is a positive, normal float32 number.", lint_quantizers.scale_positive
    ),
    "dynamic-scale": Rule(
        "error", _ANY, "Scales and zero points are constants.", lint_quantizers.dynamic_scale
    ),
    "explicit-zero-point": Rule(
        "error", _ANY, "Below operator set 21 every quantizer has a zero point.", lint_quantizers.explicit_zero_point
    ),
    "per-channel-activation": Rule(
        "error", _ANY, "An activation has one scale.", lint_quantizers.per_channel_activation
    ),
    "zero-point": Rule("error", _TENSORRT, "Zero points are 0.", lint_quantizers.nonzero_zero_point),
    "unsigned-codes": Rule("error", _TENSORRT, "Codes are signed.", lint_quantizers.unsigned_codes),
    "clip-on-codes": Rule(
        "error", _TENSORRT, "No Clip stands between QuantizeLinear and DequantizeLinear.", lint_quantizers.clip_on_codes
    ),
    "float-clip": Rule(
        "error", _TENSORRT, "A Clip stands before QuantizeLinear, and does more than int8 does by itself.",
        lint_quantizers.misplaced_float_clip,
    ),
    "bias-grid": Rule(
        "error", _ANY, "The bias of a quantized layer is a whole number of accumulator steps, within int32.",
        lint_layers.bias_off_grid,
    ),
    "conv-transpose-axis": Rule(
        "error", _NOT_ORT, "The weight of a transposed convolution has one scale.",
        lint_layers.per_channel_conv_transpose,
    ),
    "pool-ceil-mode": Rule(
        "error", _ANY, "An average pool does not combine ceil_mode with count_include_pad.",
        lint_pools.ceil_mode_over_padding,
    ),
    "int4-opset": Rule(
        "error", _ANY, "A file with INT4 asks for operator set 21 or newer.", lint_int4.int4_opset, sees="stored"
    ),
    "int4-odd": Rule(
        "error", _TENSORRT, "The last dimension of a tensor stored in INT4 is even.", lint_int4.int4_odd, sees="stored"
    ),
    "operator-format": Rule(
        "warning", _ANY, "The file is in QDQ format, not in operators on codes.", lint_file.operator_format
    ),
    "double-quantization": Rule(
        "warning", _ANY, "A tensor is quantized once.", lint_chains.double_quantization
    ),
    "dead-quantizer": Rule("warning", _ANY, "Every quantizer is read.", lint_chains.dead_quantizer),
    "scalar-scale": Rule(
        "warning", _ANY, "The scale and zero point of an activation are scalars of rank 0.",
        lint_quantizers.rank_one_scale,
    ),
    "one-sided-layer": Rule(
        "warning", _ANY, "A layer has both its input and its weight quantized, or neither.",
        lint_layers.one_sided_layer,
    ),
    "conv-transpose-dilated": Rule(
        "warning", _TENSORRT, "A transposed convolution has strides or dilations over 1, not both.",
        lint_layers.strided_and_dilated_conv_transpose,
    ),
    "skip-input": Rule("warning", _NOT_ORT, "The skip input of an Add is quantized.", lint_layers.float_skip_input),
    "add-inputs": Rule("warning", _ORT, "Both inputs of an Add are quantized.", lint_layers.float_add_input),
    "grouped-int8": Rule(
        "warning", _NOT_ORT, "TensorRT has an INT8 kernel for each quantized convolution.", lint_kernels.grouped_int8
    ),
    "concat-scales": Rule(
        "warning", _ENGINES, "All inputs of a Concat have one scale.", lint_layers.unequal_concat_scales
    ),
    "transposed-weight": Rule(
        "warning", _ANY, "No Transpose stands between a weight's DequantizeLinear and its layer.",
        lint_layers.transposed_weight,
    ),
    "pool-ties": Rule(
        "warning", _ENGINES, "No average can lie half way between two codes.", lint_pools.pool_can_tie
    ),
    "int4-convolution": Rule(
        "warning", _NOT_ORT, "No convolution has its weight in INT4.", lint_int4.int4_convolution, sees="stored"
    ),
    "not-quantized": Rule("info", _ANY, "The file is quantized.", lint_file.not_quantized),
    "scale-power-of-two": Rule(
        "info", _ANY, "Scales are powers of two.", lint_quantizers.scale_power_of_two
    ),
    "sum-over-24-bits": Rule(
        "info", _ANY, "No sum of a layer can pass 2^24, whatever the image.", lint_sums.sum_over_24_bits
    ),
    "half-precision-scale": Rule("info", _ANY, "Scales are float32.", lint_quantizers.half_precision_scale),
    "packed-weights": Rule(
        "info", _NOT_ORT, "Weights are stored in INT8 for builders of other tools.", lint_int4.packed_weights,
        sees="stored",
    ),
}  # fmt: skip


def page_of(rule: str) -> str:
    """Where a rule is explained: a file of the repository, and the anchor in it."""
    return f"{PAGES}#{rule}"
