"""The losses of clip-rocket (Fini et al. 2023, arXiv 2305.08675), over given projections of the views.

One weak view of each picture and of its text is global, K strong ones are local. With scales s and s' and label
smoothing ε, CE the cross-entropy of pictures over texts (and in the other direction alike),

    L_image = [ CE(s z_image z_text') + K mean_{i,j} CE_ε(s' h_image,i h_text,j') ] / (1 + K)
    L = (L_image + L_text) / 2.

facebookresearch/clip-rocket, losses.py.

Shape legend: n samples of this rank, N of all ranks, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from collimate import distributed
from collimate.distributed import Group
from collimate.losses import Paired, Smoothed, Weights, balanced_assignments, clip_loss, symmetric_info_nce_losses
from collimate.losses.softmax import global_mean

Vectors = Sequence[Float[Tensor, "n D"]]
"""One tensor a view."""


class LocalToLocal(NamedTuple):
    """Both directions of both terms."""

    image_global: Float[Tensor, ""]
    text_global: Float[Tensor, ""]
    image_local: Float[Tensor, ""]
    text_local: Float[Tensor, ""]
    views: int

    @property
    def image(self) -> Float[Tensor, ""]:
        return (self.image_global + self.views * self.image_local) / (1 + self.views)

    @property
    def text(self) -> Float[Tensor, ""]:
        return (self.text_global + self.views * self.text_local) / (1 + self.views)

    @property
    def loss(self) -> Float[Tensor, ""]:
        return (self.image + self.text) / 2


def local_to_local_losses(
    image_global: Float[Tensor, "n D"],
    text_global: Float[Tensor, "n D"],
    image_local: Vectors,
    text_local: Vectors,
    logit_scale: Tensor | float,
    local_logit_scale: Tensor | float,
    label_smoothing: float = 0.0,
    *,
    group: Group = None,
) -> LocalToLocal:
    """The contrast of weak views, and the mean contrast of all K x K strong ones.

    Args:
        image_global, text_global: z, normalised inside.
        image_local, text_local: h of each strong view.
        logit_scale, local_logit_scale: the multipliers s and s', not their logarithms.
        label_smoothing: ε, of the local terms only.
    """

    def directions(image: Tensor, text: Tensor, scale: Tensor | float, smoothing: float) -> Tensor:
        targets = Smoothed(Paired(), smoothing) if smoothing else None
        losses = symmetric_info_nce_losses(image, text, scale, targets=targets, group=group)
        return torch.stack([global_mean(each, None, group) for each in losses])

    whole = directions(image_global, text_global, logit_scale, 0.0)
    pairs = [
        directions(image, text, local_logit_scale, label_smoothing) for image, text in product(image_local, text_local)
    ]
    local = torch.stack(pairs).mean(0)
    return LocalToLocal(whole[0], whole[1], local[0], local[1], len(image_local))


def swapped_view_loss(
    image: Vectors,
    text: Vectors,
    logit_scale: Tensor | float,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    group: Group = None,
) -> Float[Tensor, ""]:
    """SwALIP: views (i, j) predict how the other two, (1 - i, 1 - j), are assigned to each other.

    Assignments are those of each picture to all texts, balanced, and of each text to all pictures; this rank holds its
    own rows of both.

    Args:
        image, text: h of the two strong views.
        logit_scale: s'.
        epsilon, iterations: of `balanced_assignments`.

    Raises:
        ValueError: there are not two views.
    """
    if len(image) != 2 or len(text) != 2:
        raise ValueError(f"Views swap their assignments by twos; got {len(image)} pictures' and {len(text)} texts'.")
    losses = []
    for i, j in product(range(2), range(2)):
        targets = _assignments(image[1 - i], text[1 - j], epsilon, iterations, group)
        losses.append(clip_loss(image[i], text[j], logit_scale, targets=targets, group=group))
    return torch.stack(losses).mean()


@torch.no_grad()
def _assignments(image: Tensor, text: Tensor, epsilon: float, iterations: int, group: Group) -> Weights:
    units = [normalize(each.detach(), dim=1) for each in (image, text)]
    rows, columns = (
        balanced_assignments(one @ distributed.gather(other, group).T, epsilon, iterations, group)
        for one, other in (units, units[::-1])
    )
    return Weights(rows, columns)
