"""Every name of TensorRT's Python API that our code uses, with its parameters, and what its makers say of versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["ONLY_RTX", "REMOVED_IN_11", "STATED_FOR_11", "SURFACE"]

# parameters of methods by name; None for attributes and for members of enumerations
SURFACE: Final[Mapping[str, tuple[str, ...] | None]] = {
    "Builder": ("logger",),
    "Builder.build_serialized_network": ("network", "config"),
    "Builder.create_builder_config": (),
    "Builder.create_network": ("flags",),
    "Builder.create_optimization_profile": (),
    "BuilderFlag.VERSION_COMPATIBLE": None,
    "DataType.FLOAT": None,
    "Dims": ("shape",),
    "EngineInspector.get_engine_information": ("format",),
    "HardwareCompatibilityLevel.AMPERE_PLUS": None,
    "HardwareCompatibilityLevel.NONE": None,
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": None,
    "IBuilderConfig.add_optimization_profile": ("profile",),
    "IBuilderConfig.create_timing_cache": ("serialized_timing_cache",),
    "IBuilderConfig.get_timing_cache": (),
    "IBuilderConfig.hardware_compatibility_level": None,
    "IBuilderConfig.profiling_verbosity": None,
    "IBuilderConfig.set_flag": ("flag",),
    "IBuilderConfig.set_memory_pool_limit": ("pool", "pool_size"),
    "IBuilderConfig.set_timing_cache": ("cache", "ignore_mismatch"),
    "ICudaEngine.create_engine_inspector": (),
    "ICudaEngine.create_execution_context": (),
    "ICudaEngine.get_tensor_dtype": ("name",),
    "ICudaEngine.get_tensor_mode": ("name",),
    "ICudaEngine.get_tensor_name": ("index",),
    "ICudaEngine.get_tensor_profile_shape": ("name", "profile_index"),
    "ICudaEngine.get_tensor_shape": ("name",),
    "ICudaEngine.num_io_tensors": None,
    "IExecutionContext.execute_async_v3": ("stream_handle",),
    "IExecutionContext.get_tensor_shape": ("name",),
    "IExecutionContext.set_input_shape": ("name", "shape"),
    "IExecutionContext.set_tensor_address": ("name", "memory"),
    "ILogger.log": ("severity", "msg"),
    "INetworkDefinition.get_input": ("index",),
    "INetworkDefinition.num_inputs": None,
    "INetworkDefinition.num_outputs": None,
    "IOptimizationProfile.set_shape": ("input", "min", "opt", "max"),
    "ITensor.name": None,
    "ITensor.shape": None,
    "ITimingCache.serialize": (),
    "LayerInformationFormat.JSON": None,
    "MemoryPoolType.WORKSPACE": None,
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": None,
    "OnnxParser": ("network", "logger"),
    "OnnxParser.get_error": ("index",),
    "OnnxParser.num_errors": None,
    "OnnxParser.parse_from_file": ("model",),
    "ParserError.desc": (),
    "ParserError.node_name": (),
    "ParserError.node_operator": (),
    "ProfilingVerbosity.DETAILED": None,
    "Runtime": ("logger",),
    "Runtime.deserialize_cuda_engine": ("serialized_engine",),
    "Runtime.engine_host_code_allowed": None,
    "TensorIOMode.INPUT": None,
}

ONLY_RTX: Final[Mapping[str, tuple[str, ...] | None]] = {
    "ComputeCapability.SM86": None,
    "IBuilderConfig.num_compute_capabilities": None,
    "IBuilderConfig.set_compute_capability": ("compute_capability", "index"),
}

# "Removed Python APIs and Replacements" in the documentation of TensorRT 11.4, as far as it could be read.
# Nothing was found on 10.12 by itself; the stubs are those of 10.13.
REMOVED_IN_11: Final = frozenset(
    {
        *("BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.FP8", "BuilderFlag.BF16", "BuilderFlag.INT4"),
        *("BuilderFlag.FP4", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS", "BuilderFlag.PREFER_PRECISION_CONSTRAINTS"),
        *("BuilderFlag.DIRECT_IO", "IBuilderConfig.int8_calibrator", "IBuilderConfig.set_calibration_profile"),
        *("IBuilderConfig.get_calibration_profile", "IBuilderConfig.set_quantization_flag"),
        *("IBuilderConfig.get_quantization_flag", "IBuilderConfig.quantization_flags"),
        *("IBuilderConfig.clear_quantization_flag", "ICudaEngine.device_memory_size", "Builder.platform_has_fast_fp16"),
        "Builder.platform_has_fast_int8",
    }
)

# What the documentation of TensorRT 11 names; elsewhere it is silent, and only a TensorRT 11 can tell.
STATED_FOR_11: Final[Mapping[str, str]] = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "Python API 11.0.0, Builder: deprecated, kept and ignored",
    "ProfilingVerbosity.DETAILED": "Python API 11.1.0, IBuilderConfig",
    "Builder": "Python API 11.0.0, Builder",
    "BuilderFlag.VERSION_COMPATIBLE": "Engine Compatibility, 11.1.0",
    "Runtime.engine_host_code_allowed": "Engine Compatibility, 11.1.0",
    "ILogger.log": "Python API Documentation, 11.1.0",
    "IBuilderConfig.add_optimization_profile": "C++ IBuilderConfig, 11.4.1: addOptimizationProfile",
    "IBuilderConfig.create_timing_cache": "C++ IBuilderConfig, 11.4.1: createTimingCache",
    "IBuilderConfig.hardware_compatibility_level": "C++ IBuilderConfig, 11.4.1: getHardwareCompatibilityLevel",
}
