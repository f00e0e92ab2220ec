"""What `verify` found, in sentences."""

from __future__ import annotations

from engines.verify import EngineCheck, Verification

__all__ = ["sentences"]


def sentences(found: Verification) -> list[str]:
    """The findings, the file's first.

    Args:
        found: by `verify_bundle`.

    Returns:
        One or more sentences a part.
    """
    lines = [*_file(found)]
    for engine in found.engines:
        lines += _engine(engine)
    if found.float_parts:
        lines.append("Parts of the net are in float: codes that differ behind them are reported and not judged.")
    if found.gpu is not None:
        lines.append(f"Ran on {found.gpu}.")
    elif any(engine.images for engine in found.engines):
        said = f"No GPU was used: this says what {_ran(found)} computes, and nothing about TensorRT."
        lines.append(said if found.target == "tensorrt" else "No GPU was used.")
    if found.kept is not None and any(engine.images for engine in found.engines):
        lines.append(f"Engines are in {found.kept}")
    return lines


def _file(found: Verification) -> list[str]:
    file = found.file
    lines = []
    if not file.inputs_equal:
        lines.append("Preprocessing: the samples, normalized on this machine, are not the expected network inputs.")
    if file.weights is not None:
        lines.append(f"The file: {file.weights}.")
    ran = f"{file.images} of {found.images} samples"
    if file.first is not None:
        lines.append(f"The file, by the integer reference: {file.first} ({ran} ran).")
    else:
        lines.append(f"The file, by the integer reference: {file.codes:,} codes of {ran}, all as expected.")
    return lines


def _engine(engine: EngineCheck) -> list[str]:
    if engine.logits is None:
        what = "could not be built" if engine.status == "failed" else "can't run here"
        return [f"{engine.name} {what}: {engine.reason}", f"Note: {engine.remedy}"]
    parity = engine.logits
    ran = f"{engine.name}: {engine.images} samples ran"
    if parity.equal:
        lines = [f"{ran}, every logit as expected, to the last bit."]
    else:
        lines = [
            f"{ran}, {parity.differing:,} logits differ (by up to {parity.largest_difference:g}), "
            f"{parity.flips} predictions flip."
        ]
    if engine.first is not None:
        lines.append(f"{engine.name}: {engine.first}.")
    elif engine.codes:
        lines.append(f"{engine.name}: {engine.codes:,} codes compared, all as expected.")
    if engine.batch:
        lines.append(f"{engine.name}: {engine.batch}")
    if engine.reason:
        lines.append(f"{engine.name}: {engine.reason}")
    return lines + [f"Note: {note}" for note in engine.notes]


def _ran(found: Verification) -> str:
    return ", ".join(engine.name for engine in found.engines if engine.images)
