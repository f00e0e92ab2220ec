"""What `speed.py` compares: a torchvision net made ready for training by each tool, calibrated and exported by it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # else benchmarks is not found

import torch
from torch import Tensor, nn

from benchmarks.common import recipe_of
from benchmarks.float_onnx import write_float_onnx

__all__ = ["SUBJECTS", "Subject"]

_PERCENTILE: Final = 99.99
_OPSET: Final = 17
_BITS: Final = 8


class Subject(Protocol):
    """One tool, made from a float net in eval mode and its first images, (N, 3, H, W) float32.

    Attributes:
        net: trains, with quantizers.
    """

    net: nn.Module

    def before_step(self) -> None:
        """What its training does once a step before the forward pass."""
        ...

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Find the ranges of activations anew."""
        ...

    def export(self, images: Tensor, path: Path) -> None:
        """Write the QDQ ONNX file of the net, for batches as large as `images` where the size must be fixed."""
        ...


class _Float:
    """The net itself; its calibration is the forward passes alone."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        self.net = net

    def before_step(self) -> None:
        """Nothing."""

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        _forward(self.net, batches)

    def export(self, images: Tensor, path: Path) -> None:
        write_float_onnx(self.net, images, path)


class _Ours:
    """faq-deploy."""

    def __init__(self, net: nn.Module, images: Tensor, target: str, batch_norm: Literal["fold", "paper"]) -> None:
        from benchmarks.common import quantized

        self.recipe = recipe_of(_BITS, target, batch_norm)
        self.stored = quantized(net, images, self.recipe)
        self.net: nn.Module = self.stored.net

    def before_step(self) -> None:
        self.stored.net.refresh()

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        from faq_deploy.activation_exponents import calibrate

        calibrate(self.stored.net, list(batches), self.recipe.calibration, self.recipe.target)

    def export(self, images: Tensor, path: Path) -> None:
        from faq_deploy.onnx_export import export_onnx
        from faq_deploy.versions import engine_versions

        self.net.eval()
        export_onnx(self.stored, path, images[:1].numpy(), versions=engine_versions(), checkpoint_sha256="0" * 64)


class _ModelOpt:
    """NVIDIA ModelOpt's INT8 configuration; activations by a histogram's percentile."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        self.tool: Any = import_module("modelopt.torch.quantization")
        self.calibration: Any = import_module("modelopt.torch.quantization.model_calib")
        histogram: Any = import_module("modelopt.torch.quantization.calib").HistogramCalibrator
        self.net = self.tool.quantize(net, self.tool.INT8_DEFAULT_CFG, lambda model: model(images))
        quantizers = [m for m in self.net.modules() if type(m).__name__ == "TensorQuantizer" and not m._disabled]
        self.histograms = [m for m in quantizers if m._axis is None]

        def anew() -> None:
            for quantizer in self.histograms:
                quantizer._calibrator = histogram(_BITS, None, False)
            for quantizer in quantizers:
                quantizer.reset_amax()

        self.anew = anew

    def before_step(self) -> None:
        """Nothing."""

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        self.anew()
        self.net.eval()
        with torch.no_grad():
            self.calibration.enable_stats_collection(self.net)
            _forward(self.net, batches)
            for quantizer in self.histograms:
                quantizer._calibrator.compute_amax("percentile", percentile=_PERCENTILE)
                quantizer.load_calib_amax("percentile", percentile=_PERCENTILE)
                quantizer._calibrator = None
            self.calibration.finish_stats_collection(self.net)
            for quantizer in self.histograms:
                quantizer.disable_calib()
                quantizer.enable_quant()

    def export(self, images: Tensor, path: Path) -> None:
        write_float_onnx(self.net, images, path)


class _Brevitas:
    """Brevitas' layers in place of torch's: learned power-of-two scales, at every ReLU and at the input."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        self.layers: Any = import_module("brevitas.nn")
        fixed_point: Any = import_module("brevitas.quant.fixed_point")
        self.weight = fixed_point.Int8WeightPerChannelFixedPoint
        start = {"high_percentile_q": _PERCENTILE}
        inputs = self.layers.QuantIdentity(act_quant=fixed_point.Int8ActPerTensorFixedPoint, **start)
        self.relu: Callable[[], nn.Module] = lambda: self.layers.QuantReLU(
            act_quant=fixed_point.Uint8ActPerTensorFixedPoint, **start
        )
        self._replace(net)
        self.net: nn.Module = nn.Sequential(inputs, net)
        self.calibrate([images])

    def _replace(self, module: nn.Module) -> None:
        for name, child in module.named_children():
            made: Any
            if isinstance(child, nn.Conv2d):
                made = self.layers.QuantConv2d(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,
                    stride=child.stride,
                    padding=child.padding,
                    groups=child.groups,
                    bias=child.bias is not None,
                    weight_quant=self.weight,
                )
            elif isinstance(child, nn.Linear):
                made = self.layers.QuantLinear(
                    child.in_features, child.out_features, bias=True, weight_quant=self.weight
                )
            elif isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(module, name, self.relu())
                continue
            else:
                self._replace(child)
                continue
            made.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, made)

    def before_step(self) -> None:
        """Nothing."""

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        mode: Any = import_module("brevitas.graph.calibrate").calibration_mode
        self.net.eval()
        with torch.no_grad(), mode(self.net):
            for batch in batches:
                self.net(batch)

    def export(self, images: Tensor, path: Path) -> None:
        export: Any = import_module("brevitas.export").export_onnx_qcdq
        export(self.net.eval(), args=images, export_path=str(path), opset_version=_OPSET, dynamo=False)


class _TorchAo:
    """torch.ao.quantization's FX mode with its x86 configuration; moving averages of minimum and maximum."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        tool: Any = import_module("torch.ao.quantization")
        fx: Any = import_module("torch.ao.quantization.quantize_fx")
        self.tool = tool
        self.net = fx.prepare_qat_fx(net.train(), tool.get_default_qat_qconfig_mapping("x86"), (images,))
        self.calibrate([images])

    def before_step(self) -> None:
        """Nothing: its observers run in the forward pass."""

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        self.net.apply(self.tool.enable_observer)
        _forward(self.net, batches)

    def export(self, images: Tensor, path: Path) -> None:
        write_float_onnx(self.net, images, path)


class _Pt2e:
    """torchao's PT2E flow with the quantizer of XNNPACK; moving averages of minimum and maximum."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        self.tool: Any = import_module("torchao.quantization.pt2e")
        quantize: Any = import_module("torchao.quantization.pt2e.quantize_pt2e")
        self.converted: Callable[[nn.Module], nn.Module] = quantize.convert_pt2e
        xnnpack: Any = import_module("torchao.testing.pt2e._xnnpack_quantizer")
        configuration = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
        shapes = ({0: torch.export.Dim("batch", min=2, max=1024)},)
        exported = torch.export.export(net.train(), (images,), dynamic_shapes=shapes).module()
        self.net = quantize.prepare_qat_pt2e(exported, xnnpack.XNNPACKQuantizer().set_global(configuration))
        exchange = self.tool.move_exported_model_to_train, self.tool.move_exported_model_to_eval
        train, evaluate = exchange
        # an exported net has no train() and eval(): torchao exchanges its nodes
        self.net.train = lambda mode=True: train(self.net) if mode else evaluate(self.net)
        self.net.eval = lambda: evaluate(self.net)
        self.calibrate([images])

    def before_step(self) -> None:
        """Nothing: its observers run in the forward pass."""

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        _forward(self.net, batches)

    def export(self, images: Tensor, path: Path) -> None:
        self.net.eval()
        program = torch.export.export(self.converted(self.net), (images,))
        torch.onnx.export(program, (), str(path), opset_version=18, dynamo=True)


SUBJECTS: Final[Mapping[str, Callable[[nn.Module, Tensor], Subject]]] = {
    "float": _Float,
    "ours": lambda net, images: _Ours(net, images, "tensorrt", "fold"),
    "ours-paper": lambda net, images: _Ours(net, images, "tensorrt", "paper"),
    "ours-onnxruntime": lambda net, images: _Ours(net, images, "onnxruntime", "fold"),
    "modelopt": _ModelOpt,
    "brevitas": _Brevitas,
    "torch.ao": _TorchAo,
    "torchao": _Pt2e,
}


def _forward(net: nn.Module, batches: Sequence[Tensor]) -> None:
    net.eval()
    with torch.no_grad():
        for batch in batches:
            net(batch)
