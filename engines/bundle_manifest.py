"""What a bundle says of itself: its files with sizes and sha256, where the network comes from, what is proven."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from engines.errors import InputError, NewerFormat
from engines.json_text import read_json

__all__ = ["FORMAT", "MANIFEST", "BundleManifest", "CertificateSummary", "FileFacts", "parse", "summary"]

FORMAT: Final = 1  # raised when an older tool could no longer read a bundle
MANIFEST: Final = "manifest.json"

# one or two plain names: no absolute path, no "..", nothing hidden, nothing that a shell or another system reads anew
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99})?", re.ASCII)


class FileFacts(BaseModel):
    """One file: the sha256 of its bytes (hexadecimal) and how many there are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class CertificateSummary(BaseModel):
    """What export proved about the sums of the layers, for every image.

    Attributes:
        sums: layers, adds and pools that compute with codes.
        proven: of these, how many can't pass 2^24, whatever the image.
        largest: the largest sum that one of them can reach, as a share of 2^24.
        layer: which one that is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sums: int
    proven: int
    largest: float
    layer: str


class BundleManifest(BaseModel):
    """`manifest.json`, the first file of a bundle.

    Attributes:
        format: of the bundle.
        faq_deploy: version of the tool that wrote it.
        run: name of the run folder.
        model: the network as `quantize` was told, such as "torchvision:resnet18".
        target: "tensorrt", "onnxruntime" or "paper".
        bits: of the weights and activations, unless a layer has others.
        onnx_sha256: of the run's model.onnx, with its data files where it has some.
        float_parts: layers were left in float: runtimes may round there, so codes are reported and not judged.
        images: number of samples.
        certificate: what is proven of the sums.
        versions: of the packages that export and the expected codes come from.
        files: every other file of the bundle, by its path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    faq_deploy: str
    run: str
    model: str | None = None
    target: str | None
    bits: int | None
    onnx_sha256: str
    float_parts: bool = False
    images: int = Field(ge=1)
    certificate: CertificateSummary | None = None
    versions: dict[str, str] = {}
    files: dict[str, FileFacts]

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileFacts]) -> dict[str, FileFacts]:
        for name in files:
            if not _NAME.fullmatch(name) or name == MANIFEST or name.partition("/")[0] in files.keys() - {name}:
                raise ValueError(f"{name!r} is no name for a file of a bundle")
        return files


def parse(text: bytes, bundle: str) -> BundleManifest:
    """Read `manifest.json`.

    Args:
        text: its bytes.
        bundle: how messages name the bundle.

    Returns:
        The manifest.

    Raises:
        InputError: it is damaged, or from a newer version.
    """
    try:
        raw = read_json(text.decode("utf-8"))
    except ValueError as error:
        raise _damaged(bundle, "it is not JSON") from error
    found = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise NewerFormat(
            f"{bundle} was made by a newer faq-deploy (bundle format {found}, this one reads up to {FORMAT}).",
            "install the wheel that the bundle brings, or write the bundle with this version.",
        )
    try:
        return BundleManifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(bundle, f"{place or 'all of it'}: {first['msg']}") from error


def summary(certificate: Mapping[str, object]) -> CertificateSummary | None:
    """The certificate in an ONNX file's metadata, in four numbers; None where it holds none.

    Args:
        certificate: `faq_deploy.certificate`: bounds by layer, each with `ratio` and `proven`.
    """
    ratios: dict[str, float] = {}
    proven = 0
    for layer, bound in certificate.items():
        if isinstance(bound, dict) and isinstance(bound.get("ratio"), float | int):
            ratios[layer] = float(bound["ratio"])
            proven += bound.get("proven") is True
    if not ratios:
        return None
    layer = max(ratios, key=lambda name: ratios[name])
    return CertificateSummary(sums=len(ratios), proven=proven, largest=ratios[layer], layer=layer)


def _damaged(bundle: str, why: str) -> InputError:
    return InputError(
        f"{bundle}: {MANIFEST} is damaged ({' '.join(why.split())}).",
        "copy the bundle again, or write it again with `faq-deploy bundle`.",
    )
