"""onnxruntime on the CPU: optimized for speed, or as the oracle with all graph optimizations off."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx

from engines.batch import native_batch
from engines.errors import InputError, NotInstalled
from engines.int4_storage import unpack_int4
from engines.onnx_metadata import holds_float_weights
from engines.parity import logit_bits
from engines.qdq_graph import constant, label, load_model, read_graph, zero_points
from engines.runner import FloatArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["CpuFeatures", "OrtRunner", "cpu_features"]

Known = Literal["yes", "no", "unknown"]
_QUANTIZES_WEIGHTS: Final = "WeightBiasQuantization"  # one of onnxruntime's optimizers
_ERRORS_ONLY: Final = 3  # onnxruntime's severity: warnings about unusual graphs would litter stderr


class OrtRunner:
    """Runs an ONNX file in onnxruntime (a CodeRunner for QDQ files; a Runner for float files too).

    Args:
        path: the ONNX file.
        oracle: turn all graph optimizations off: Q and DQ stay float operators, exact on every CPU.
        threads: of one operator; None leaves it to onnxruntime.
        with_codes: make the codes outputs of the one session. Otherwise `codes` opens a second one when first called,
            and calls stay as fast as they can be.

    Raises:
        NotInstalled: onnxruntime is not installed.
        InputError: no ONNX file, or one that onnxruntime refuses.
    """

    def __init__(self, path: Path, oracle: bool = False, threads: int | None = None, with_codes: bool = False) -> None:
        self.name = "oracle" if oracle else "onnxruntime"
        self._path, self._oracle, self._threads = path, oracle, threads
        stored = load_model(path, unpack=False)
        self._graph = read_graph(unpack_int4(stored))
        self._is_packed = self._graph.model is not stored
        self.code_names: Sequence[str] = self._graph.code_names
        self._zero_points = zero_points(self._graph)
        self._code_session = self._session(self.code_names) if with_codes else None
        self._plain_session = self._code_session or self._session(())

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Run one batch.

        Args:
            batch: float32 images, shape (N, C, H, W), any memory layout, N >= 0.

        Returns:
            float32 logits, shape (N, classes).

        Raises:
            InputError: a batch that the net cannot read, or that onnxruntime refuses.
        """
        (logits,) = self._run(self._plain_session, batch, [self._graph.logits_name])
        return logits.astype(np.float32, copy=False)

    def outputs(self, batch: FloatArray) -> dict[str, FloatArray]:
        """Run one batch and return every float output by name.

        Args:
            batch: as for a call.

        Returns:
            float32, shape (N, ...), in the order of the file.

        Raises:
            InputError: as for a call.
        """
        names = list(self._graph.float_outputs)
        found = self._run(self._plain_session, batch, names)
        return {name: value.astype(np.float32, copy=False) for name, value in zip(names, found, strict=True)}

    def codes(self, batch: FloatArray) -> dict[str, npt.NDArray[np.int64]]:
        """Run one batch and keep the integers inside.

        Args:
            batch: as for a call.

        Returns:
            Codes of every tensor named `*.codes`, without zero points, and as `logits` the bits of what a call returns.
            A graph with several outputs adds the bits of each float output under its name.

        Raises:
            InputError: as for a call.
        """
        if self._code_session is None:
            self._code_session = self._session(self.code_names)
        outputs = self._graph.float_outputs or (self._graph.logits_name,)
        raw = self._run(self._code_session, batch, [*self.code_names, *outputs])
        found = {
            name: codes.astype(np.int64) - self._zero_points[name]
            for name, codes in zip(self.code_names, raw, strict=False)
        }
        bits = {
            name: logit_bits(value.astype(np.float32, copy=False))
            for name, value in zip(outputs, raw[len(found) :], strict=True)
        }
        return {**found, **(bits if len(outputs) > 1 else {}), "logits": bits[self._graph.logits_name]}

    def close(self) -> None:
        """Release the sessions."""
        self._code_session = self._plain_session = None

    def _session(self, extra: Sequence[str]) -> InferenceSession:
        try:
            import onnxruntime
        except ImportError as error:
            raise NotInstalled("onnxruntime is not installed.", "install it with `pip install onnxruntime`.") from error
        levels = onnxruntime.GraphOptimizationLevel
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = levels.ORT_DISABLE_ALL if self._oracle else levels.ORT_ENABLE_ALL
        options.log_severity_level = _ERRORS_ONLY
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        # between DequantizeLinear and QuantizeLinear onnxruntime would quantize float weights by a rule of its own
        in_float = bool(self.code_names) and holds_float_weights(self._graph)
        disabled = [_QUANTIZES_WEIGHTS] if in_float else []
        # weights stored in 4 bits would keep onnxruntime from its INT8 kernels
        in_memory = bool(extra) or self._is_packed
        source = self._with_outputs(extra).SerializeToString() if in_memory else str(self._path)
        try:
            return onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise InputError(
                f"{self._path} is refused by onnxruntime {onnxruntime.__version__}: {_one_line(error)}.",
                "export the model again, or upgrade onnxruntime if the file is newer than it.",
            ) from error

    def _with_outputs(self, names: Sequence[str]) -> onnx.ModelProto:
        """A copy of the model in which these tensors are outputs too; the file stays as it is."""
        model = onnx.ModelProto()
        model.CopyFrom(self._graph.model)
        for name in names:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, self._element_type(name), None))
        return model

    def _element_type(self, name: str) -> int:
        reader = next(node for node in self._graph.consumers[name] if node.op_type == "DequantizeLinear")
        point = constant(self._graph, reader, 2)
        if point is None:
            raise InputError(f"{label(reader)} has no zero point.", "export the model again; `lint` tells why.")
        return onnx.helper.np_dtype_to_tensor_dtype(point.dtype)

    def _run(
        self, session: InferenceSession | None, batch: FloatArray, outputs: list[str]
    ) -> list[npt.NDArray[np.generic]]:
        if session is None:
            raise InputError(f"the {self.name} runner of {self._path} was closed.", "load the file again.")
        native = native_batch(batch, self._graph.input_shape, self.name)
        # kernels differ in what they do with no images at all: run one black image and drop it
        images = native if len(native) else np.zeros((1, *native.shape[1:]), np.float32)
        try:
            results: list[npt.NDArray[np.generic]] = session.run(outputs, {self._graph.input_name: images})
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise InputError(
                f"onnxruntime could not run {self._path}: {_one_line(error)}.", "check the size of the images."
            ) from error
        return [result[: len(native)] for result in results]


@dataclass(frozen=True)
class CpuFeatures:
    """What decides whether INT8 sums are exact and fast on this CPU.

    Args:
        model: the CPU's name.
        avx2: without VNNI, pairs of u8 x s8 products saturate at 32,767: 7-bit codes stay exact.
        avx512: whether it has AVX-512 (F).
        vnni: 8-bit codes are exact, and INT8 is about twice as fast.
    """

    model: str
    avx2: Known
    avx512: Known
    vnni: Known


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> CpuFeatures:
    """Read the features of this CPU.

    Args:
        cpuinfo: Linux's description of the CPUs.

    Returns:
        Each feature "yes" or "no"; "unknown" where the system does not say.
    """
    fields: Mapping[str, str] = {}
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
    model = fields.get("model name") or platform.processor() or platform.machine()
    if "flags" in fields:
        flags = set(fields["flags"].split())
    elif platform.machine().lower() in {"aarch64", "arm64", "armv7l"}:
        flags = set()  # not an x86: it has none of them
    else:
        return CpuFeatures(model, "unknown", "unknown", "unknown")
    return CpuFeatures(
        model,
        avx2=_known("avx2" in flags),
        avx512=_known("avx512f" in flags),
        vnni=_known(not flags.isdisjoint({"avx512_vnni", "avx_vnni"})),
    )


def _known(present: bool) -> Known:
    return "yes" if present else "no"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300]
