"""The README.md in a Triton model's folder: what it needs, and how a client makes its inputs."""

from __future__ import annotations

from engines.engine_manifest import EngineManifest
from engines.triton_config import ServedModel

__all__ = ["client_notes"]

_PREPARE = """\
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from engines.preprocess import Preprocessing, normalize, to_pixels

    spec = Preprocessing.model_validate_json(Path("preprocessing.json").read_text())
    pixels = to_pixels(Image.open("photo.jpg"), spec)
    batch = normalize(pixels[np.newaxis], spec)  # float32 (1, C, H, W)
"""


def client_notes(model: ServedModel, engine: EngineManifest | None, *, has_preprocessing: bool) -> str:
    """The text of README.md.

    Args:
        model: what is served.
        engine: the record of a TensorRT engine; None where the ONNX file is served.
        has_preprocessing: whether preprocessing.json lies beside it.

    Returns:
        Markdown.
    """
    parts = [f"# {model.name}", _needs(model, engine)]
    if has_preprocessing:
        parts += [
            "## What to send\n"
            "Preprocessing is the client's: the server takes the numbers that the network was trained on.\n"
            "`preprocessing.json` says how a picture becomes them, and `pip install faq-deploy` (no torch) does it:",
            _PREPARE.rstrip(),
        ]
    parts += ["Then, with `pip install 'tritonclient[http]'`:", _send(model)]
    if any(tensor.labels for tensor in model.outputs):
        parts.append(
            "The class names are in `labels.txt`, one a line, in the order of the outputs. Ask for\n"
            "`client.InferRequestedOutput(NAME, class_count=5)` and the server returns the five best with their names."
        )
    return "\n\n".join(parts) + "\n"


def _needs(model: ServedModel, engine: EngineManifest | None) -> str:
    start = "Serve the folder above this one: `tritonserver --model-repository=FOLDER`."
    if engine is not None:
        version = engine.versions.get("tensorrt", "an unrecorded version")
        on = f"{engine.gpu} (SM {engine.sm})" if engine.gpu is not None else f"SM {engine.sm}"
        return (
            f"{start}\nThe engine was built by TensorRT {version} on {on}: a Triton image with that\n"
            "version of TensorRT, on that kind of GPU, loads it, and no other."
        )
    if not model.optimized:
        return (
            f"{start}\nPart of the network was left in float. onnxruntime's graph optimizations are off, because they\n"
            "would quantize that part by a rule of their own; this costs speed."
        )
    return (
        f"{start}\nonnxruntime runs it on the CPU, as `faq-deploy eval` does when it counts codes that differ.\n"
        "On a GPU it would take float kernels that were never compared: serve a TensorRT engine there\n"
        "(`bundle --triton --engine tensorrt`)."
    )


def _send(model: ServedModel) -> str:
    first = model.inputs[0]
    kind = first.type.removeprefix("TYPE_")
    return (
        "    import tritonclient.http as client\n\n"
        '    server = client.InferenceServerClient("localhost:8000")\n'
        f"    images = client.InferInput({first.name!r}, batch.shape, {kind!r})\n"
        "    images.set_data_from_numpy(batch)\n"
        f"    values = server.infer({model.name!r}, [images]).as_numpy({model.outputs[0].name!r})"
    )
