"""PointText: point clouds of single objects and texts in one space, by ULIP's contrast of the two.

Xue et al. 2022, ULIP, arXiv 2212.05171, the cross-modal contrast of its section 3; salesforce/ULIP, models/losses.py
and models/ULIP_models.py. With unit vectors p_i of clouds and t_j of texts, s = exp(τ),

    L = 1/2 [ mean_i CE(s <p_i, t_.>, i) + mean_j CE(s <p_., t_j>, j) ],

each side through one matrix without bias into the joint space; τ starts at ln(1/0.07) and is held in [0, ln 100]. So it
is with any encoder of clouds: `PointNet`, `PointNet2`, `ObjectPointNet`, ...

ULIP's text tower is a published one that does not learn, and its space is the joint space: put it into
`collimate.encoders.Frozen`, and give `NoProjection` for its projection.

Departures: no rendered pictures, and so not ULIP's second term of the same form, of clouds and pictures; one text of a
sample at a time, drawn anew each time, in the place of the mean of all its texts' vectors; samples of one text are no
negatives of each other, which in ULIP's code they are: names of classes as texts come by the dozen. The softmax runs
over the samples of all ranks with exact gradients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from collimate.encoders import Encoder, Projection, projections_for
from collimate.losses import clip_loss
from collimate.losses.composition import composed
from collimate.losses.negatives import text_ids
from collimate.processing import Processor
from collimate.training import Method


@composed(similarity="cosine", targets="own pair", negatives="all others of all ranks, but equal texts")
class PointText(Method):
    """A tower of clouds and a text tower that find each other's samples in a batch.

    Args:
        point_encoder: of clouds as `point_processor` makes them: 3 channels, and one for each of its `fields`.
        text_encoder: the text tower.
        point_processor: how clouds become inputs.
        tokenizer: how texts become the text tower's input. What is beyond its context is not read.
        embed_dim: D, the width of the joint space, for projections that are None.
        point_projection: the clouds' vectors into the joint space; one matrix if None.
        text_projection: the texts' vectors into the joint space; one matrix if None.
        init_logit_scale: s at the start.
        max_logit_scale: s is held between 1 and this.
    """

    modalities = ("points", "text")

    def __init__(
        self,
        point_encoder: Encoder,
        text_encoder: Encoder,
        point_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 512,
        point_projection: Projection | None = None,
        text_projection: Projection | None = None,
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.processors = {"points": point_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"points": point_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, points=point_projection, text=text_projection)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # τ, the logarithm
        self.max_logit_scale = max_logit_scale

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        scale, ids = self.logit_scale.exp(), text_ids(batch["text"])
        return {"contrast": clip_loss(embeddings["points"], embeddings["text"], scale, ids=ids)}
