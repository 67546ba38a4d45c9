"""The two sides of pairs that a batch holds side by side, as groups of two of `data.sampling` stand.

Shape legend: n samples, n/2 pairs, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def side_by_side(features: Tensor, labels: Tensor | None = None, sampling: str = "PerLabel") -> tuple[Tensor, Tensor]:
    """The first and the second sample of each pair.

    Args:
        features: of a batch, (n, ...).
        labels: of its samples, (n, ...), which the two of a pair share; None where nothing tells.
        sampling: of `collimate.data`, which makes such batches; for the message.

    Raises:
        ValueError: the batch is not made of pairs.
    """
    if len(features) % 2 or (labels is not None and not torch.equal(labels[::2], labels[1::2])):
        settings = {"PerLabel": "samples: 2", "WithNeighbours": "neighbours: 1"}[sampling]
        raise ValueError(
            f"Two of a pair must stand side by side: set data.sampling to collimate.data.{sampling} with {settings}."
        )
    return features[::2], features[1::2]
