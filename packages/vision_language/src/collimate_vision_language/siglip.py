"""SigLIP: sigmoid loss for language-image pre-training.

Zhai et al. 2023, arXiv 2303.15343; google-research/big_vision and open_clip.

With unit vectors x_i of images and y_j of texts, z_ij = 1 where i = j and -1 elsewhere, and
l_ij = exp(t') <x_i, y_j> + b:

    L = - (1/B) sum_i sum_j log sigmoid(z_ij l_ij)

t' starts at ln 10 and b at -10; neither is clamped (released models have scales above 100).

Departures: none in the numbers. The sum runs over the samples of all ranks with exact gradients, and in tiles.
`init_logit_bias="auto"` is ours: it balances positives and negatives at the start of any batch size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.checkpoints.open_clip import read_open_clip
from collimate.distributed import world_size
from collimate.encoders import Encoder, Projection, projections_for
from collimate.encoding import Encoding
from collimate.losses import siglip_loss
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method

PUBLISHED_BIAS = -10.0  # arXiv 2303.15343, section 3.2


@composed(
    similarity="cosine, scaled and shifted",
    targets="own pair",
    negatives="all others of all ranks, each by itself",
)
class SigLIP(Method):
    """An image and a text tower that decide of each pair by itself whether it belongs together.

    Any two towers will do. The paper's are a ViT pooled by attention, without a projection
    (`NoProjection`), and a transformer without causal mask, with a `LinearProjection` with bias.

    Args:
        image_encoder: the image tower.
        text_encoder: the text tower.
        image_processor: how pictures become the image tower's input.
        tokenizer: how texts become the text tower's input.
        embed_dim: D, the width of the joint space.
        image_projection: the image tower's vectors into the joint space; one matrix if None.
        text_projection: the text tower's vectors into the joint space; one matrix if None.
        init_logit_scale: exp(t') at the start.
        init_logit_bias: b at the start; `auto` takes ln(p / (1 - p)) with p = 1/B of the first global batch.
    """

    modalities = ("image", "text")

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        image_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 768,
        image_projection: Projection | None = None,
        text_projection: Projection | None = None,
        init_logit_scale: float = 10.0,
        init_logit_bias: float | Literal["auto"] = PUBLISHED_BIAS,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        self.balance_bias = init_logit_bias == "auto"
        bias = PUBLISHED_BIAS if init_logit_bias == "auto" else init_logit_bias
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # t', the logarithm
        self.logit_bias = nn.Parameter(torch.tensor(bias))

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        image, text = embeddings["image"], embeddings["text"]
        return {"siglip": siglip_loss(image, text, self.logit_scale.exp(), self.logit_bias)}

    def match_probability(self, image: Encoding, text: Encoding) -> Float[Tensor, "I T"]:
        """sigmoid(l_ij): the probability that text j describes image i."""
        return torch.sigmoid(self.logit_scale.exp() * self.similarity(image, text) + self.logit_bias)

    @torch.no_grad()
    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.balance_bias and self.trainer.global_step == 0 and batch_idx == 0:
            pairs = len(batch["text"]) * world_size()
            self.logit_bias.fill_(-math.log(max(pairs - 1, 1)))

    @classmethod
    def from_open_clip(
        cls,
        model: str | Mapping[str, Any] | nn.Module,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        **processors: Processor,
    ) -> SigLIP:
        """From an open_clip model; see `collimate.checkpoints.open_clip.read_open_clip`."""
        return read_open_clip(model, checkpoint, **processors).build(cls)
