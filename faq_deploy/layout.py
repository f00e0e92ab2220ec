"""Values while a model is captured: a graph node's tensor and a permutation of its axes that was not emitted yet.

Nets that work on channels-last tensors (ConvNeXt) permute, apply linear layers and norms to the last axis, and
permute back. Here a permutation only changes how the tensor is read, so that a linear layer on the last axis is seen
to be a 1x1 convolution on axis 1, and the permutations fall away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Value"]


@dataclass(frozen=True)
class Value:
    """What an op of the traced model returns.

    Attributes:
        name: graph node that holds the tensor.
        shape: of that tensor, without the batch; 1 where the model broadcasts (expand).
        perm: axis i of the value is axis perm[i] of the tensor; perm[0] is 0, the batch.
    """

    name: str
    shape: tuple[int, ...]
    perm: tuple[int, ...]

    @staticmethod
    def plain(name: str, shape: Sequence[int]) -> Value:
        """A value read as its tensor lies."""
        return Value(name, tuple(shape), tuple(range(len(shape) + 1)))

    @property
    def rank(self) -> int:
        """With the batch."""
        return len(self.perm)

    @property
    def is_plain(self) -> bool:
        """No permutation is pending."""
        return self.perm == tuple(range(self.rank))

    @property
    def seen_shape(self) -> tuple[int, ...]:
        """The value's own shape, without the batch."""
        return tuple(self.shape[axis - 1] for axis in self.perm[1:])

    def axis(self, dim: int) -> int:
        """The tensor's axis behind the value's axis `dim` (negative ones count from the end)."""
        return self.perm[dim % self.rank]

    def permuted(self, order: Sequence[int]) -> Value:
        """The value with its axes in another order."""
        return Value(self.name, self.shape, tuple(self.perm[i] for i in order))

    def with_tensor(self, name: str, shape: Sequence[int]) -> Value:
        """Another tensor of the same rank, read through the same permutation."""
        return Value(name, tuple(shape), self.perm)

    def inverse(self) -> tuple[int, ...]:
        """Where each axis of the tensor stands in the value."""
        return tuple(self.perm.index(axis) for axis in range(self.rank))
