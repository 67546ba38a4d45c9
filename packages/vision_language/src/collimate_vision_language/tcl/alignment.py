"""TCL's contrastive terms: between modalities, within each, and of global with local vectors.

Yang et al. 2022, arXiv 2202.10401, section 3; uta-smile/TCL, models/model_pretrain.py. With the unit features I, T of
the trained encoders and Î, T̂ of the momentum encoders, keys K_I = [Î; image queue] and K_T = [T̂; text queue], s = 1/τ,

    L_i2t = H( α softmax(s Î K_T) + (1 - α) y, softmax(s I K_T) )        and L_t2i likewise     cross-modal alignment
    L_i2i = H( y, softmax(s I K_I) )                                     and L_t2t likewise     intra-modal contrast
    L_i2i,local: I with the patches of Î's encoder                       and L_t2t,local        local mutual information

where y marks the keys of a query's own picture, divided by their number, and H is the cross-entropy, its mean over the
batch.

Shape legend: n samples of this rank, Q entries of the queue, D width, C cells of the patch grid, L text tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from collimate.distributed import LOCAL
from collimate.losses import Mixture, Softened, Targets, info_nce, local_to_global_loss


class Pair(NamedTuple):
    """Unit features of both modalities."""

    image: Float[Tensor, "n D"]
    text: Float[Tensor, "n D"]


class Locals(NamedTuple):
    """Momentum features of the parts of a sample: pooled patches, and words with the mask of those that are real."""

    image: Float[Tensor, "n C D"]
    text: Float[Tensor, "n L D"]
    text_mask: Bool[Tensor, "n L"]


class AlignmentLosses(NamedTuple):
    """The six terms."""

    i2t: Float[Tensor, ""]
    t2i: Float[Tensor, ""]
    i2i: Float[Tensor, ""]
    t2t: Float[Tensor, ""]
    i2i_local: Float[Tensor, ""]
    t2t_local: Float[Tensor, ""]

    @property
    def cross_modal(self) -> Float[Tensor, ""]:
        """L_CMA: the half of each direction."""
        return (self.i2t + self.t2i) / 2

    @property
    def intra_modal(self) -> Float[Tensor, ""]:
        """L_IMC: the half of each modality."""
        return (self.i2i + self.t2t) / 2

    @property
    def local(self) -> Float[Tensor, ""]:
        """L_LMI: the half of each modality."""
        return (self.i2i_local + self.t2t_local) / 2


def alignment_losses(
    features: Pair,
    momentum: Pair,
    keys: Pair,
    local: Locals,
    logit_scale: Float[Tensor, ""] | float,
    positives: Targets,
    alpha: float,
) -> AlignmentLosses:
    """The six contrastive terms over this rank's batch and the queue.

    Args:
        features: I and T; the only ones that get gradients, beside the scale.
        momentum: Î and T̂ of the same samples, from another view of the picture.
        keys: K_I and K_T, (n + Q, D), beginning with `momentum`.
        local: of the momentum encoders; `n` samples.
        logit_scale: s, the multiplier of the cosines.
        positives: y, of this rank's queries to its keys.
        alpha: α, how much of the cross-modal targets is soft.
    """

    def soft(teacher: Tensor, others: Tensor) -> Targets:
        if not alpha:
            return positives
        return Mixture(Softened(teacher, others, logit_scale, normalize=False), positives, alpha)

    def contrast(query: Tensor, others: Tensor, targets: Targets) -> Tensor:
        return info_nce(query, others, logit_scale, targets=targets, normalize=False, group=LOCAL)

    return AlignmentLosses(
        i2t=contrast(features.image, keys.text, soft(momentum.image, keys.text)),
        t2i=contrast(features.text, keys.image, soft(momentum.text, keys.image)),
        i2i=contrast(features.image, keys.image, positives),
        t2t=contrast(features.text, keys.text, positives),
        i2i_local=local_to_global_loss(features.image, local.image, logit_scale),
        t2t_local=local_to_global_loss(features.text, local.text, logit_scale, local.text_mask),
    )


def pooled_grid(patches: Float[Tensor, "n P D"], grid: tuple[int, ...] | None, side: int) -> Float[Tensor, "n C D"]:
    """The means of side x side windows of patches; rows and columns beyond the last whole window are left out.

    Args:
        patches: row by row; not normalised here, before or after.
        grid: (height, width) of the patches.
        side: windows along each edge.

    Raises:
        ValueError: the patches lie on no grid, or on one with fewer rows or columns than windows.
    """
    if grid is None or len(grid) != 2 or min(grid) < side:
        raise ValueError(
            f"The local term pools patches to {side} x {side} windows, but the image tower gives a grid of {grid}: use "
            "a tower with patches, larger pictures, or a smaller local_grid."
        )
    height, width = grid
    window = (height // side, width // side)
    maps = avg_pool2d(patches.mT.unflatten(2, (height, width)), window)
    return maps[:, :, :side, :side].flatten(2).mT
