"""Masked label prediction: most patches are hidden, and their labels are to be told from the others.

Chen et al. 2023, BEATs, arXiv 2212.09058, section 3.3. Of a clip's n real patches the round((1 - ρ) n) with the
smallest noise stay visible, at least one, and only these enter the encoder. A small predictor is given what the encoder
makes of them, at their places, and tells each hidden patch's label z:

    L = - mean over the hidden real patches of log p(z | visible patches),    ρ = 0.75

No patch that is visible is scored. Checked against ESPnet, espnet2/asr/encoder/beats_encoder.py (branch audioverse);
the release has no training code.

ESPnet departs from the paper in three things, each of which is open here: hidden places hold a learned token instead of
zeros, labels are smoothed by 0.1, and the encoder takes the visible patches as neighbours (`BEATs.visible`).

Shape legend: B clips, L patches, V visible ones of the clip with the most, D width, P width of the predictor, K labels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from collimate import distributed
from collimate.configurable import Configurable
from collimate.losses.masked_tokens import mean_of_chosen
from collimate_audio.beats_layers import INITIAL_STD, BeatsLayers, LayerSettings, initialise
from collimate_audio.codebook import code_counts

MASK_RATIO = 0.75  # BEATs, section 3.3


class VisiblePatches(NamedTuple):
    """Which patches of each clip can be seen.

    Attributes:
        indices: (B, V), in rising order; what lies beyond a clip's own number only fills up.
        mask: (B, V), True where an index is meant.
        hidden: (B, L), True where a patch is real and cannot be seen.
    """

    indices: Int64[Tensor, "B V"]
    mask: Bool[Tensor, "B V"]
    hidden: Bool[Tensor, "B L"]


def hide_patches(
    noise: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"] | None = None, ratio: float = MASK_RATIO
) -> VisiblePatches:
    """Hide a share of each clip's patches, uniformly at random.

    Args:
        noise: independent uniform draws; equal ones go by their order.
        mask: True where a patch is real.
        ratio: ρ.

    Raises:
        ValueError: ρ is not from 0 to below 1.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio is the share that is hidden, from 0 to below 1; got {ratio}.")
    real = torch.ones_like(noise, dtype=torch.bool) if mask is None else mask
    lengths = real.sum(1)
    counts = (lengths * (1 - ratio)).round().long().clamp_min(1).minimum(lengths)
    ranks = noise.masked_fill(~real, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    visible = ranks < counts[:, None]
    indices = (~visible).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(int(counts.max()), 1)]
    return VisiblePatches(indices, visible.gather(1, indices), real & ~visible)


class LabelPredictor(nn.Module, Configurable):
    """The labels of all patches, from what the encoder makes of the visible ones; only in pre-training.

    A matrix, places for the hidden patches, layers as those of BEATs with a relative bias of their own and no
    convolution, a norm, a matrix.

    Args:
        encoder_width: D.
        labels: K.
        width: P.
        layers: 3 in ESPnet; the paper says that it is a transformer.
        heads: attention heads.
        hidden: width of the MLPs.
        empty: what stands at hidden places: `zeros`, as in the paper, or a `learned` token, as in ESPnet.
        buckets, max_distance: as of `BEATs`.
        dropout: as of `BEATs`.
    """

    def __init__(
        self,
        encoder_width: int = 768,
        labels: int = 1024,
        width: int = 768,
        layers: int = 3,
        heads: int = 12,
        hidden: int = 3072,
        empty: Literal["zeros", "learned"] = "zeros",
        buckets: int = 320,
        max_distance: int = 800,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if empty not in ("zeros", "learned"):
            raise ValueError(f"empty is 'zeros' or 'learned', not {empty!r}.")
        settings = LayerSettings(
            width=width, heads=heads, hidden=hidden, buckets=buckets, max_distance=max_distance, dropout=dropout
        )
        self.encoder_width, self.labels = encoder_width, labels
        self.decoder_embed = nn.Linear(encoder_width, width)
        token = torch.randn(1, 1, width) * INITIAL_STD
        self.mask_token = nn.Parameter(token) if empty == "learned" else None
        self.decoder_blocks = BeatsLayers(settings, layers)
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, labels)
        initialise(self.decoder_embed)
        initialise(self.decoder_pred)

    def forward(
        self,
        tokens: Float[Tensor, "B V D"],
        visible: VisiblePatches,
        mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L K"]:
        """The logits of every patch.

        Args:
            tokens: of the visible patches; `BEATs.visible`.
            visible: which patches these are.
            mask: True where a patch is real.
        """
        embedded = self.decoder_embed(tokens)
        places = visible.indices[..., None].expand_as(embedded)
        full = embedded.new_zeros(*visible.hidden.shape, embedded.shape[2])
        full = full.scatter_add(1, places, embedded.masked_fill(~visible.mask[..., None], 0))  # what fills up adds 0
        if self.mask_token is not None:
            full = torch.where(visible.hidden[..., None], self.mask_token.to(full.dtype), full)
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(full, mask)))


def masked_label_loss(
    logits: Float[Tensor, "B L K"],
    labels: Int64[Tensor, "B L"],
    hidden: Bool[Tensor, "B L"],
    label_smoothing: float = 0.0,
    group: distributed.Group = None,
) -> Float[Tensor, ""]:
    """L, in float32.

    Args:
        logits: of every patch.
        labels: z; what they are where nothing is hidden does not matter.
        hidden: of `VisiblePatches`.
        label_smoothing: the share of the labels' mass that is spread over all labels.

    Returns:
        this rank's share: its mean over ranks is the mean over the hidden patches of all of them.
    """
    losses = cross_entropy(logits[hidden].float(), labels[hidden], label_smoothing=label_smoothing, reduction="none")
    return mean_of_chosen(losses, hidden.sum(), group)


class LabelAccuracy(NamedTuple):
    """How many hidden patches are told right, and how many were by always naming the label that is most frequent."""

    accuracy: Float[Tensor, ""]
    majority: Float[Tensor, ""]


@torch.no_grad()
def label_accuracy(
    logits: Float[Tensor, "B L K"],
    labels: Int64[Tensor, "B L"],
    hidden: Bool[Tensor, "B L"],
    group: distributed.Group = None,
) -> LabelAccuracy:
    """Both shares over the hidden patches of all ranks; where one label dominates, the first alone says little."""
    right = distributed.all_sum((logits[hidden].argmax(1) == labels[hidden]).sum(), group)
    counts = code_counts(labels[hidden], logits.shape[2], group)
    total = counts.sum().clamp_min(1)
    return LabelAccuracy(right / total, counts.max() / total)
