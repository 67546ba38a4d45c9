"""The SigLIP loss (Zhai et al. 2023, arXiv 2303.15343, equation 1)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from collimate.losses.composition import composed
from collimate.losses.sigmoid import sigmoid_contrast


@composed(
    similarity="cosine, scaled and shifted",
    targets="own pair; any, by `targets`",
    weights="of samples, by `weights`",
    negatives="all others of all ranks, each by itself",
)
def siglip_loss(
    image_features: Float[Tensor, "n D"],
    text_features: Float[Tensor, "n D"],
    logit_scale: Float[Tensor, ""] | float,
    logit_bias: Float[Tensor, ""] | float,
    **options: Any,
) -> Float[Tensor, ""]:
    """Mean over images of the summed log losses of "text j belongs to image i"; pair i is (image i, text i).

    Args:
        image_features, text_features: this rank's features, any floating dtype, normalised inside.
        logit_scale, logit_bias: the multiplier of the cosines, not its logarithm, and the bias; published starts are
            10 and -10.
        options: keyword arguments of `sigmoid_contrast`: targets, ids, mask, weights, normalize, group.
    """
    return sigmoid_contrast(image_features, text_features, logit_scale, logit_bias, **options)
