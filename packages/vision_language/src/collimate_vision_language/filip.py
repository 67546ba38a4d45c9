"""FILIP: fine-grained interactive language-image pre-training.

Yao et al. 2021, arXiv 2111.07783, section 3; there is no official release of its training.

With unit patches v_ik, k = 1..P, of image i and the n_j unit tokens t_jr of text j, both by a linear map without bias
from the towers' last tokens to D = 256,

    s^I_ij = 1/P Σ_k max_r <v_ik, t_jr>        s^T_ji = 1/n_j Σ_r max_k <v_ik, t_jr>
    L = 1/2 [ mean_i CE(s s^I_i., i) + mean_j CE(s s^T_j., j) ]

s starts at 1/0.07. The class token of an image takes no part; start and end tokens of a text do, padding does not.

Departures:
- Before texts are gathered, the paper keeps the 25 % of each side's tokens that match the other side best. That saves
  memory which the loss here does not need, so it is off; `image_token_share` and `text_token_share` of 0.25 are as
  published. Of either side, what is not kept takes no part at all: the paper does not say whether the own side is cut.
- s is held between 1 and 100, as in CLIP; the paper does not say.
- Of several captions of an image, back-translations among them, the data module draws one each time.

A classifier's score is the mean of similarities over its prompts (`collimate.evaluation.zero_shot`), images rank texts
by s^I and texts rank images by s^T. s^I grows with the length of a text: compare texts of about equal length.

Shape legend: B samples, P patches, L text tokens, D width of the joint space.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import pad

from collimate.encoders import Encoder, Projection, projections_for
from collimate.encoding import Encoding
from collimate.losses import filip_loss, late_interaction
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method


@composed(
    similarity="late interaction of tokens",
    targets="own pair",
    negatives="all others of all ranks",
)
class FILIP(Method):
    """An image and a text tower that are compared token by token.

    Any two towers that give tokens will do. What a tower pools has no part in training: where pooling has weights of
    its own (attention pooling, a norm after the mean), several devices need a strategy that looks for unused ones. A
    probe takes the image tower's `pooled`, which should be the mean of its patches: `options: {pool_type: avg}` of
    `OpenClipImageEncoder`.

    Args:
        image_encoder: the image tower.
        text_encoder: the text tower.
        image_processor: how pictures become the image tower's input.
        tokenizer: how texts become the text tower's input; its mask says which tokens are real.
        embed_dim: D, the width of the joint space.
        image_projection: the image tower's tokens into the joint space; one matrix if None.
        text_projection: the text tower's tokens into the joint space; one matrix if None.
        init_logit_scale: s at the start.
        max_logit_scale: s is held between 1 and this.
        drop_special_tokens: leave out the tokenizer's start and end tokens, where a text has others. A causal tower
            gives all texts the same start token, which says nothing of them.
        image_token_share: the share of an image's tokens that the loss uses.
        text_token_share: the share of a text's tokens that the loss uses.
    """

    modalities = ("image", "text")

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        image_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 256,
        image_projection: Projection | None = None,
        text_projection: Projection | None = None,
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
        drop_special_tokens: bool = False,
        image_token_share: float = 1.0,
        text_token_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # the logarithm of s
        self.max_logit_scale = max_logit_scale
        self.drop_special_tokens = drop_special_tokens
        self.image_token_share, self.text_token_share = image_token_share, text_token_share

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """Tokens in the joint space, not normalised, and as `pooled` the mean of the real ones.

        Raises:
            ValueError: the tower gives no tokens.
        """
        encoding = self.encoders[modality](inputs, mask)
        if encoding.tokens is None:
            raise ValueError(f"{type(self.encoders[modality]).__name__} gives no tokens, which FILIP compares.")
        tokens, mask = self.projections[modality](encoding.tokens), encoding.mask
        if modality == "text" and self.drop_special_tokens:
            mask = _without_special(inputs[:, : tokens.shape[1]], encoding.token_mask, self.processors["text"])
        real = torch.ones_like(tokens[..., :1]) if mask is None else mask[..., None].to(tokens.dtype)
        return Encoding((tokens * real).sum(1) / real.sum(1), tokens, mask, encoding.grid)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Tokens and masks, padded alike in every part of a batch; and the mean tokens, by which a run is watched."""
        found: dict[str, Tensor] = {}
        for modality in self.modalities:
            encoding = self.encode(modality, batch[modality])
            tokens, mask = encoding.tokens, encoding.token_mask
            assert tokens is not None
            missing = batch["text"].shape[1] - tokens.shape[1] if modality == "text" else 0  # towers cut common padding
            found[modality] = encoding.pooled
            found[f"{modality}_tokens"] = pad(tokens, (0, 0, 0, missing))
            found[f"{modality}_mask"] = pad(mask, (0, missing))
        return found

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        loss = filip_loss(
            embeddings["image_tokens"],
            embeddings["text_tokens"],
            self.logit_scale.exp(),
            embeddings["image_mask"],
            embeddings["text_mask"],
            image_share=self.image_token_share,
            text_share=self.text_token_share,
        )
        return {"filip": loss}

    def similarity(self, query: Encoding, key: Encoding) -> Float[Tensor, "Q K"]:
        """The mean over a query's tokens of their best match in a key: s^I where images ask, s^T where texts do.

        Raises:
            ValueError: an Encoding has no tokens, or one whose tokens are all masked.
        """
        if query.tokens is None or key.tokens is None:
            raise ValueError("FILIP compares tokens, and one of these encodings has none.")
        return late_interaction(query.tokens, key.tokens, query.mask, key.mask)


def _without_special(ids: Int64[Tensor, "B L"], real: Bool[Tensor, "B L"], tokenizer: Processor) -> Bool[Tensor, "B L"]:
    """The mask without start and end tokens; as it is for texts that consist of nothing else."""
    words = real
    for name in ("start_id", "end_id"):
        if (special := getattr(tokenizer, name, None)) is not None:
            words = words & (ids != special)
    return torch.where(words.any(1, keepdim=True), words, real)
