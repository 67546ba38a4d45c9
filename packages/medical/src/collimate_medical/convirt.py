"""ConVIRT's loss: images and sentences, each direction with a weight of its own.

Zhang et al. 2020, Contrastive learning of medical visual representations from paired images and text, arXiv
2010.00747, equations 2 to 4. With unit vectors v_i of images and u_j of texts and the temperature τ,

    L = mean_i [ λ CE_i(<v_i, u_.> / τ) + (1 - λ) CE_i(<v_., u_i> / τ) ],    λ = 0.75, τ = 0.1.

The softmax runs over the samples of all ranks with exact gradients, where published code keeps to one device.

Shape legend: n samples of this rank, D width.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from collimate.distributed import Group
from collimate.losses import symmetric_info_nce_losses
from collimate.losses.softmax import global_mean

IMAGE_SHARE = 0.75  # λ, section 3.2
TEMPERATURE = 0.1  # section 3.2


def convirt_loss(
    image: Float[Tensor, "n D"],
    text: Float[Tensor, "n D"],
    logit_scale: Float[Tensor, ""] | float = 1 / TEMPERATURE,
    image_share: float = IMAGE_SHARE,
    group: Group = None,
    **options: Any,
) -> Float[Tensor, ""]:
    """The contrast of images with texts, weighed against that of texts with images; pair i is (image i, text i).

    Args:
        image, text: this rank's features, any floating dtype, normalised inside.
        logit_scale: 1/τ, not its logarithm.
        image_share: λ, from 0 to 1.
        group: the ranks that contrast with each other.
        options: keyword arguments of `symmetric_info_nce_losses`: ids, mask, targets, queues, normalize.

    Raises:
        ValueError: `image_share` is no share.
    """
    if not 0 <= image_share <= 1:
        raise ValueError(f"image_share lies between 0 and 1; got {image_share:g}.")
    losses = symmetric_info_nce_losses(image, text, logit_scale, group=group, **options)
    by_image, by_text = (global_mean(each, None, group) for each in losses)
    return image_share * by_image + (1 - image_share) * by_text
