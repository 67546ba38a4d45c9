"""DreamLIP: language-image pre-training with long captions.

Zheng et al. 2024, arXiv 2403.17007, section 3; zyf0619sjtu/DreamLIP.

Image i has K sub-captions (see `sub_captions`), all encoded to unit vectors: v_i the image, t_ik its k-th sub-caption,
p_im its patches, s and s' two scales.

    L_MP = 1/K Σ_k 1/2 [ mean_i CE_j(s <v_i, t_jk>, i) + mean_i CE_j(s <v_j, t_ik>, i) ]        multi-positive contrast

so that the k-th sub-captions of other images are negatives and an image's other sub-captions never are. Each
sub-caption groups the patches that it speaks of,

    w_ikm = <t_ik, p_im>, brought to 0...1 over m, 0 where below σ, divided by its sum over m
    g_ik  = Σ_m w_ikm p_im to unit length,

and is contrasted with what it and the other sub-captions of its image have grouped:

    L_G = mean_ik 1/2 [ CE_l(s' <g_il, t_ik>, k) + CE_l(s' <g_ik, t_il>, k) ]                   grouping

The gradient runs through w too. Both terms weigh 1 (`optimization.loss_weights` changes that).

What of this is ours:
- L_MP is the released code's mean over k; the paper sums.
- L_G as in the paper contrasts a text with the groups; we average with the other direction. The released code instead
  contrasts all pairs of the batch, `grouping="batch"`, but lays texts out (K, B) and reads them as (B, K), so that
  sub-captions meet other images' patches; here they do not.
- σ is 1/M, as in SPARC (Bica et al. 2024, arXiv 2401.09865), whose grouping it is; the paper's is not known to us.
- Where all patches of an image are equally near a text, or one alone is left, 0/0 becomes equal weights.
- Equal sub-captions of one image, drawn twice for want of others, are no negatives of each other in L_G.
- The released code lacks the projection of patches and the scale s', without which it does not run: patches have a
  matrix of their own here, and s' starts and is clamped as s is.
- Left out, as in the paper: the released code's circle loss, optimal transport and tag loss.

What to expect of L_G: a group is chosen by the text that it is then compared with, and no other image takes part, so
that patches which merely differ are enough, whatever they show. In our small experiments (tests/claims) it is as low
with the patches of another image, and its maps point nowhere. FLAIR's pooling, which sets a text against the groups
that the same text makes of other images, leaves no such way around the picture.

With one sub-caption, L_MP is CLIP's loss and the per-image L_G is 0. Retrieval and classification use v and t only.

Shape legend: n images of this rank, K sub-captions, M patches, L text tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate import distributed
from collimate.checkpoints.open_clip import read_open_clip
from collimate.distributed import Group
from collimate.encoders import Encoder, LinearProjection, Projection, projections_for
from collimate.encoding import Encoding
from collimate.losses import clip_loss, symmetric_info_nce
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method
from collimate_vision_language.sub_captions import SubCaptions, embed_several, several

Normalization = Literal["minmax", "softmax"]
MINMAX_EPSILON = 1e-10  # added to the range of similarities (zyf0619sjtu/DreamLIP, open_clip/loss.py)


def multi_positive_loss(
    image: Float[Tensor, "n D"],
    text: Float[Tensor, "n K D"],
    logit_scale: Float[Tensor, ""] | float,
    group: Group = None,
) -> Float[Tensor, ""]:
    """L_MP: the mean of the K contrasts of images with their k-th sub-captions.

    Images are the queries, which never leave their rank: each of the K slots of texts is gathered, once.

    Args:
        image, text: this rank's features, normalised inside.
        logit_scale: the multiplier s of the cosines, not its logarithm.
    """
    return torch.stack([clip_loss(image, slot, logit_scale, group=group) for slot in text.unbind(1)]).mean()


def grouping_weights(
    text: Float[Tensor, "n K D"],
    patches: Float[Tensor, "n M D"],
    sigma: float | None = None,
    normalization: Normalization = "minmax",
) -> Float[Tensor, "n K M"]:
    """w: how much each patch belongs to each sub-caption of its image; the sum over patches is 1.

    Args:
        text, patches: normalised inside.
        sigma: weights below it become 0, before they are divided by their sum; 1/M if None.
        normalization: how cosines come to lie between 0 and 1: by their smallest and largest over the patches, or by a
            softmax over them.
    """
    similarity = normalize(text, dim=-1) @ normalize(patches, dim=-1).mT
    if normalization == "softmax":
        weights = similarity.softmax(-1)
    else:
        low, high = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
        weights = (similarity - low) / (high - low + MINMAX_EPSILON)
    count = weights.shape[-1]
    weights = weights.masked_fill(weights < (1 / count if sigma is None else sigma), 0)
    total = weights.sum(-1, keepdim=True)
    nothing = total == 0
    return torch.where(nothing, 1 / count, weights / total.masked_fill(nothing, 1))


def grouped_patches(weights: Float[Tensor, "n K M"], patches: Float[Tensor, "n M D"]) -> Float[Tensor, "n K D"]:
    """g: the patches of each sub-caption in one unit vector."""
    return normalize(weights @ normalize(patches, dim=-1), dim=-1)


def per_image_grouping_loss(
    grouped: Float[Tensor, "n K D"],
    text: Float[Tensor, "n K D"],
    logit_scale: Float[Tensor, ""] | float,
    ids: Int64[Tensor, "n K"] | None = None,
    group: Group = None,
) -> Float[Tensor, ""]:
    """L_G: the K groups of an image against its K sub-captions, in both directions; nothing is gathered.

    Args:
        grouped: `grouped_patches`.
        text: sub-captions, normalised inside.
        logit_scale: the multiplier s' of the cosines, not its logarithm.
        ids: sub-captions of one image with equal ids are no negatives of each other.
    """
    logits = logit_scale * grouped @ normalize(text, dim=-1).mT
    own = logits.diagonal(dim1=1, dim2=2)
    if ids is not None:
        others = ~torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        logits = logits.masked_fill((ids[:, :, None] == ids[:, None]) & others, -torch.inf)
    losses = (logits.logsumexp(1) + logits.logsumexp(2)) / 2 - own
    return distributed.global_share(distributed.row_counts(losses, group)) * losses.mean(1).sum()


def batch_grouping_loss(
    grouped: Float[Tensor, "n K D"],
    text: Float[Tensor, "n K D"],
    logit_scale: Float[Tensor, ""] | float,
    ids: Int64[Tensor, "n K"] | None = None,
    group: Group = None,
) -> Float[Tensor, ""]:
    """The released code's contrast: every group against every sub-caption of the batches of all ranks.

    Args: as of `per_image_grouping_loss`; ids are compared within an image only.
    """
    if ids is not None:
        first = distributed.own(distributed.row_counts(ids, group), group).start
        images = torch.arange(first, first + len(ids), device=ids.device)
        ids = (ids + ids.shape[1] * images[:, None]).flatten()
    return symmetric_info_nce(grouped.flatten(0, 1), text.flatten(0, 1), logit_scale, ids=ids, group=group)


def sub_caption_ids(tokens: Int64[Tensor, "n K L"]) -> Int64[Tensor, "n K"]:
    """For each sub-caption the place, from 0 to K - 1, of the first one of its image with the same tokens."""
    return (tokens[:, :, None] == tokens[:, None]).all(-1).int().argmax(-1)


@composed(
    similarity="cosine; of attended patches with a sub-caption",
    targets="several sub-captions",
    negatives="all others of all ranks",
)
class DreamLIP(Method):
    """CLIP's two towers, taught by several sentences an image and by the patches that each speaks of.

    A batch's `text` is (B, K, L), as `SubCaptions` makes it, or (B, L) for one text an image. An image's tokens are its
    patches in the space of L_G.

    Args:
        image_encoder: the image tower; it has tokens.
        text_encoder: the text tower.
        image_processor: how pictures become the image tower's input.
        tokenizer: how texts become the text tower's input.
        embed_dim: D, the width of the joint space.
        image_projection: the image tower's vectors into the joint space; one matrix if None.
        text_projection: the text tower's vectors into the joint space; one matrix if None.
        local_projection: the patches into the joint space; one matrix if None.
        grouping: the contrast of L_G: among the sub-captions of one image, or of the whole batch.
        sigma: the threshold of weights; 1/M if None.
        normalization: `minmax` or `softmax`; see `grouping_weights`.
        init_logit_scale: s and s' at the start.
        max_logit_scale: s and s' are held between 1 and this.
    """

    modalities = ("image", "text")
    captions = MappingProxyType({"text": SubCaptions()})

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        image_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 512,
        image_projection: Projection | None = None,
        text_projection: Projection | None = None,
        local_projection: Projection | None = None,
        grouping: Literal["per_image", "batch"] = "per_image",
        sigma: float | None = None,
        normalization: Normalization = "minmax",
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        self.local_projection = local_projection or LinearProjection(image_encoder.width, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # the logarithm of s
        self.local_logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # the logarithm of s'
        self.max_logit_scale = max_logit_scale
        self.grouping_loss = {"per_image": per_image_grouping_loss, "batch": batch_grouping_loss}[grouping]
        self.sigma = sigma
        self.normalization: Normalization = normalization

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        projection: Any = self.projections[modality]
        encoding = self.encoders[modality](inputs, mask)
        if modality == "text":
            return projection.project(encoding)
        tokens = None if encoding.tokens is None else self.local_projection(encoding.tokens)
        return encoding.replace(pooled=projection(encoding.pooled), tokens=tokens)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return embed_several(self, batch)

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        image, patches, text = (embeddings[name] for name in ("image", "patches", "text"))
        grouped = grouped_patches(grouping_weights(text, patches, self.sigma, self.normalization), patches)
        ids = sub_caption_ids(several(batch["text"]))
        return {
            "multi_positive": multi_positive_loss(image, text, self.logit_scale.exp()),
            "grouping": self.grouping_loss(grouped, text, self.local_logit_scale.exp(), ids),
        }

    def localization_map(self, image: Encoding, text: Encoding) -> Float[Tensor, "N T M"]:
        """w of N images with T texts each: where the image shows what the text says."""
        assert image.tokens is not None
        texts = text.pooled.float().expand(len(image.pooled), -1, -1)
        return grouping_weights(texts, image.tokens.float(), self.sigma, self.normalization)

    @classmethod
    def from_open_clip(
        cls,
        model: str | Mapping[str, Any] | nn.Module,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        **processors: Processor,
    ) -> DreamLIP:
        """From an open_clip model, or the released weights, which have its names: `("ViT-B-16", "cc3m.pt")`.

        What these lack of the grouping begins anew. See `collimate.checkpoints.open_clip.read_open_clip`.
        """
        return read_open_clip(model, checkpoint, **processors).build(cls)
