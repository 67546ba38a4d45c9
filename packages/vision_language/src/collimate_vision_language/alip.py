"""ALIP: adaptive language-image pre-training with synthetic captions.

Yang et al. 2023, arXiv 2308.08428, section 3; deepglint/ALIP.

Each image x_i has a raw text t_i and a synthetic caption c_i, all encoded to unit vectors, with the cosines
S_tc = <t, c>, S_xt = <x, t>, S_xc = <x, c>. Three running means H of them over the batches of all ranks,

    H <- m H + (1 - m) mean_i S_i,    m = 0.99,                                         updated before they are used,

decide how much a sample and a pair count:

    W^s_i = exp(g_s (S_tc,i - H_tc))  where S_tc,i <= H_tc, else 1      the language consistency gate
    W^t_i = exp(g_p (S_xt,i - H_xt))  where W^s_i < 1, else 1           the description consistency gates
    W^c_i = exp(g_p (S_xc,i - H_xc))  where W^s_i < 1, else 1

    L = mean_i W^s_i W^t_i CE_i(x, t) + mean_i W^s_i W^c_i CE_i(x, c),

CE_i the mean of pair i's cross-entropies in both directions. No gradient runs through weights or history.

Departures, none in the numbers of a batch with all captions:
- The loss is the released code's mean with CE halved, where the paper sums: values compare with CLIP's.
- In the released code every rank computes the loss of all samples; here each has its own rows, with exact gradients.
- The history is saved with the weights, which the released code forgets, and not updated in validation.
- A sample without caption, which the paper does not know: its language gate has nothing to judge by, so that W^s = 1
  and the description gate judges it in any case; W^c = 0, it is nobody's negative in the contrast with captions, and
  counts neither in H_tc nor in H_xc.

Shape legend: n samples of this rank, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate import distributed
from collimate.checkpoints.open_clip import read_open_clip
from collimate.data import OneCaption
from collimate.distributed import Group
from collimate.encoders import Encoder, Projection, projections_for
from collimate.losses import symmetric_info_nce
from collimate.losses.composition import composed
from collimate.losses.negatives import given_keys, text_ids
from collimate.processing import Processor
from collimate.training import Method

PAIRS = ("text-caption", "image-text", "image-caption")
"""The similarities S_tc, S_xt, S_xc and their history, in the order in which tensors hold them."""


class Gates(NamedTuple):
    """The weights of each sample: W^s of the whole, W^t of image and text, W^c of image and caption."""

    sample: Float[Tensor, " n"]
    text: Float[Tensor, " n"]
    caption: Float[Tensor, " n"]

    @property
    def image_text(self) -> Float[Tensor, " n"]:
        """What a sample counts in the contrast with texts: W^s W^t."""
        return self.sample * self.text

    @property
    def image_caption(self) -> Float[Tensor, " n"]:
        """What a sample counts in the contrast with captions: W^s W^c."""
        return self.sample * self.caption


class AdaptiveLosses(NamedTuple):
    """The weighted contrasts of images with texts and with captions; ALIP's loss is their sum."""

    image_text: Float[Tensor, ""]
    image_caption: Float[Tensor, ""]


@torch.no_grad()
def similarities(
    image: Float[Tensor, "n D"], text: Float[Tensor, "n D"], caption: Float[Tensor, "n D"]
) -> Float[Tensor, "n 3"]:
    """S_tc, S_xt and S_xc of each sample, at least float32, without gradient. Features need not be normalised."""
    precision = torch.promote_types(image.dtype, torch.float32)
    image, text, caption = (normalize(features.to(precision), dim=1) for features in (image, text, caption))
    pairs = ((text, caption), (image, text), (image, caption))
    return torch.stack([torch.linalg.vecdot(one, other) for one, other in pairs], 1)


@torch.no_grad()
def updated_history(
    history: Float[Tensor, " 3"],
    found: Float[Tensor, "n 3"],
    caption_given: Bool[Tensor, " n"],
    momentum: float = 0.99,
    group: Group = None,
) -> Float[Tensor, " 3"]:
    """The history after a batch: H <- m H + (1 - m) mean(S), the mean over the samples of all ranks.

    Args:
        history: H_tc, H_xt and H_xc before; one that is NaN has not begun and becomes the mean.
        found: `similarities` of this rank's samples.
        caption_given: whether each sample has a caption; those without count in H_xt only.
        momentum: m.

    Returns:
        the same on every rank. A mean that is not defined (no caption in the whole batch) changes nothing.
    """
    counted = torch.stack([caption_given, torch.ones_like(caption_given), caption_given], 1)
    sums = torch.stack([found.masked_fill(~counted, 0).sum(0), counted.sum(0)])
    total, count = distributed.all_sum(sums, group)
    mean = total / count
    begun = torch.where(history.isnan(), mean, history)
    return torch.where(mean.isnan(), history, begun.lerp(mean, 1 - momentum))


@torch.no_grad()
def gates(
    found: Float[Tensor, "n 3"],
    history: Float[Tensor, " 3"],
    caption_given: Bool[Tensor, " n"],
    gamma_sample: float = 2.0,
    gamma_pair: float = 2.0,
) -> Gates:
    """The weights of samples and pairs.

    Args:
        found: `similarities` of these samples.
        history: H_tc, H_xt and H_xc, this batch counted in.
        caption_given: whether each sample has a caption.
        gamma_sample, gamma_pair: g_s and g_p.
    """
    language, text, caption = (found - history).unbind(1)
    sample = (gamma_sample * language.clamp_max(0)).exp().masked_fill(~caption_given, 1)
    consistent = (sample == 1) & caption_given
    return Gates(
        sample,
        (gamma_pair * text).exp().masked_fill(consistent, 1),
        (gamma_pair * caption).exp().masked_fill(consistent, 1).masked_fill(~caption_given, 0),
    )


def adaptive_losses(
    image: Float[Tensor, "n D"],
    text: Float[Tensor, "n D"],
    caption: Float[Tensor, "n D"],
    logit_scale: Float[Tensor, ""] | float,
    weights: Gates,
    caption_given: Bool[Tensor, " n"],
    caption_ids: Int64[Tensor, " n"] | None = None,
    group: Group = None,
) -> AdaptiveLosses:
    """The contrasts of images with texts and with captions, each pair with its weight.

    Args:
        image, text, caption: this rank's features, normalised inside.
        logit_scale: the multiplier of the cosines, not its logarithm.
        weights: of this rank's samples; 0 in `caption` for those without one.
        caption_given: whether each sample has a caption; the others' stands in nobody's sum.
        caption_ids: captions of equal id are no negatives of each other's images; None leaves them, as published.
    """
    return AdaptiveLosses(
        symmetric_info_nce(image, text, logit_scale, weights=weights.image_text, group=group),
        symmetric_info_nce(
            image,
            caption,
            logit_scale,
            weights=weights.image_caption,
            ids=caption_ids,
            mask=given_keys(caption_given, group),
            group=group,
        ),
    )


@torch.no_grad()
def duplicate_rate(ids: Int64[Tensor, " n"], given: Bool[Tensor, " n"], group: Group = None) -> Float[Tensor, ""]:
    """The share of the given texts of all ranks that another sample has too; 0 where there are none."""
    row_counts = distributed.row_counts(ids, group)
    ids, given = (distributed.gather(rows, group, row_counts) for rows in (ids, given))
    _, counts = ids[given].unique(return_counts=True)
    return counts[counts > 1].sum() / given.sum().clamp_min(1)


@composed(
    similarity="cosine",
    targets="own raw text; own synthetic caption",
    weights="of samples and of pairs, by their history",
    negatives="all others of all ranks",
)
class ALIP(Method):
    """CLIP's two towers, taught by noisy texts and synthetic captions, each pair as much as it is to be believed.

    A batch holds `text`, `caption` and, where captions may be missing, `caption_given`. Unless a recipe chooses
    otherwise (`data.captions`), the text is a sample's `txt`, and the caption one of the kind `synthetic` in its
    `captions.json`, where `collimate data caption` writes it.

    The history advances once with every batch of training. With `accumulate_grad_batches` that is several times a step,
    and each of those batches is also contrasted alone; the `GradientCache` callback has neither effect.

    Args:
        image_encoder: the image tower.
        text_encoder: the tower of both texts.
        image_processor: how pictures become the image tower's input.
        tokenizer: how texts become the text tower's input.
        embed_dim: D, the width of the joint space.
        image_projection: the image tower's vectors into the joint space; one matrix if None.
        text_projection: the text tower's vectors into the joint space; one matrix if None.
        init_logit_scale: s at the start.
        max_logit_scale: s is held between 1 and this.
        history_init: `one`, as published: weights then begin near 0.02 and grow for some 300 steps. `first_batch`
            begins with the means of the first batch, for runs that are not so long.
        momentum: m of the history.
        gamma_sample: g_s of the language gate; 0 switches it off, and with it the others.
        gamma_pair: g_p of the description gates.
        mask_duplicates: leave out of the contrast with captions the pairs of different samples, on any rank, whose
            captions have the same tokens. Ours: captioners write one sentence for many images.

    Attributes:
        history: H_tc, H_xt and H_xc, (3,) float32, equal on all ranks; NaN where it has not begun. Saved with the
            weights.
    """

    modalities = ("image", "text")
    captions = MappingProxyType(
        {"text": OneCaption(kinds=["raw"]), "caption": OneCaption(kinds=["synthetic"], optional=True)}
    )
    history: Tensor

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
        history_init: Literal["one", "first_batch"] = "one",
        momentum: float = 0.99,
        gamma_sample: float = 2.0,
        gamma_pair: float = 2.0,
        mask_duplicates: bool = False,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # the logarithm
        self.max_logit_scale = max_logit_scale
        self.register_buffer("history", torch.full((3,), 1.0 if history_init == "one" else torch.nan))
        self.momentum, self.gamma_sample, self.gamma_pair = momentum, gamma_sample, gamma_pair
        self.mask_duplicates = mask_duplicates

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        texts = self.encode("text", torch.cat([batch["text"], batch["caption"]])).pooled  # one pass of the tower
        text, caption = texts.split(len(batch["text"]))
        return {"image": self.encode("image", batch["image"]).pooled, "text": text, "caption": caption}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        image, text, caption = (embeddings[name] for name in ("image", "text", "caption"))
        given = batch.get("caption_given", torch.ones(len(image), dtype=torch.bool, device=image.device))
        found = similarities(image, text, caption)
        history = updated_history(self.history.float(), found, given, self.momentum)
        if self.training:
            self.history = history  # a new tensor, which stays float32 also where the model is half precision
        else:
            history = torch.where(self.history.isnan(), history, self.history)
        weights = gates(found, history, given, self.gamma_sample, self.gamma_pair)
        ids = text_ids(batch["caption"])
        losses = adaptive_losses(
            image, text, caption, self.logit_scale.exp(), weights, given, ids if self.mask_duplicates else None
        )
        self.statistics = {
            **{f"history/{pair}": value for pair, value in zip(PAIRS, history, strict=True)},
            "weight/sample": weights.sample.mean(),
            "weight/text": weights.text.mean(),
            "weight/caption": weights.caption.sum() / given.sum().clamp_min(1),
            "duplicate_captions": duplicate_rate(ids, given),
        }
        return losses._asdict()

    @classmethod
    def from_open_clip(
        cls,
        model: str | Mapping[str, Any] | nn.Module,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        **processors: Processor,
    ) -> ALIP:
        """From an open_clip model; see `collimate.checkpoints.open_clip.read_open_clip`. The history begins anew.

        The released weights have open_clip's names: `ALIP.from_open_clip("ViT-B-32", "ALIP_YFCC15M_B32.pt")`.
        """
        return read_open_clip(model, checkpoint, **processors).build(cls)
