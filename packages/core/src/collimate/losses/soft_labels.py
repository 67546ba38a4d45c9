"""Contrast by how alike labels are (Burdisso et al. 2024, Dialog2Flow, arXiv 2410.18481, section 3.2).

With anchors a_i, positives p_j, the embedding e_i of the text of sample i's label, and CE(l, y) the mean over rows of
-Σ_j y_ij log softmax_j(l_ij),

    l_ij = cos(a_i, p_j) / τ        y_ij = softmax_j( cos(e_i, e_j) / τ' )        L = 1/2 [ CE(l, y) + CE(l', y) ].

L is no less than the entropy of y, which is large: at τ' = 0.35 a batch of 64 has soft targets.

Shape legend: n samples of this rank, D width, E width of label embeddings.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from collimate.distributed import Group
from collimate.losses.composition import composed
from collimate.losses.softmax import symmetric_info_nce
from collimate.losses.targets import Softened


@composed(
    similarity="cosine",
    targets="softmax of the cosines of label embeddings",
    negatives="all others of all ranks",
)
def soft_label_loss(
    anchor: Float[Tensor, "n D"],
    positive: Float[Tensor, "n D"],
    label_embeddings: Float[Tensor, "n E"],
    temperature: Tensor | float = 0.05,
    label_temperature: Tensor | float = 0.35,
    *,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Pull towards each sample what is labelled alike, by how alike the labels are; both directions.

    With labels that are alike or not, positives are `SharedLabels`: `clip_loss(..., targets=SharedLabels(y, y))`.

    Args:
        anchor: one text of each sample.
        positive: another text with the same label.
        label_embeddings: of each sample's label, by a frozen sentence encoder. Not differentiated.
        temperature: τ; 0.05 as published.
        label_temperature: τ'; 0.35 as published.
    """
    targets = Softened(label_embeddings, label_embeddings, 1 / label_temperature)
    return symmetric_info_nce(anchor, positive, 1 / temperature, targets=targets, normalize=normalize, group=group)
