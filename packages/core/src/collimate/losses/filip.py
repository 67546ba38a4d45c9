"""The FILIP loss (Yao et al. 2021, arXiv 2111.07783, section 3.1).

Shape legend: n images and m texts of this rank, N and M those of all ranks in rank order, P patches, L text tokens,
D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from collimate import distributed
from collimate.distributed import Group
from collimate.kernels.late_interaction import pair_late_interaction
from collimate.kernels.tiles import Keep
from collimate.losses.composition import composed
from collimate.losses.late_interaction import select_tokens
from collimate.losses.scores import symmetric_info_nce_of_scores
from collimate.losses.targets import Targets


@composed(
    similarity="late interaction of tokens, one a direction",
    targets="own pair; any, by `targets`",
    weights="of samples, by `weights`",
    negatives="all others of all ranks",
)
def filip_loss(
    image_tokens: Float[Tensor, "n P D"],
    text_tokens: Float[Tensor, "m L D"],
    logit_scale: Float[Tensor, ""] | float,
    image_mask: Bool[Tensor, "n P"] | None = None,
    text_mask: Bool[Tensor, "m L"] | None = None,
    *,
    image_share: float = 1.0,
    text_share: float = 1.0,
    targets: Targets | None = None,
    key_targets: Targets | None = None,
    ids: Int[Tensor, " n"] | None = None,
    mask: Bool[Tensor, "n M"] | Keep | None = None,
    weights: Float[Tensor, " n"] | None = None,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy over late interactions; pair i is (image i, text i) unless `targets` say otherwise.

    Images rank texts by the mean over patches of each patch's best word, texts rank images by the mean over words of
    each word's best patch: two different matrices, each normalised along the candidates of its own direction. Images
    stay where they are; the tokens of texts, which are fewer, are gathered with gradient, and each pair of samples is
    compared on one rank only.

    Padding takes part neither in a maximum nor in a mean. Released code (Wukong; the authors' MindSpore code) sets it
    to zero vectors instead, so that no patch's maximum is below 0; there is no option for that, as this loss loads no
    such weights. It is `late_interaction(image, text * text_mask[..., None])`, without the mask, for that direction.

    Args:
        image_tokens, text_tokens: this rank's tokens, any floating dtype, each brought to unit length inside.
        logit_scale: the multiplier of the similarities, not its logarithm.
        image_mask, text_mask: True where a token is real; None where all are, on all ranks.
        image_share, text_share: below 1, only so large a share of each side's tokens is used, the most important ones;
            0.25 of both as published. See `select_tokens`; the other side's tokens that count are those of this rank.
        targets, key_targets, ids, mask, weights: as of `symmetric_info_nce`, images the queries and texts the keys. The
            paper's fine-tuning, where each of the c captions of an image has target 1/c, is `SharedLabels`.
        normalize: whether to bring the tokens to unit length.
        group: the ranks that contrast with each other.

    Raises:
        ValueError: shapes that do not fit, or a sample without a real token.
    """
    if image_share < 1 or text_share < 1:
        images, texts = select_tokens(
            image_tokens, text_tokens, image_mask, text_mask, shares=(image_share, text_share), normalize=normalize
        )
        (image_tokens, image_mask, _), (text_tokens, text_mask, _) = images, texts
    counts = distributed.row_counts(text_tokens, group)
    text_tokens, text_mask = _gathered(text_tokens, text_mask, counts, group)
    by_image, by_text = pair_late_interaction(image_tokens, text_tokens, image_mask, text_mask, normalize)
    return symmetric_info_nce_of_scores(
        by_image,
        by_text,
        logit_scale,
        key_counts=counts,
        targets=targets,
        key_targets=key_targets,
        ids=ids,
        mask=mask,
        weights=weights,
        group=group,
    )


def _gathered(
    tokens: Float[Tensor, "m L D"], mask: Bool[Tensor, "m L"] | None, counts: tuple[int, ...], group: Group
) -> tuple[Float[Tensor, "M L D"], Bool[Tensor, "M L"] | None]:
    """The texts of all ranks, as long as the longest of them; ranks may pad theirs to different lengths."""
    if mask is not None:
        ends = torch.where(mask.any(0), torch.arange(1, mask.shape[1] + 1, device=mask.device), 0)
        longest = int(ends.max())
        tokens, mask = tokens[:, :longest], mask[:, :longest]
    lengths = distributed.row_counts(tokens.transpose(0, 1), group)
    if mask is None and min(lengths) < max(lengths):
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    missing = max(lengths) - tokens.shape[1]
    tokens = distributed.gather(pad(tokens, (0, 0, 0, missing)), group, counts)
    if mask is not None:
        mask = distributed.gather(pad(mask, (0, missing)).to(torch.uint8), group, counts).bool()
    return tokens, mask
