"""CWCL: a tower trained towards a frozen one, by how near the frozen one finds samples.

Srinivasa et al. 2023, Continuously weighted contrastive loss, arXiv 2309.14580, section 3. With unit vectors p of the
frozen tower, q of the trained one, s = exp(t) and w_ij = (<p_i, p_j> + 1) / 2,

    L = - mean_i Σ_j w_ij / (Σ_j w_ij) log softmax_j(s <p_i, q_j>)  +  mean_i CE(s <q_i, p_.>, i).

A pair that the frozen tower finds near is no full negative. Weights are flat: a cosine of 0 weighs 1/2, so that in
large batches targets are nearly uniform. Locking a tower (LiT, Zhai et al. 2022, arXiv 2111.07991) is CLIP with a tower
in `collimate.encoders.Frozen`; this adds the weights.

Departures: no code of the authors is public; the published image-text setting freezes the image tower, and either may
be here. The joint space is the frozen tower's own, into which the other's vectors are projected. The softmax runs over
the samples of all ranks with exact gradients.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from collimate.encoders import Encoder, Projection, projections_for
from collimate.encoders.adapted import require_frozen
from collimate.losses import cwcl_loss
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method


@composed(
    similarity="cosine",
    targets="how near the frozen tower finds them; own pair backwards",
    negatives="all others of all ranks",
)
class CWCL(Method):
    """An image and a text tower, one of which is frozen and says what is near.

    Args:
        image_encoder: the image tower.
        text_encoder: the text tower. One of the two is a `Frozen`.
        image_processor: how pictures become the image tower's input.
        tokenizer: how texts become the text tower's input.
        embed_dim: D, the width of the frozen tower.
        image_projection: the image tower's vectors into the joint space; `NoProjection` where it is frozen, one matrix
            if None.
        text_projection: as for pictures.
        frozen: whose tower is frozen.
        init_logit_scale: s at the start.
        max_logit_scale: s is held between 1 and this.
        target_temperature: of weights that are less flat than the published ones; see `cwcl_loss`. None for those.

    Raises:
        ValueError: the tower that is to be frozen is not, or is projected.
    """

    modalities = ("image", "text")

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        image_processor: Processor,
        tokenizer: Processor,
        embed_dim: int,
        image_projection: Projection | None = None,
        text_projection: Projection | None = None,
        frozen: Literal["image", "text"] = "image",
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
        target_temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        require_frozen(self.encoders[frozen], self.projections[frozen], frozen, "CWCL")
        self.frozen, self.trained = frozen, "text" if frozen == "image" else "image"
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # t, the logarithm
        self.max_logit_scale = max_logit_scale
        self.target_temperature = target_temperature

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        frozen, trained = embeddings[self.frozen], embeddings[self.trained]
        scale = self.logit_scale.exp()
        return {"cwcl": cwcl_loss(frozen, trained, scale, target_temperature=self.target_temperature)}
