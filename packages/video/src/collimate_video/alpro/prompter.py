"""ALPRO's prompter: video and text towers trained by contrast alone, which later name what crops of videos show."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.encoders import Bert, Encoder, LinearProjection, projections_for
from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.losses.composition import composed
from collimate.processing import Processor, Tokenizer
from collimate.training import Method
from collimate_video.alpro.official import fill, named_prompter, read_prompter


@composed(
    similarity="cosine",
    targets="own pair",
    negatives="all others of all ranks",
)
class Prompter(Method):
    """The stage before ALPRO: VTC, see `collimate_video.alpro`, on the same data by the same schedule.

    Li et al. 2022, arXiv 2112.09583, section 3.3; salesforce/ALPRO, modeling/alpro_models.py, `Prompter`. Then frozen,
    in `EntityPrompter`.

    Departure: the official one carries heads, and the upper half of a BERT, that nothing reads. Here there are no such
    heads; what a BERT has beyond its text layers does not learn, and `from_official` leaves it out.

    Args:
        video_encoder: the video tower.
        text_encoder: the text tower; the lower half of a BERT in the recipe.
        video_processor: how videos become the tower's input.
        tokenizer: how texts become ids; BERT's.
        embed_dim: the width of the joint space.
        pretrained: weights to begin with: a released file of ALPRO or of its prompter, or a folder of a saved one.
        temperature: τ at the start.
        temperature_bounds: τ is held between them.

    Attributes:
        temp: τ, which divides, under its published name.
    """

    modalities = ("video", "text")

    def __init__(
        self,
        video_encoder: Encoder,
        text_encoder: Encoder,
        video_processor: Processor,
        tokenizer: Tokenizer,
        embed_dim: int = 256,
        pretrained: str | None = None,
        temperature: float = 0.07,
        temperature_bounds: tuple[float, float] = (0.001, 0.5),
    ) -> None:
        super().__init__()
        self.processors = {"video": video_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"video": video_encoder, "text": text_encoder})
        if isinstance(text_encoder, Bert):  # parameters without a gradient would stop DDP
            for unread in (*text_encoder.layers[text_encoder.fusion_layer :], text_encoder.cls or nn.Identity()):
                unread.requires_grad_(False)
        heads = {name: LinearProjection(tower.width, embed_dim, bias=True) for name, tower in self.encoders.items()}  # type: ignore[arg-type]
        self.projections = projections_for(self.encoders, embed_dim, **heads)
        self.temp = nn.Parameter(torch.tensor(temperature))
        self.temperature_bounds = temperature_bounds
        if pretrained is not None:
            fill(self, pretrained, named_prompter)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """log(1/τ), as the step log and other methods have it."""
        return -self.temp.log()

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """`pooled` lies in the joint space; there are no tokens."""
        return Encoding(self.projections[modality](self.encoders[modality](inputs, mask).pooled))

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"vtc": clip_loss(embeddings["video"], embeddings["text"], 1 / self.temp)}

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        self.temp.clamp_(*self.temperature_bounds)

    @classmethod
    def from_official(
        cls,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor],
        video_processor: Processor | None = None,
        tokenizer: Tokenizer | None = None,
        heads: int | None = None,
        fusion_layer: int | None = None,
    ) -> Prompter:
        """From the released code's weights: those of a prompter, or of the one within a pre-trained ALPRO.

        Args:
            checkpoint: a file, or a state dict.
            video_processor, tokenizer, heads, fusion_layer: as of `ALPRO.from_official`; the layers from `fusion_layer`
                on are left out.

        Raises:
            CheckpointError: these are no such weights; names what is missing or has no place.
        """
        arguments, weights = read_prompter(checkpoint, video_processor, tokenizer, heads, fusion_layer)
        method = cls(**arguments)
        fill(method, weights)
        return method.eval()
