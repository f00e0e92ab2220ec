"""The ids of errors: a word for what an error is about, the same from one release to the next. docs/errors.md has all.

An id belongs to the place that finds the error, a module or one of its functions, or to a class of errors of its own.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ERROR_IDS", "error_id"]

# what raises it; () where only the command line does
ERROR_IDS: Final[dict[str, tuple[str, ...]]] = {
    "usage": (),
    "options": (
        "engines.lint.lint",
        "engines.profile",
        "engines.show_build",
        "engines.show_bundle",
        "faq_deploy.analyze",
        "faq_deploy.before_torch",
        "faq_deploy.image_draws",
        "faq_deploy.inspect",
        "faq_deploy.launcher",
        "faq_deploy.new_run",
        "faq_deploy.number_list",
        "faq_deploy.parsed_options",
        "faq_deploy.run_data",
        "faq_deploy.show_file_eval",
        "faq_deploy.show_inspect",
    ),
    "output": (
        "engines.bundle.write_bundle",
        "engines.snap.snap_file",
        "engines.triton._write",
        "faq_deploy.output_folder",
        "faq_deploy.starter_file",
    ),
    "cannot-write": ("engines.errors.WriteError", "faq_deploy.checkpoint._cannot_write"),
    "file-access": (),
    "folder-in-use": ("engines.folder_lock.FolderInUse",),
    "interrupted": ("faq_deploy.interrupt.Interrupted",),
    # models and weights
    "model-name": (
        "faq_deploy.models",
        "faq_deploy.timm_zoo",
        "faq_deploy.torchvision_zoo",
        "faq_deploy.user_code.require_model_file",
    ),
    "download": ("faq_deploy.torchvision_zoo._download",),
    "model-code": ("faq_deploy.user_code", "faq_deploy.user_model"),
    "metric": ("faq_deploy.file_eval", "faq_deploy.metrics"),
    "model-fit": ("faq_deploy.model_fit",),
    "model-trace": ("faq_deploy.capture", "faq_deploy.rewrite", "faq_deploy.tracing"),
    "unsupported-layer": (
        "faq_deploy.aten.weighted",
        "faq_deploy.norm_layer",
        "faq_deploy.resample",
        "faq_deploy.simplify",
        "faq_deploy.tracing._refuse_attention",
        "faq_deploy.walk",
    ),
    "layer-names": ("faq_deploy.capture.choose_outputs", "faq_deploy.layer_choices"),
    "weights-file": (
        "faq_deploy.architecture",
        "faq_deploy.safetensors_file",
        "faq_deploy.weights.read_checkpoint",
        "faq_deploy.weights_file",
    ),
    "weights-fit": ("faq_deploy.weights",),
    # images
    "data-folder": (
        "engines.bundle_eval",
        "engines.image_files",
        "engines.images",
        "faq_deploy.augment",
        "faq_deploy.data",
        "faq_deploy.finetune.finetune",
        "faq_deploy.model_fit.example_of",
        "faq_deploy.samples.write_samples",
        "faq_deploy.snap_accuracy.measure",
        "faq_deploy.stage_runs",
        "faq_deploy.starter_look",
        "faq_deploy.torch_eval",
    ),
    "bad-image": (
        "engines.image_batches._bad_images",
        "engines.preprocess.BadImage",
        "faq_deploy.augment._usable",
    ),
    "image-size": ("engines.image_batches",),
    "shards": (
        "faq_deploy.shard_index",
        "faq_deploy.shard_places",
        "faq_deploy.shards",
        "faq_deploy.tar_members",
    ),
    "shards-unreachable": ("faq_deploy.shard_places._network",),
    # training
    "recipe": (
        "faq_deploy.augment.__post_init__",
        "faq_deploy.correction",
        "faq_deploy.recipe",
        "faq_deploy.train_float",
    ),
    "calibration": ("faq_deploy.activation_exponents",),
    "training": (
        "faq_deploy.finetune",
        "faq_deploy.gradient_noise",
        "faq_deploy.onnx_export._lint",
        "faq_deploy.training_loop",
    ),
    "resume": (
        "faq_deploy.checkpoint",
        "faq_deploy.finetune._resumable",
        "faq_deploy.finetune._restore",
        "faq_deploy.resumed",
        "faq_deploy.train_float._open_again",
    ),
    "device": ("faq_deploy.launched_fabric", "faq_deploy.new_run.pick_device"),
    "process-died": ("faq_deploy.launcher.launch", "faq_deploy.loading_processes", "faq_deploy.ranks.RankLost"),
    # files of ours
    "run": (
        "engines.bundle._preprocessing",
        "engines.bundle_samples.pixels_of_run",
        "engines.run_folder",
        "faq_deploy.analyze.similarity_verb",
        "faq_deploy.calibrated_run",
        "faq_deploy.graph",
        "faq_deploy.run_data.data_of_run",
        "faq_deploy.samples",
        "faq_deploy.stored_net",
        "faq_deploy.torch_file",
    ),
    "newer-format": ("engines.errors.NewerFormat",),
    "report": (
        "faq_deploy.baseline",
        "faq_deploy.predictions",
        "faq_deploy.report",
        "faq_deploy.stored_report",
    ),
    "gates": ("faq_deploy.limits",),
    "bundle": ("engines.bundle_archive", "engines.bundle_manifest", "engines.bundle_samples", "engines.opened_bundle"),
    "triton": ("engines.triton",),
    # ONNX and engines
    "onnx-file": (
        "engines.external_data",
        "engines.lint.lint_file",
        "engines.lint_fix",
        "engines.onnx_facts",
        "engines.qdq_graph.load_model",
        "engines.well_formed",
    ),
    "onnx-model": (
        "engines.build._checked",
        "engines.code_engine",
        "engines.graph_edit",
        "engines.kernel_costs",
        "engines.newer_opset",
        "engines.ort",
        "engines.qdq_graph",
        "engines.reference",
        "engines.same_outputs",
        "engines.snap",
        "faq_deploy.snap_accuracy",
    ),
    "build-options": (
        "engines.build._wanted",
        "engines.build_config",
        "engines.engine_folder.into",
        "engines.tensorrt.check_sm",
        "engines.tensorrt_config",
    ),
    "engine-refused": (
        "engines.convolution_forms",
        "engines.engine_folder",
        "engines.products_as_convolutions",
        "engines.tensorrt.BuilderRefusal",
        "engines.tensorrt.check_signed",
        "engines.turing_forms",
    ),
    "rebuilds": ("engines.rebuilds",),
    "engine": (
        "engines.engine_manifest",
        "engines.inspected_plan",
        "engines.open_engine",
        "engines.tensorrt_runner._allocate",
        "engines.tensorrt_runner._load_engine",
        "faq_deploy.engine_stages",
    ),
    "engine-elsewhere": ("engines.engine_manifest.check_host",),
    "gpu": ("engines.cuda", "engines.tensorrt", "engines.tensorrt_runner"),
    "not-installed": (
        "engines.errors.NotInstalled",
        "engines.tensorrt_package",
    ),
    "install-incomplete": ("engines.pack_wheel",),
    # from Python
    "python-call": (
        "engines.batch",
        "engines.invariance",
        "engines.ort._run",
        "engines.parity",
        "engines.preprocess",
        "engines.reference._run",
        "engines.tensorrt_runner._outputs_of",
        "faq_deploy.agreement",
        "faq_deploy.api",
        "faq_deploy.given",
        "faq_deploy.given_outputs",
        "faq_deploy.prepared_model",
    ),
    "bug": ("engines.errors.FaqError",),
}

_BY_PLACE: Final = {place: name for name, places in ERROR_IDS.items() for place in places}


def error_id(kind: str, module: str, function: str) -> str:
    """The id of an error.

    Args:
        kind: its class, as `engines.errors.InputError`.
        module: that raises it.
        function: of this module.

    Returns:
        That of the class, if it has one; else of the function; else of the module; "other" if none has.
    """
    for place in (kind, f"{module}.{function}", module):
        if place in _BY_PLACE:
            return _BY_PLACE[place]
    return "other"
