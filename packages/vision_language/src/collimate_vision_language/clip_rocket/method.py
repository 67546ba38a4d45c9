"""CLIP-rocket: CLIP over weak and strong views of pictures and texts.

Fini et al. 2023, Improved baselines for vision-language pre-training, arXiv 2305.08675; facebookresearch/clip-rocket.
The contrast is that of `collimate_vision_language.clip_rocket.losses`: weak views meet in z, one matrix behind the
towers, strong ones in h, three layers with batch norm. `extra` adds one of the terms without negatives (`terms`), which
the paper finds to help weak baselines only. The recipe, more than the loss, is the method: augmentation of pictures and
texts, label smoothing, dropout of the text tower.

Departures: each rank's gradient has the part that comes through other ranks' features, which the released code lacks;
the released total is twice the contrast (`loss_weights: {clip: 2.0}` in the recipe); text augmentation has other stop
words (`collimate.data.TextAugmentation`). Evaluation ranks by z.

Shape legend: B samples, K strong views, W a tower's width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from collimate.encoders import BatchNormProjection, Encoder, Projection, projections_for
from collimate.encoding import Encoding
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method, follow, momentum_copy
from collimate_vision_language.clip_rocket.losses import local_to_local_losses
from collimate_vision_language.clip_rocket.terms import Views, ViewTerm


@composed(
    similarity="cosine of weak views; of strong ones",
    targets="own pair; smoothed for strong views",
    negatives="all others of all ranks",
)
class CLIPRocket(Method):
    """An image and a text tower that find each other's samples in weak views and in strong ones.

    A recipe gives strong views an augmentation of their own, under their keys: `image_strong_0`, `text_strong_0`, ...

    Args:
        image_encoder: the image tower.
        text_encoder: the text tower.
        image_processor: how pictures become the image tower's input.
        tokenizer: how texts become the text tower's input.
        embed_dim: D, the width of z and of h; 256 as published.
        image_projection: the image tower's vectors into the joint space z; one matrix if None.
        text_projection: as for pictures.
        strong_views: K; 2 as published.
        hidden: width of the hidden layers of h; 4096 as published.
        label_smoothing: ε, of strong views; 0.1 as published.
        extra: a term without negatives; none if None.
        init_logit_scale, init_local_logit_scale: s and s' at the start.
        max_logit_scale: both are held between 1 and this.
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
        strong_views: int = 2,
        hidden: int = 4096,
        label_smoothing: float = 0.1,
        extra: ViewTerm | None = None,
        init_logit_scale: float = 1 / 0.07,
        init_local_logit_scale: float = 1 / 0.1,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        if strong_views < 1:
            raise ValueError(f"There is at least one strong view, not {strong_views}.")
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        widths: dict[str, Any] = {name: encoder.width for name, encoder in self.encoders.items()}
        self.local_projections = nn.ModuleDict(
            {name: BatchNormProjection(width, embed_dim, hidden) for name, width in widths.items()}
        )
        self.views: Mapping[str, str] = {
            f"{modality}_strong_{number}": modality for modality in self.modalities for number in range(strong_views)
        }
        self.label_smoothing, self.extra = label_smoothing, extra
        self.targets = None if extra is None or extra.momentum is None else momentum_copy(self.encoders)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # the logarithm of s
        self.local_logit_scale = nn.Parameter(torch.tensor(math.log(init_local_logit_scale)))  # of s'
        self.max_logit_scale = max_logit_scale

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The towers' vectors of all views; heads with batch norm are left to `losses`, which sees the whole batch."""
        found = {key: self._tower(self.encoders, key, batch[key]).pooled for key in (*self.modalities, *self.views)}
        if self.targets is not None:
            with torch.no_grad():
                found |= {f"{key}_target": self._tower(self.targets, key, batch[key]).pooled for key in list(found)}
        return found

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        image, text = (self._views_of(embeddings, modality) for modality in self.modalities)
        local = {
            name: [self.local_projections[name](each) for each in views[1:]]
            for name, views in (("image", image), ("text", text))
        }
        scale, local_scale = self.logit_scale.exp(), self.local_logit_scale.exp()
        contrast = local_to_local_losses(
            self.projections["image"](image[0]),
            self.projections["text"](text[0]),
            local["image"],
            local["text"],
            scale,
            local_scale,
            self.label_smoothing,
        )
        terms = {"clip": contrast.loss}
        if self.extra is not None:
            suffix = "" if self.targets is None else "_target"
            image_target, text_target = (self._views_of(embeddings, modality, suffix) for modality in self.modalities)
            views = Views(image, text, local["image"], local["text"], image_target, text_target, local_scale)
            terms[self.extra.name] = self.extra(views)
        return terms

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        if self.targets is not None and self.extra is not None and self.extra.momentum is not None:
            follow(self.targets, self.encoders, self.extra.momentum)
            follow(self.extra.target_projectors, self.extra.projectors, self.extra.momentum)  # type: ignore[arg-type]

    def _tower(self, towers: nn.ModuleDict, key: str, inputs: Tensor) -> Encoding:
        modality = self.views.get(key, key)
        processor = self.processors[modality]
        inputs = inputs.to(self.device)
        return towers[modality](processor.finish(inputs), processor.mask(inputs))

    def _views_of(self, embeddings: dict[str, Tensor], modality: str, suffix: str = "") -> list[Tensor]:
        strong = [key for key, of in self.views.items() if of == modality]
        return [embeddings[key + suffix] for key in (modality, *strong)]
