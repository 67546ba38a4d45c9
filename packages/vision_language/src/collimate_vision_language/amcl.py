"""AMCL: adaptive multi-head contrastive learning of pictures.

Wang et al. 2024, arXiv 2310.05615, table 2, the NT-Xent row; LeiWangR/cl. Two views of each sample pass a tower and C
heads; each pair of views has, in each head, a temperature of its own, that a small network reads off the two vectors.
Equations, and what of the released code cannot be followed, stand in `collimate.losses.amcl`.

Departures beyond those: heads are dropped after training, and evaluation sees the tower's own vectors, as in the code.

Shape legend: B samples of this rank, C heads, D width of a head.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.encoders import Encoder, MLPProjection
from collimate.encoding import Encoding
from collimate.losses import PairTemperature, amcl_nt_xent_loss
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method


@composed(
    similarity="product in each of C heads, over a temperature of the pair",
    targets="other view",
    negatives="the hardest of all ranks, one a head",
)
class AMCL(Method):
    """An image tower with several heads and a temperature for each pair.

    Args:
        image_encoder: the tower.
        image_processor: how pictures become its input.
        heads: C; 3 as published.
        dim: D; 128 as published.
        temperature: of each pair; `PairTemperature` with its own settings if None.
        beta: β, the weight of what regularises the temperatures; 0.1 as published.
    """

    modalities = ("image",)
    views = MappingProxyType({"image_view": "image"})

    def __init__(
        self,
        image_encoder: Encoder,
        image_processor: Processor,
        heads: int = 3,
        dim: int = 128,
        temperature: PairTemperature | None = None,
        beta: float = 0.1,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor}
        self.encoders = nn.ModuleDict({"image": image_encoder})
        width = image_encoder.width
        self.heads = nn.ModuleList(MLPProjection(width, dim, width, activation="relu") for _ in range(heads))
        self.temperature = temperature or PairTemperature(dim)
        self.beta = beta

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {key: self.through_heads(self.encode("image", batch[key]).pooled) for key in ("image", "image_view")}

    def through_heads(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B C D"]:
        """z of each head, of unit length."""
        return normalize(torch.stack([head(pooled) for head in self.heads], 1), dim=-1)

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        features = torch.stack([embeddings["image"], embeddings["image_view"]], 1)
        features = normalize(features, dim=-1)  # towers may run in half precision, which leaves lengths a little off
        return {"amcl": amcl_nt_xent_loss(features, self.temperature, self.beta)}
