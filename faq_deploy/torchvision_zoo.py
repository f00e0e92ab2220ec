"""torchvision's classification models, and its published weights with their own preprocessing."""

from __future__ import annotations

import difflib
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torchvision import models as zoo
from torchvision.models import WeightsEnum

from engines.errors import InputError
from engines.files import sha256_of
from engines.preprocess import Preprocessing
from faq_deploy.architecture import RANDOM, Architecture, WeightsFile, local_weights

__all__ = ["torchvision_architecture", "torchvision_names"]

_DEFAULT: Final = "DEFAULT"  # torchvision's alias of an architecture's best weights


def torchvision_names() -> list[str]:
    """Names of the classification models, sorted."""
    return list(zoo.list_models(module=zoo))


def torchvision_architecture(name: str, weights: str | None) -> Architecture:
    """A classification model of torchvision.

    A local file that is byte for byte one of the published ones is recognized, and gets that entry's preprocessing and
    class names. Other weights get the preprocessing of the architecture's first published ones, which for most is
    resize 256, crop 224.

    Args:
        name: as `torchvision.models.get_model` takes it.
        weights: a file, the name of published weights (`IMAGENET1K_V1`, `DEFAULT`), `random`, or None.

    Returns:
        The architecture, with published weights already downloaded.

    Raises:
        InputError: unknown names, no such file, a failed download.
    """
    if name not in torchvision_names():
        near = difflib.get_close_matches(name, torchvision_names(), n=3, cutoff=0.5)
        raise InputError(
            f"torchvision has no classification model {name!r}.",
            f"did you mean {', '.join(near)}?" if near else "torchvision.models.list_models() names all.",
        )
    entries = list(zoo.get_model_weights(name))
    file, entry = _resolve(name, weights, entries)
    options = _options(name, entry, trained=file is not None)

    def build(classes: int | None) -> nn.Module:
        count = {} if classes is None else {"num_classes": classes}
        module = zoo.get_model(name, weights=None, **options, **count)
        if not isinstance(module, nn.Module):
            raise InputError(f"torchvision's {name} is not a module.", "name another model.")
        return module

    return Architecture(
        name,
        build,
        preprocessing=_preprocessing(entry or entries[0]) if entries else Preprocessing(resize=256, crop=224),
        weights=file,
        classes=tuple(entry.meta["categories"]) if entry else None,
    )


def _resolve(
    name: str, weights: str | None, entries: list[WeightsEnum]
) -> tuple[WeightsFile | None, WeightsEnum | None]:
    if weights is None or weights == RANDOM:
        return None, None
    if Path(weights).expanduser().is_file():
        file = local_weights(weights)
        same = [entry for entry in entries if file is not None and file.sha256.startswith(_hash_start(entry))]
        return file, same[0] if same else None
    wanted = weights.rpartition(".")[2]
    if entries and wanted == _DEFAULT:
        return _download(name, type(entries[0])[_DEFAULT])
    for entry in entries:
        if wanted == entry.name:
            return _download(name, entry)
    raise InputError(
        f"--weights {weights} is neither a file nor published weights of {name}.",
        f"pass a file, or one of {', '.join([*(entry.name for entry in entries), RANDOM])}.",
    )


def _download(name: str, entry: WeightsEnum) -> tuple[WeightsFile, WeightsEnum]:
    """Fetch published weights into torch's cache, where torchvision keeps them too."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlparse(entry.url).path).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(path), hash_prefix=_hash_start(entry))
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
            raise InputError(
                f"The weights {entry.name} of {name} could not be downloaded: {error}.",
                f"where there is a network, download {entry.url}, and pass the file with --weights.",
            ) from error
    digest = sha256_of(path)
    if not digest.startswith(_hash_start(entry)):
        raise InputError(f"{path} is damaged: its sha256 is not that of its name.", "delete it and try again.")
    return WeightsFile(path, digest), entry


def _hash_start(entry: WeightsEnum) -> str:
    """The first digits of the sha256 of published weights, which their file name carries."""
    found = re.search(r"-([0-9a-f]{8,})\.pth$", entry.url)
    return found.group(1) if found else "no hash"


def _options(name: str, entry: WeightsEnum | None, *, trained: bool) -> Mapping[str, bool | int]:
    """What torchvision's own builders set when they load published weights."""
    options: dict[str, bool | int] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = not trained  # slow, and overwritten
        options["transform_input"] = entry is not None
    if entry is not None and name.startswith("vit_"):
        options["image_size"] = entry.meta["min_size"][0]
    return options


def _preprocessing(entry: WeightsEnum) -> Preprocessing:
    steps = entry.transforms()
    return Preprocessing(
        resize=steps.resize_size[0],
        crop=steps.crop_size[0],
        interpolation=steps.interpolation.value,
        mean=tuple(steps.mean),
        std=tuple(steps.std),
    )
