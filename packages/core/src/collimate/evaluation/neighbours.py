"""`collimate data neighbours`: a table of each sample's nearest others, for `collimate.data.WithNeighbours`.

Mined positives (SiMHand, arXiv 2502.15251, section 3.2) are a sample's nearest among those of other groups, such as
other videos; hard negatives its nearest of other labels.

Shape legend: N samples, D width, k neighbours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from collimate.console import say
from collimate.data import open_source
from collimate.data.grouping import labels_in
from collimate.evaluation.index import SCORES, EmbeddingIndex

NONE = -1


def write_neighbours(
    embeddings: str,
    output: str,
    count: int = 16,
    modality: str | None = None,
    data: str | None = None,
    other: str | None = None,
) -> None:
    """Write a table of each sample's nearest others, by the cosine of their embeddings.

    Args:
        embeddings: the folder that `collimate <app> embed` wrote, of all samples.
        output: the .npy file to write: int64 (N, count), places in the source, the nearest first, -1 for none.
        count: neighbours of each sample.
        modality: by which embeddings, where the folder has those of several.
        data: the samples, as `collimate <app> embed --data` was given them; for `other`.
        other: only neighbours that differ under this key of the samples: `cls` for hard negatives, the key of a video
            for positives out of other videos.
    """
    if (data is None) != (other is None):
        raise ValueError("Neighbours of other groups need both --data and --other.")
    index = EmbeddingIndex(embeddings, modality)
    groups = None
    if data is not None:
        groups = torch.from_numpy(labels_in(open_source(data), other))[index.places]
    found = nearest_neighbours(index.vectors(), count, groups)
    table = np.full((int(index.places.max()) + 1, count), NONE, dtype=np.int64)
    places = index.places.numpy()
    table[places, : found.shape[1]] = np.where(found.numpy() >= 0, places[found.numpy()], NONE)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    np.save(output, table)
    say(f"{output}: {count} neighbours of each of {len(table)} samples; {(table >= 0).mean():.1%} of them were found.")


def nearest_neighbours(
    vectors: Float[Tensor, "N D"], count: int, groups: Int64[Tensor, " N"] | None = None
) -> Int64[Tensor, "N k"]:
    """The nearest others of each sample by the cosine, the nearest first; -1 where there are not so many.

    Args:
        vectors: of the samples.
        count: k, at most; fewer where there are fewer samples.
        groups: samples of one group are no neighbours; each is its own group if None.
    """
    units = normalize(vectors.float(), dim=1)
    groups = torch.arange(len(units)) if groups is None else groups
    rows = []
    for part in torch.arange(len(units)).split(max(1, SCORES // len(units))):
        scores = (units[part] @ units.T).masked_fill(groups[part, None] == groups, -torch.inf)
        scores[torch.arange(len(part)), part] = -torch.inf
        best = scores.topk(min(count, len(units)), dim=1)
        rows.append(best.indices.masked_fill(best.values == -torch.inf, NONE))
    return torch.cat(rows)
