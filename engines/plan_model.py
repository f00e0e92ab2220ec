"""What an engine runs, in numbers: layers in INT8, functions between codes, reformats, and what is left in float."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["EnginePlan", "FloatIsland", "Share"]


class Share(BaseModel):
    """So many of so many are in INT8."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    int8: int = 0
    all: int = 0

    def __str__(self) -> str:
        return f"{self.int8} of {self.all}"


class FloatIsland(BaseModel):
    """Neighbouring layers that run in float.

    Attributes:
        nodes: names of the ONNX nodes, in graph order.
        modules: of the user's model, where known.
        reason: why, one sentence.
        edit: the change to Q and DQ, or to the command, that would remove it; one sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: tuple[str, ...]
    modules: tuple[str, ...] = ()
    reason: str
    edit: str


class EnginePlan(BaseModel):
    """What an engine runs.

    Attributes:
        source: "predicted" from the graph alone, or "inspected": the engine's own account.
        convolutions: also linear layers that are stored as convolutions.
        linears: Gemm and MatMul with a weight.
        int4_linears: of these, the ones whose weight is stored in INT4; they multiply in float.
        adds: of two tensors; the ones inside a function are not counted.
        concats: of codes.
        functions: tables such as SiLU, norms, and gates (products of two tensors): from codes to codes, in between in
            float.
        pools: averages, from codes to codes, in between in float.
        reformats: copies that change the layout or the type, beside the quantization of the input.
        unseen: layers that the engine's account does not name.
        islands: what runs in float.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["predicted", "inspected"]
    convolutions: Share = Share()
    linears: Share = Share()
    int4_linears: int = 0
    adds: Share = Share()
    concats: Share = Share()
    functions: int = 0
    pools: int = 0
    reformats: int = 0
    unseen: int = 0
    islands: tuple[FloatIsland, ...] = ()
