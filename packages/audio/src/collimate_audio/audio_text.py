"""CLAP: sounds and texts in one space.

Wu et al. 2023, Large-scale contrastive language-audio pretraining, arXiv 2211.06687, and Elizalde et al. 2023, CLAP,
arXiv 2206.04769; LAION-AI/CLAP and microsoft/CLAP. With unit vectors a_i of sounds and t_j of texts, s = exp(τ),

    L = 1/2 [ mean_i CE(s <a_i, t_.>, i) + mean_j CE(s <a_., t_j>, j) ],

τ starts at ln(1/0.07) and is held in [0, ln 100]. `collimate_audio.contrasts` has what may take the place of L: LAION's
four-term loss, the continuously weighted contrast with a frozen tower (CWCL), the sigmoid loss.

A tower is locked (LiT, arXiv 2111.07991) by putting it into `collimate.encoders.Frozen`.

Departures: any audio tower, with BEATs (`BEATs`, `FilterBank`) in the recipes, whose pooled vector is the mean over
what is no padding, in the place of HTSAT or PANN; of a clip longer than the tower's input, the first window is heard
instead of a random one or of a fusion of several (`windows` in evaluation hears all of it); GELU between the two
matrices of a projection, for which `from_transformers` puts LAION's ReLU. The softmax runs over the samples of all
ranks with exact gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from collimate.encoders import Encoder, MLPProjection, Projection, projections_for
from collimate.encoders.adapted import require_frozen
from collimate.losses.composition import composed
from collimate.losses.negatives import text_ids
from collimate.processing import Processor
from collimate.training import Method
from collimate_audio.contrasts import Contrast, PairContrast


@composed(
    similarity="cosine",
    targets="own pair, or how near a frozen tower finds them, as `contrast` says",
    negatives="all others of all ranks",
)
class CLAP(Method):
    """An audio and a text tower that find each other's samples in a batch.

    Args:
        audio_encoder: the audio tower.
        text_encoder: the text tower.
        audio_processor: how sounds become the audio tower's input.
        tokenizer: how texts become the text tower's input. What is beyond its context is not read.
        embed_dim: D, the width of the joint space.
        audio_projection: the audio tower's vectors into the joint space; two matrices with a GELU between if None.
        text_projection: the text tower's vectors into the joint space; as for sounds if None.
        contrast: what is minimised; `PairContrast` if None.
        init_logit_scale: s at the start.
        max_logit_scale: s is held between 1 and this.

    Raises:
        ValueError: the contrast needs a frozen tower whose space is the joint space, and there is none.
    """

    modalities = ("audio", "text")

    def __init__(
        self,
        audio_encoder: Encoder,
        text_encoder: Encoder,
        audio_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 512,
        audio_projection: Projection | None = None,
        text_projection: Projection | None = None,
        contrast: Contrast | None = None,
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.processors = {"audio": audio_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"audio": audio_encoder, "text": text_encoder})
        self.projections = projections_for(
            self.encoders,
            embed_dim,
            audio=audio_projection or MLPProjection(audio_encoder.width, embed_dim, embed_dim),
            text=text_projection or MLPProjection(text_encoder.width, embed_dim, embed_dim),
        )
        self.contrast = contrast or PairContrast()
        self._check_frozen(self.contrast.frozen)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # τ, the logarithm
        self.max_logit_scale = max_logit_scale

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        captions = text_ids(batch["text"])
        return {"clap": self.contrast(embeddings["audio"], embeddings["text"], self.logit_scale.exp(), captions)}

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        for name, parameter in self.contrast.named_parameters(recurse=False):
            if name.endswith("logit_scale") and self.max_logit_scale is not None:
                parameter.clamp_(0, math.log(self.max_logit_scale))

    @classmethod
    def from_transformers(cls, folder: str | PathLike[str]) -> CLAP:
        """From a ClapModel that transformers wrote; see `collimate_audio.clap_model`."""
        from collimate_audio.clap_model import read_transformers

        return read_transformers(folder).build(cls)

    @classmethod
    def from_laion(cls, checkpoint: str | PathLike[str] | Mapping[str, Tensor], folder: str | PathLike[str]) -> CLAP:
        """From LAION's weights, beside a ClapModel's folder of that architecture; see `collimate_audio.clap_model`."""
        from collimate_audio.clap_model import read_laion

        return read_laion(checkpoint, folder).build(cls)

    def _check_frozen(self, modality: str | None) -> None:
        if modality is None:
            return
        who = type(self.contrast).__name__
        require_frozen(self.encoders[modality], self.projections[modality], modality, who)
