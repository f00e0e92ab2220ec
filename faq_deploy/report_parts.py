"""Parts of report.json: what stages answered compared in pairs, by class and by image, and the baseline."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

__all__ = ["BINS", "Baseline", "ClassRow", "Comparison", "Count", "Flip", "Part", "Percent", "Share"]

BINS: Final = 16

Percent = Annotated[float, Field(ge=0, le=100)]
Points = Annotated[float, Field(ge=-100, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """What all parts of a report share."""

    # A diverged net has a NaN loss; as a string it survives JSON both ways.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", populate_by_name=True)


class Comparison(Part):
    """Two stages' answers to the same images, and what so many images can show.

    Args:
        before: the stage that is compared with.
        after: the other one.
        images: that both ran.
        lost: right before, wrong after.
        gained: the reverse.
        flips: answered with another class, right or wrong.
        drop: points of top-1 that the second stage loses on these images.
        low: the true drop is not smaller than this, with 95 % confidence.
        high: nor larger than this.
        p_value: of the exact McNemar test: how likely so uneven a split of lost and gained is by chance alone.
        visible_drop: points; a smaller drop of the second stage could not have been told from chance on so many
            images with so many gained; None where no drop could.
        certain: both stages gave the same logits for every image, to the last bit: nothing is left to chance.
    """

    before: str
    after: str
    images: Annotated[int, Field(ge=1)]
    lost: Count
    gained: Count
    flips: Count
    drop: Points
    low: Points
    high: Points
    p_value: Share
    visible_drop: Percent | None
    certain: bool


class ClassRow(Part):
    """One class of the images.

    Args:
        name: of the class.
        images: of it; 0 where the data has none.
        right: how many of them each stage that ran all images answered rightly, by the stage's name.
    """

    name: str
    images: Count
    right: dict[str, Count]


class Flip(Part):
    """An image that a stage answers otherwise than the float net, or than PyTorch quantized.

    Args:
        image: its name.
        label: its true class.
        answers: by stage.
        thumbnail: a small JPEG in base64; empty where it can't be had.
    """

    image: str
    label: str
    answers: dict[str, str]
    thumbnail: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$")] = ""


class Baseline(Part):
    """The report that this one is compared with.

    Args:
        run: name of its run folder.
        created: when.
        faq_deploy: version of the tool that wrote it.
        top1: of PyTorch quantized, in percent.
        images: that it was measured on.
        same_images: whether these are the images of this report, in the same order.
        same_network: whether it is of the very same model.onnx.
        comparison: image by image, where the images are the same and their answers lie beside the baseline.
    """

    run: str
    created: AwareDatetime
    faq_deploy: str
    top1: Percent
    images: Count
    same_images: bool
    same_network: bool
    comparison: Comparison | None = None
