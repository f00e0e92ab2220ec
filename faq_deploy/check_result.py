"""What `faq_deploy.check` found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from faq_deploy.agreement import Agreement

__all__ = ["CheckResult"]


@dataclass(frozen=True)
class CheckResult:
    """A prepared model against an exported file.

    Attributes:
        agreements: of each runtime with PyTorch: the integer reference, and onnxruntime without optimizations.
        metric: its value by stage: `PyTorch float` where a float model was given, `PyTorch quantized`, and
            `onnxruntime` without optimizations; empty without a metric.
    """

    agreements: tuple[Agreement, ...]
    metric: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line: what differs, and the metric of each stage."""
        metric = "".join(f"; {stage} {value:.6g}" for stage, value in self.metric.items())
        return (
            f"{self.images} images: {self.differing_codes:,} of {self.codes:,} codes and "
            f"{self.differing_logits:,} of {self.logits:,} logits differ{metric}"
        )

    @property
    def equal(self) -> bool:
        """Whether every code and every logit is the same in all runtimes."""
        return self.differing_codes == 0 and self.differing_logits == 0

    @property
    def images(self) -> int:
        """How many were compared."""
        return self.agreements[0].images

    @property
    def codes(self) -> int:
        """Codes compared, over all runtimes."""
        return sum(found.codes_compared for found in self.agreements)

    @property
    def differing_codes(self) -> int:
        """Codes that differ from PyTorch's, over all runtimes."""
        return sum(found.differing for found in self.agreements)

    @property
    def logits(self) -> int:
        """Logits compared, over all runtimes."""
        return sum(found.logits_compared for found in self.agreements)

    @property
    def differing_logits(self) -> int:
        """Logits that differ from PyTorch's, over all runtimes."""
        return sum(found.differing_logits for found in self.agreements)

    @property
    def largest_difference(self) -> float:
        """Of two logits, in their units."""
        return max(found.largest_difference for found in self.agreements)

    @property
    def top1_agreement(self) -> float:
        """Share of images with PyTorch's top-1 class, 0 to 1, in the runtime that has least.

        Of a net whose outputs are not one of shape (images, classes): of images whose outputs are all the same.
        """
        return 1.0 - max(found.flips for found in self.agreements) / self.images

    @property
    def first_difference(self) -> str | None:
        """The first quantizer whose codes differ, in the order of the graph, or None."""
        return next((found.first for found in self.agreements if found.first is not None), None)
