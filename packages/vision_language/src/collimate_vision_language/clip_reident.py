"""CLIP-ReIdent: pictures of one identity find each other among those of others.

Habel et al. 2022, arXiv 2303.11855; KonradHabel/clip_reid. A batch holds pairs of pictures (q_i, g_i), each of an
identity that no other pair of the batch has. With unit vectors of one shared tower, s = exp(t) and label smoothing ε,

    L = 1/2 [ mean_i CE_ε(s <q_i, g_.>, i) + mean_i CE_ε(s <q_., g_i>, i) ].

The pairs come of `data.sampling: PerLabel(samples=2)`, whose groups stand side by side. Published settings: OpenAI's
towers without their projection, s goes on from the checkpoint's and is held nowhere, ε = 0.1.

Departures: identities come equally often, where the released code lets each picture be a query once an epoch and drops
what no batch can take; the contrast runs over the pairs of all ranks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.losses import Paired, Smoothed, clip_loss
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method
from collimate.training.pairs import side_by_side


@composed(
    similarity="cosine",
    targets="other picture of the identity, smoothed",
    negatives="pictures of other identities of all ranks",
)
class CLIPReIdent(Method):
    """One image tower for queries and gallery.

    Args:
        image_encoder: the tower.
        image_processor: how pictures become its input.
        init_logit_scale: s at the start; 100 is that of OpenAI's towers.
        label_smoothing: ε; 0.1 as published.
    """

    modalities = ("image",)
    also = ("label",)

    def __init__(
        self,
        image_encoder: Encoder,
        image_processor: Processor,
        init_logit_scale: float = 100.0,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor}
        self.encoders = nn.ModuleDict({"image": image_encoder})
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # t, the logarithm
        self.label_smoothing = label_smoothing

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        query, gallery = side_by_side(embeddings["image"], batch["label"])
        targets = Smoothed(Paired(), self.label_smoothing)
        return {"identity": clip_loss(query, gallery, self.logit_scale.exp(), targets=targets)}
