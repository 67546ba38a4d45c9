"""CLIP: learning transferable visual models from natural language supervision.

Radford et al. 2021, arXiv 2103.00020; openai/CLIP and mlfoundations/open_clip.

With unit vectors x_i of images and y_j of texts, s = exp(t), and l_ij = s <x_i, y_j>:

    L = 1/2 [ mean_i CE(l_i., i) + mean_j CE(l_.j, j) ]

t starts at ln(1/0.07) and is clamped to [0, ln 100] after every optimizer step, outside the graph.

Departures: none in the numbers. The softmax runs over the samples of all ranks with exact gradients, and in
tiles, so that no similarity matrix is held.

Duplicate captions. Where y_i = y_j (class names as captions, mixed data sets), the image of one is a negative of the
other's text. `mask_duplicates` takes such pairs out of both sums; it is ours, and off unless asked for. To count them
as positives of one another (`SharedLabels`) would change nothing: equal vectors have equal logits, so over the
samples of one caption the identity's losses have the same sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from collimate.checkpoints.open_clip import read_open_clip, read_openai
from collimate.encoders import Encoder, Projection, projections_for
from collimate.losses import clip_loss
from collimate.losses.composition import composed
from collimate.losses.negatives import text_ids
from collimate.processing import Processor
from collimate.training import Method


@composed(
    similarity="cosine",
    targets="own pair",
    negatives="all others of all ranks; without duplicates if asked",
)
class CLIP(Method):
    """An image and a text tower that find each other's samples in a batch.

    Args:
        image_encoder: the image tower.
        text_encoder: the text tower.
        image_processor: how pictures become the image tower's input.
        tokenizer: how texts become the text tower's input.
        embed_dim: D, the width of the joint space.
        image_projection: the image tower's vectors into the joint space; one matrix if None.
        text_projection: the text tower's vectors into the joint space; one matrix if None.
        init_logit_scale: s at the start.
        max_logit_scale: s is held between 1 and this.
        mask_duplicates: leave out of the loss the pairs of different samples, on any rank, whose captions have the
            same tokens.
        contrast_size: contrast so many samples of each rank at a time, all of them if None. Where a `PhaseSchedule`
            changes the batch, the number of negatives stays, and with it the loss of chance, ln N, and the scale.
    """

    modalities = ("image", "text")

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        image_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 512,
        image_projection: Projection | None = None,
        text_projection: Projection | None = None,
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
        mask_duplicates: bool = False,
        contrast_size: int | None = None,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # t, the logarithm
        self.max_logit_scale = max_logit_scale
        self.mask_duplicates, self.contrast_size = mask_duplicates, contrast_size

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        images, texts = embeddings["image"], embeddings["text"]
        ids = text_ids(batch["text"]) if self.mask_duplicates else None
        parts = []
        for first in range(0, len(images), self.contrast_size or len(images)):
            rows = slice(first, first + (self.contrast_size or len(images)))
            own = None if ids is None else ids[rows]
            loss = clip_loss(images[rows], texts[rows], self.logit_scale.exp(), ids=own)
            parts.append(loss * len(images[rows]) / len(images))
        return {"clip": torch.stack(parts).sum()}

    @classmethod
    def from_open_clip(
        cls,
        model: str | Mapping[str, Any] | nn.Module,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        **processors: Processor,
    ) -> CLIP:
        """From an open_clip model; see `collimate.checkpoints.open_clip.read_open_clip`."""
        return read_open_clip(model, checkpoint, **processors).build(cls)

    @classmethod
    def from_openai(cls, checkpoint: str | PathLike[str] | Mapping[str, Tensor], text_heads: int | None = None) -> CLIP:
        """From OpenAI's weights; see `collimate.checkpoints.open_clip.read_openai`."""
        return read_openai(checkpoint, text_heads).build(cls)
