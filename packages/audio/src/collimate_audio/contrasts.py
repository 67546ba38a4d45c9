"""What CLAP may minimise over paired sounds and texts. Each is one choice on the axes of `collimate.losses`.

With unit vectors a_i of sounds and t_j of texts, CE the cross-entropy with the diagonal, both directions averaged:

- `PairContrast`: CE(s a t'), as the published models were trained, with three ways to treat equal captions;
- `FourTermContrast`: [CE(s_a a m(t)') + CE(s_t m(a) t')] / 2, m two transforms of their own, as in LAION's four-term
  loss, with classes weighted by how crowded they are, w_j = exp(mean_k <x_j, x_k> / kappa), if wanted;
- `FrozenNeighbours`: CWCL, towards all that a frozen tower finds near;
- `SigmoidContrast`: SigLIP's.

Equal captions, which class names as captions give by the dozen. In a softmax, to count samples of one caption as
positives of each other changes nothing as long as their text vectors are equal: the logits are too. It does where the
text tower drops out at random, and in the sigmoid loss. To leave them out of each other's sums always does.

LAION-AI/CLAP, clap_module/loss.py. Departures: `FourTermContrast` weighs also on one process, where the released code
raises; weights are those of the samples of all ranks.

Shape legend: n samples of this rank, D width of the joint space.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate import distributed
from collimate.configurable import Configurable
from collimate.distributed import Group
from collimate.losses import SharedLabels, clip_loss, cwcl_loss, siglip_loss, symmetric_info_nce

Duplicates: TypeAlias = Literal["negatives", "positives", "left_out"]


def four_term_loss(
    audio: Float[Tensor, "n D"],
    text: Float[Tensor, "n D"],
    audio_mlp: Float[Tensor, "n D"],
    text_mlp: Float[Tensor, "n D"],
    audio_scale: Float[Tensor, ""] | float,
    text_scale: Float[Tensor, ""] | float,
    kappa: float | None = None,
    group: Group = None,
) -> Float[Tensor, ""]:
    """[CE(s_a a m(t)') + CE(s_t m(a) t')] / 2, each CE the mean of both directions.

    Args:
        audio, text: this rank's features, of unit length: they are taken as they are.
        audio_mlp, text_mlp: m(a) and m(t), taken as they are.
        audio_scale, text_scale: the multipliers s_a and s_t, not their logarithms.
        kappa: of the class weights, by sounds in the first term and by texts in the second; None for no weights.
    """
    terms = ((audio, text_mlp, audio_scale, audio), (audio_mlp, text, text_scale, text))
    return (
        sum(
            symmetric_info_nce(
                one,
                other,
                scale,
                weights=None if kappa is None else class_weights(by, kappa, group),
                normalize=False,
                group=group,
            )
            for one, other, scale, by in terms
        )
        / 2
    )  # type: ignore[return-value]


@torch.no_grad()
def class_weights(features: Float[Tensor, "n D"], kappa: float, group: Group = None) -> Float[Tensor, " n"]:
    """w_j = exp(mean_k <x_j, x_k> / kappa) over the samples k of all ranks, divided by their mean over all ranks."""
    size = distributed.all_sum(torch.tensor(float(len(features)), device=features.device), group)
    mean = distributed.all_sum(features.sum(0), group) / size
    weights = (features @ mean / kappa).exp()
    return weights * size / distributed.all_sum(weights.sum(), group)


class Contrast(nn.Module, Configurable):
    """A loss of paired embeddings.

    Attributes:
        frozen: the modality whose tower must not learn, and whose own space must be the joint space; None for neither.
    """

    frozen: str | None = None

    def forward(
        self,
        audio: Float[Tensor, "n D"],
        text: Float[Tensor, "n D"],
        logit_scale: Float[Tensor, ""],
        captions: Int64[Tensor, " n"],
    ) -> Float[Tensor, ""]:
        """The loss of this rank's samples, in the contrast with those of all ranks.

        Args:
            audio, text: not normalised.
            logit_scale: the multiplier, not its logarithm.
            captions: numbers that are equal for equal captions.
        """
        raise NotImplementedError


class PairContrast(Contrast):
    """The symmetric softmax contrast of CLIP and CLAP.

    Args:
        duplicates: what samples of one caption, on any rank, are to each other: `negatives`, as published;
            `positives`; or `left_out` of each other's sums.
    """

    def __init__(self, duplicates: Duplicates = "negatives") -> None:
        super().__init__()
        self.duplicates = duplicates

    def forward(self, audio: Tensor, text: Tensor, logit_scale: Tensor, captions: Tensor) -> Tensor:
        targets = SharedLabels(captions, captions) if self.duplicates == "positives" else None
        ids = captions if self.duplicates == "left_out" else None
        return clip_loss(audio, text, logit_scale, targets=targets, ids=ids)


class FourTermContrast(Contrast):
    """LAION's loss with two transforms, which evaluation does not use.

    Args:
        dim: D.
        kappa: of the class weights; None for no weights.
        dropout: of the transforms.
        init_logit_scale: s_t at the start; s_a is the method's.
    """

    def __init__(
        self, dim: int = 512, kappa: float | None = None, dropout: float = 0.1, init_logit_scale: float = 1 / 0.07
    ) -> None:
        super().__init__()
        self.kappa = kappa
        self.transforms = nn.ModuleDict({name: _transform(dim, dropout) for name in ("audio", "text")})
        self.text_logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # the logarithm

    def forward(self, audio: Tensor, text: Tensor, logit_scale: Tensor, captions: Tensor) -> Tensor:
        audio, text = normalize(audio, dim=1), normalize(text, dim=1)
        audio_mlp, text_mlp = self.transforms["audio"](audio), self.transforms["text"](text)
        return four_term_loss(audio, text, audio_mlp, text_mlp, logit_scale, self.text_logit_scale.exp(), self.kappa)


class FrozenNeighbours(Contrast):
    """The continuously weighted contrast, CWCL (Srinivasa et al. 2023, arXiv 2309.14580).

    The frozen tower says how near each two samples are; towards it, the other is drawn to all of them, by how near.

    Args:
        frozen: whose tower is frozen: `text`, as for speech and its transcripts, or `audio`.
    """

    def __init__(self, frozen: Literal["text", "audio"] = "text") -> None:
        super().__init__()
        self.frozen = frozen

    def forward(self, audio: Tensor, text: Tensor, logit_scale: Tensor, captions: Tensor) -> Tensor:
        frozen, trained = (text, audio) if self.frozen == "text" else (audio, text)
        return cwcl_loss(frozen, trained, logit_scale)


class SigmoidContrast(Contrast):
    """SigLIP's loss, in which equal captions are positives of each other. Published starts: s = 10, b = -10.

    Args:
        init_logit_bias: b at the start.
    """

    def __init__(self, init_logit_bias: float = -10.0) -> None:
        super().__init__()
        self.logit_bias = nn.Parameter(torch.tensor(init_logit_bias))

    def forward(self, audio: Tensor, text: Tensor, logit_scale: Tensor, captions: Tensor) -> Tensor:
        return siglip_loss(audio, text, logit_scale, self.logit_bias, targets=SharedLabels(captions, captions))


def _transform(dim: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim))
