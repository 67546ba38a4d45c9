"""Prompting entity modelling (PEM): a frozen twin names what a crop shows, and the fused tokens there are asked for it.

Li et al. 2022, arXiv 2112.09583, section 3.3; salesforce/ALPRO, modeling/alpro_models.py. With the unit feature c of a
crop, the mean p_k of the unit features of the prompts of entity k, not brought to unit length again, and the twin's τ,

    q_k = softmax_k(c . p_k / τ)        PEM = mean_i - Σ_k q_ik log softmax_k h(z_i)

where z_i is the mean of clip i's fused tokens inside of the crop's box, and h a head. Nothing is hidden from the model.
Clips of which no entity is likely, max_k q_k < 0.2, are left out.

Departures: the released code compares with 0.2 not the probability but the number of the likeliest entity, so that it
only leaves out clips of entity 0 (`threshold_mode="official"`); where all are left out the loss is 0 instead of NaN;
clips and still pictures, which have templates of their own, are told apart sample by sample, and may share a batch.

Shape legend: B clips, T frames, H W pixels, K entities, R templates, L tokens, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.configurable import Configurable
from collimate_video.alpro.prompter import Prompter

VIDEO_TEMPLATES = tuple(
    f"{what} of {article} {{}}."
    for what in ("A footage", "A video", "A portrait", "A video footage")
    for article in ("a", "the", "one")
)  # pretrain/run_pretrain_sparse.py
IMAGE_TEMPLATES = tuple(
    f"{what} of {article} {{}}."
    for what in ("A photo", "A picture", "A good photo", "A good picture")
    for article in ("a", "the", "one")
)  # pretrain/run_pretrain_sparse.py
PROMPTS_AT_A_TIME = 512  # ours

ThresholdMode = Literal["probability", "official"]


class EntityLabels(NamedTuple):
    """What crops show."""

    labels: Float[Tensor, "B K"]
    """q; each row sums to 1."""
    kept: Bool[Tensor, " B"]
    """Which rows count."""


class EntityPrompter(nn.Module, Configurable):
    """A frozen `Prompter` and the entities that it tells apart. It stays in evaluation mode.

    What it makes of its prompts is computed where it is first needed, and saved with the weights.

    Args:
        prompter: the twin; with `pretrained`, or its labels mean nothing.
        entities: nouns, or the file of them that `collimate video entities` writes: one a line, the first word counts.
        count: the first so many of a file are taken.
        threshold: a clip is left out where its likeliest entity is less probable.
        threshold_mode: `official` compares the number of the likeliest entity with the threshold, as the released
            weights were trained.

    Attributes:
        video_prompt_feat, image_prompt_feat: p for clips and for still pictures, (K, D), under their published names;
            0 before they are computed.

    Raises:
        ValueError: there are fewer than two entities, or one stands twice; or there is no such mode.
    """

    video_prompt_feat: Tensor
    image_prompt_feat: Tensor

    def __init__(
        self,
        prompter: Prompter,
        entities: Sequence[str] | str,
        count: int = 1000,
        threshold: float = 0.2,
        threshold_mode: ThresholdMode = "probability",
    ) -> None:
        super().__init__()
        self.entities = read_entities(entities, count) if isinstance(entities, str) else list(entities)
        if len(self.entities) < 2 or len(set(self.entities)) < len(self.entities):
            raise ValueError(f"Entities are two or more nouns, none twice; got {self.entities[:5]} and so on.")
        if threshold_mode not in ("probability", "official"):
            raise ValueError(f"threshold_mode is 'probability' or 'official', not {threshold_mode!r}.")
        self.prompter = prompter.requires_grad_(False).eval()
        self.threshold, self.threshold_mode = threshold, threshold_mode
        dim = prompter.projections["text"].dim
        self.register_buffer("video_prompt_feat", torch.zeros(len(self.entities), dim))  # type: ignore[arg-type]
        self.register_buffer("image_prompt_feat", torch.zeros(len(self.entities), dim))  # type: ignore[arg-type]
        self._known: set[str] = set()

    def train(self, mode: bool = True) -> EntityPrompter:
        """Nothing: dropout stays off whatever becomes of the model that asks."""
        self.training = mode
        return self

    @torch.no_grad()
    def forward(self, crops: Shaped[Tensor, "B T 3 H W"], still: Bool[Tensor, " B"]) -> EntityLabels:
        """Name what crops show.

        Args:
            crops: as the prompter's processor stacks them.
            still: which of them are pictures that stand still, and are named by the templates of pictures.
        """
        pictured = self.prompter("video", self.prompter.processors["video"].finish(crops)).pooled
        crop = normalize(pictured.float(), dim=1)
        prompts = {
            kind: self._prompts(kind, templates)
            for kind, templates, wanted in (
                ("video", VIDEO_TEMPLATES, not bool(still.all())),
                ("image", IMAGE_TEMPLATES, bool(still.any())),
            )
            if wanted
        }
        found = {kind: crop @ feature.float().T for kind, feature in prompts.items()}
        scores = torch.where(still[:, None], found.get("image", 0.0), found.get("video", 0.0))  # type: ignore[arg-type]
        labels = (scores / self.prompter.temp.float()).softmax(1)
        return EntityLabels(labels, ~self._ignored(labels))

    @torch.no_grad()
    def prompt_features(self, ids: Int64[Tensor, "K R L"]) -> Float[Tensor, "K D"]:
        """Of each entity the mean of its prompts' unit features, float32."""
        texts = ids.flatten(0, 1)
        tokenizer: Any = self.prompter.processors["text"]
        with torch.autocast(texts.device.type, enabled=False):
            pooled = [
                self.prompter("text", part, tokenizer.mask(part)).pooled for part in texts.split(PROMPTS_AT_A_TIME)
            ]
        return normalize(torch.cat(pooled), dim=1).unflatten(0, ids.shape[:2]).mean(1)

    def config(self) -> dict[str, Any]:
        """As for every Configurable, with the entities themselves: a saved model needs no file of them."""
        config = super().config()
        config["init_args"] |= {"entities": self.entities, "count": len(self.entities)}
        return config

    def _ignored(self, labels: Float[Tensor, "B K"]) -> Bool[Tensor, " B"]:
        probability, number = labels.max(1)
        return (probability if self.threshold_mode == "probability" else number) < self.threshold

    def _prompts(self, kind: str, templates: Sequence[str]) -> Float[Tensor, "K D"]:
        """The prompts' features, computed unless they came with weights."""
        feature: Tensor = getattr(self, f"{kind}_prompt_feat")
        if kind not in self._known:
            if not bool(feature.any()):
                tokenizer: Any = self.prompter.processors["text"]
                texts = [template.format(entity) for entity in self.entities for template in templates]
                ids = tokenizer.trimmed(tokenizer.batch(texts)).to(feature.device)
                feature.copy_(self.prompt_features(ids.unflatten(0, (len(self.entities), len(templates)))))
            self._known.add(kind)
        return feature


def read_entities(path: str, count: int = 1000) -> list[str]:
    """The first entities of a file: the first word of each line, none twice.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file of entities {path!r}; `collimate video entities` makes one of captions."
        )
    words = (line.split()[0] for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    return list(dict.fromkeys(words))[:count]


def inside(tokens: Float[Tensor, "B N D"], boxes: Bool[Tensor, "B P"]) -> Float[Tensor, "B D"]:
    """The mean of the last P of the tokens, those of the patches, over the ones inside of the boxes."""
    weights = boxes.to(tokens.dtype)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("bp,bpd->bd", weights, tokens[:, -boxes.shape[1] :])


def stands_still(clips: Shaped[Tensor, "B T 3 H W"]) -> Bool[Tensor, " B"]:
    """Which clips are one frame, again and again."""
    return (clips == clips[:, :1]).flatten(1).all(1)
