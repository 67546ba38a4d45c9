"""SupCon: samples of one label come to lie together, those of others apart.

Khosla et al. 2020, arXiv 2004.11362, equation 2 (L_out); HobbitLong/SupContrast. With the unit vectors z of all views
of all samples, P(i) the others of i's label, and s the inverse temperature,

    L = mean_i -1/|P(i)| Σ_{p in P(i)} log softmax_{a≠i}(s <z_i, z_a>)_p.

Each sample comes as two draws of the augmentation. Batches of `collimate.data.PerLabel` have positives beside them too;
with one view, as for texts, they are the only ones, and with a scale that learns this is STAR's training by authors
(Huertas-Tato et al. 2023, arXiv 2310.11081; `collimate.losses.star_loss`).

Departures: the loss is not multiplied by the temperature over a base temperature, a constant; the contrast runs over
the samples of all ranks, where the released code sees those of one. The head between tower and loss is dropped after
training, as published: evaluation and export see the tower's own vectors.

Shape legend: B samples of this rank, V views, D width of the head's space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from collimate.encoders import Encoder, MLPProjection, Projection
from collimate.encoding import Encoding
from collimate.losses import supcon_loss
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method


@composed(
    similarity="cosine",
    targets="other views of its sample and label",
    negatives="all views of all others of all ranks",
)
class SupCon(Method):
    """One tower that is trained on labels.

    Args:
        encoder: the tower.
        processor: how samples become its input.
        modality: what it encodes.
        views: draws of the augmentation a sample; 2 as published, 1 for texts.
        head: the tower's vectors into the space of the loss; two layers with a ReLU to 128 dimensions if None.
        init_logit_scale: s, at the start; 1/0.07 as in the released code.
        learn_scale: whether s learns, held between 1 and 100, as STAR's does.

    Raises:
        ValueError: there is no view.
    """

    also = ("label",)

    def __init__(
        self,
        encoder: Encoder,
        processor: Processor,
        modality: str = "image",
        views: int = 2,
        head: Projection | None = None,
        init_logit_scale: float = 1 / 0.07,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        if views < 1:
            raise ValueError(f"A sample has at least one view, not {views}.")
        self.modalities = (modality,)
        self.views: Mapping[str, str] = {f"{modality}_view_{number}": modality for number in range(1, views)}
        self.processors = {modality: processor}
        self.encoders = nn.ModuleDict({modality: encoder})
        self.head = head or MLPProjection(encoder.width, 128, activation="relu")  # SupContrast: 128, ReLU
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)), requires_grad=learn_scale)
        self.max_logit_scale = 100.0 if learn_scale else None

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        (modality,) = self.modalities
        return {key: self.head(self.encode(modality, batch[key]).pooled) for key in (modality, *self.views)}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        features = torch.stack(list(embeddings.values()), 1)
        return {"supcon": supcon_loss(features, batch["label"], temperature=1 / self.logit_scale.exp())}
