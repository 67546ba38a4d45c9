"""What a contrast is composed of, declared beside it: one choice on each of the four axes.

`collimate list --kind contrasts` reads the declarations from the source files, and `tools/contrasts.py` writes the
table of all of them, docs/contrasts.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Composition:
    """The four choices, in a few words each.

    Attributes:
        similarity: of two samples.
        targets: who is a positive of whom, and how much.
        weights: what a sample or a pair counts.
        negatives: what a positive is contrasted with.
    """

    similarity: str
    targets: str
    weights: str
    negatives: str


def composed(*, similarity: str, targets: str, weights: str = "none", negatives: str) -> Callable[[T], T]:
    """Declare what a loss or a method is composed of; found again as its `composition`.

    Give strings as they are: the table is made without importing anything.
    """

    def declare(contrast: T) -> T:
        contrast.composition = Composition(similarity, targets, weights, negatives)  # type: ignore[attr-defined]
        return contrast

    return declare
