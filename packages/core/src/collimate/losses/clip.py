"""The CLIP loss (Radford et al. 2021, arXiv 2103.00020, figure 3)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from collimate.losses.composition import composed
from collimate.losses.softmax import symmetric_info_nce


@composed(
    similarity="cosine",
    targets="own pair; any, by `targets`",
    weights="of samples, by `weights`",
    negatives="all others of all ranks; queues, masks",
)
def clip_loss(
    image_features: Float[Tensor, "n D"],
    text_features: Float[Tensor, "n D"],
    logit_scale: Float[Tensor, ""] | float,
    **options: Any,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of images against texts and texts against images; pair i is (image i, text i).

    Args:
        image_features, text_features: this rank's features, any floating dtype, normalised inside.
        logit_scale: the multiplier of the cosines, not its logarithm. A bias on all logits would change nothing.
        options: keyword arguments of `symmetric_info_nce`: targets, ids, mask, queues, weights, normalize, group.
    """
    return symmetric_info_nce(image_features, text_features, logit_scale, **options)
