"""FLAIR: fine-grained language-informed image representations.

Xiao et al. 2025, arXiv 2412.03561, section 3; ExplainableML/flair.

Image i has K texts, joined from sentences of its captions (`SubCaptions(sampling="diverse")`). With t_ik a text's
vector, v_i the image's and P_i its patches, all in the joint space, the image as a text sees it is

    v_i(t) = Attention(query: LN(t), keys: LN(P_i) and 0, values: LN(P_i) and 0),        text-conditioned pooling

with an empty token, 0, for texts that find nothing. All cosines share a scale s and a bias b:

    l_i(t) = s cos(v_i(t), t) + b                  l'_i(t) = s cos(v_i, t) + b

    L_TCS = 1/(N + K - 1) Σ_i [ Σ_k softplus(-l_i(t_ik)) + Σ_{j≠i} softplus(l_i(t_jκ)) ]       text-conditioned sigmoid
    L_MPS = 1/(N K) Σ_i [ Σ_k softplus(-l'_i(t_ik)) + Σ_{j≠i,k} softplus(l'_i(t_jk)) ]         multi-positive sigmoid

over the N images of all ranks. In L_TCS another image gives one of its texts, t_jκ. The released code trains on half
the sum of both: `loss_weights` of 1/2, as in the recipe. s and b start at 1/0.07 and -10; s is held between 1 and 100.

What of this is ours:
- κ = (i - j) modulo K, where the released code draws it: a sample's K texts are drawn already, so that this is as
  random, and the same on any number of ranks.
- The released code contrasts an image on each other rank with all K texts of one image and one of every other, and
  divides by the images of one rank; here ranks change nothing.
- Pooling is done for some images at a time and again in the backward pass, so that memory does not grow with N².
- Sentences are split by `split_sentences`; the released code splits at every full stop.

Images are ranked by cos(v_i(t), t), which needs their patches: retrieval costs an attention a pair.

Shape legend: n images of this rank, N of all ranks, K texts an image, M patches, T texts, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from collimate import distributed
from collimate.checkpoints.files import CheckpointError, read_state_dict, tidy
from collimate.checkpoints.open_clip import read_open_clip
from collimate.distributed import Group
from collimate.encoders import Encoder, Projection, projections_for
from collimate.encoding import Encoding
from collimate.losses import SharedLabels, sigmoid_contrast
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method
from collimate_vision_language.sub_captions import SubCaptions, embed_several

PAIRS = 2**15  # of image and text, pooled at a time: 64 MiB a tensor at a width of 512


class TextConditionedPooling(nn.Module):
    """What a text attends to among the patches of an image, or among none of them.

    Args:
        width: D.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.text_norm, self.key_norm, self.value_norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, add_zero_attn=True, batch_first=True)

    def forward(self, text: Float[Tensor, "n T D"], patches: Float[Tensor, "n M D"]) -> Float[Tensor, "n T D"]:
        """v_i(t) of each image with T texts of its own."""
        return self._attend(text, patches, weights=False)[0]

    def weights(self, text: Float[Tensor, "n T D"], patches: Float[Tensor, "n M D"]) -> Float[Tensor, "n T M"]:
        """How much a text attends to each patch, the mean over heads; what is missing to 1 fell to the empty token."""
        return self._attend(text, patches, weights=True)[1][..., :-1]

    def _attend(self, text: Tensor, patches: Tensor, weights: bool) -> tuple[Tensor, Any]:
        text, keys, values = self.text_norm(text), self.key_norm(patches), self.value_norm(patches)
        return self.attention(text, keys, values, need_weights=weights)

    def cosine(self, text: Float[Tensor, "n T D"], patches: Float[Tensor, "n M D"]) -> Float[Tensor, "n T"]:
        """cos(v_i(t), t)."""
        return torch.cosine_similarity(self(text, patches), text, dim=-1)


def text_conditioned_loss(
    pooling: TextConditionedPooling,
    patches: Float[Tensor, "n M D"],
    text: Float[Tensor, "n K D"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    group: Group = None,
) -> Float[Tensor, ""]:
    """L_TCS: each image as its own and others' texts see it. The texts of all ranks are gathered, no patches.

    Args:
        patches, text: this rank's features, not normalised.
        logit_scale, logit_bias: the multiplier s of the cosines, not its logarithm, and the bias b.
    """
    counts = distributed.row_counts(text, group)
    texts = distributed.gather(text, group, counts)
    images, own = torch.arange(len(texts), device=text.device), distributed.own(counts, group)

    def loss_of(rows: slice) -> Tensor:
        place = images[own][rows, None]
        others = texts[images, (place - images) % text.shape[1]]
        positive, negative = (
            logit_scale * pooling.cosine(some, patches[rows]) + logit_bias for some in (text[rows], others)
        )
        return softplus(-positive).sum() + softplus(negative).masked_fill(place == images, 0).sum()

    step = max(1, PAIRS // len(texts))
    tiles = [slice(first, first + step) for first in range(0, max(1, len(text)), step)]
    losses = [loss_of(tile) if len(tiles) == 1 else checkpoint(loss_of, tile, use_reentrant=False) for tile in tiles]
    return len(counts) / (len(texts) + text.shape[1] - 1) * torch.stack(losses).sum()  # the mean over ranks is L_TCS


def multi_positive_sigmoid_loss(
    image: Float[Tensor, "n D"],
    text: Float[Tensor, "n K D"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    group: Group = None,
) -> Float[Tensor, ""]:
    """L_MPS: each text against all images; the K texts of an image are its positives.

    Args:
        image, text: this rank's features, normalised inside.
        logit_scale, logit_bias: the multiplier s of the cosines, not its logarithm, and the bias b.
    """
    first = distributed.own(distributed.row_counts(image, group), group).start
    images = torch.arange(first, first + len(image), device=image.device)
    targets = SharedLabels(images.repeat_interleave(text.shape[1]), images)
    return sigmoid_contrast(text.flatten(0, 1), image, logit_scale, logit_bias, targets=targets, group=group)


@composed(
    similarity="cosine of a text with what it attends to",
    targets="several sub-captions",
    negatives="texts of all others of all ranks, each by itself",
)
class FLAIR(Method):
    """An image and a text tower, and a pooling by which each text sees an image in its own way.

    A batch's `text` is (B, K, L), as `SubCaptions` makes it, or (B, L) for one text an image. An encoded text has its
    vector as its only token, for nothing looks at the others; images are told from texts by the grid of their tokens.

    Args:
        image_encoder: the image tower; it has tokens.
        text_encoder: the text tower.
        image_processor: how pictures become the image tower's input.
        tokenizer: how texts become the text tower's input.
        embed_dim: D, the width of the joint space.
        image_projection: the image tower's vectors and patches into the joint space; one matrix if None.
        text_projection: the text tower's vectors into the joint space; one matrix if None.
        heads: of the pooling.
        init_logit_scale: s at the start.
        init_logit_bias: b at the start.
        max_logit_scale: s is held between 1 and this.
    """

    modalities = ("image", "text")
    captions = MappingProxyType({"text": SubCaptions(sampling="diverse", whole=())})

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        image_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 512,
        image_projection: Projection | None = None,
        text_projection: Projection | None = None,
        heads: int = 8,
        init_logit_scale: float = 1 / 0.07,
        init_logit_bias: float = -10.0,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        self.pooling = TextConditionedPooling(embed_dim, heads)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # the logarithm of s
        self.logit_bias = nn.Parameter(torch.tensor(init_logit_bias))
        self.max_logit_scale = max_logit_scale

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        projection: Any = self.projections[modality]
        encoding = self.encoders[modality](inputs, mask)
        if modality == "text":
            pooled = projection(encoding.pooled)
            return Encoding(pooled, pooled[:, None])
        if encoding.grid is None and not self.training:
            raise ValueError(f"{type(self.encoders['image']).__name__} has no grid of tokens for texts to attend to.")
        return projection.project(encoding)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return embed_several(self, batch)

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        image, patches, text = (embeddings[name] for name in ("image", "patches", "text"))
        scale, bias = self.logit_scale.exp(), self.logit_bias
        return {
            "text_conditioned": text_conditioned_loss(self.pooling, patches, text, scale, bias),
            "multi_positive": multi_positive_sigmoid_loss(image, text, scale, bias),
        }

    def similarity(self, query: Encoding, key: Encoding) -> Float[Tensor, "Q K"]:
        """cos(v_i(t), t) of images and texts, whichever of them asks; the cosine where both are of one kind."""
        if (query.grid is None) == (key.grid is None):
            return super().similarity(query, key)
        if query.grid is None:
            return self.similarity(key, query).T
        assert query.tokens is not None
        some = query.tokens.float().split(max(1, PAIRS // len(key.pooled)))
        return torch.cat([self.pooling.cosine(_for_each(patches, key), patches) for patches in some])

    def localization_map(self, image: Encoding, text: Encoding) -> Float[Tensor, "N T M"]:
        """How much each text attends to each patch, the mean over heads."""
        assert image.tokens is not None
        return self.pooling.weights(_for_each(image.tokens, text), image.tokens.float())

    @classmethod
    def from_open_clip(
        cls,
        model: str | Mapping[str, Any] | nn.Module,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        **processors: Processor,
    ) -> FLAIR:
        """From an open_clip model, with a pooling that begins anew; see `collimate.checkpoints.open_clip`."""
        return read_open_clip(model, checkpoint, **processors).build(cls)

    @classmethod
    def from_released(
        cls,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor],
        model: str | Mapping[str, Any] = "ViT-B-16",
        **processors: Processor,
    ) -> FLAIR:
        """From the released weights, such as `flair-cc3m-recap.pt`; `model` has their sizes.

        Raises:
            CheckpointError: the weights do not fit the model, or cannot be read.
        """
        given = tidy(dict(checkpoint)) if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)
        pooling = {}
        for theirs, ours in _RELEASED_POOLING.items():
            pooling |= {key.replace(theirs, ours): given.pop(key) for key in list(given) if key.startswith(theirs)}
        for theirs, ours in {"image_post.proj": "visual.proj", "text_post.proj": "text_projection"}.items():
            if not pooling or theirs not in given:
                raise CheckpointError("These are no released FLAIR weights: they lack visual_proj.* or *_post.proj.")
            given[ours] = given.pop(theirs)
        method = read_open_clip(model, given, **processors).build(cls)
        method.pooling.load_state_dict(pooling)
        return method


def _for_each(patches: Float[Tensor, "N M D"], text: Encoding) -> Float[Tensor, "N T D"]:
    """The texts, once for each image."""
    return text.pooled.float().expand(len(patches), -1, -1)


_RELEASED_POOLING = {
    "visual_proj.attn.": "attention.",
    "visual_proj.ln_q.": "text_norm.",
    "visual_proj.ln_k.": "key_norm.",
    "visual_proj.ln_v.": "value_norm.",
}
