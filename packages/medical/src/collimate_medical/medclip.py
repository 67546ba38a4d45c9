"""MedCLIP's loss: who belongs to whom is how much their findings agree, so that unpaired images and texts teach.

Wang et al. 2022, MedCLIP, arXiv 2210.10163, section 3.3; RyanWangZf/MedCLIP. With label vectors l of images and k of
texts, 1 for a finding that is there, -1 for one that is not, 0 for one of which nothing is said, and unit vectors v, t,

    y_ij = softmax_j(l_i k_j),                      y'_ji = softmax_i(k_j l_i),
    L = 1/2 [ mean_i -Σ_j y_ij log softmax_j(s <v_i, t_j>) + mean_j -Σ_i y'_ji log softmax_i(s <v_i, t_j>) ].

As released, labels are compared by their dot product; the paper writes their cosine. The soft targets and the softmax
run over the samples of all ranks with exact gradients.

Shape legend: n images and m texts of this rank, C findings, D width.
"""

from __future__ import annotations

from jaxtyping import Float, Shaped
from torch import Tensor

from collimate.distributed import Group
from collimate.losses import Softened, symmetric_info_nce


def medclip_loss(
    image: Float[Tensor, "n D"],
    text: Float[Tensor, "m D"],
    image_labels: Shaped[Tensor, "n C"],
    text_labels: Shaped[Tensor, "m C"],
    logit_scale: Float[Tensor, ""] | float,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Contrast images with texts, each pair as much a positive as its findings agree. Nothing need be paired.

    Args:
        image, text: this rank's features, any floating dtype.
        image_labels, text_labels: of each sample and finding, -1, 0 or 1.
        logit_scale: the multiplier s of the cosines, not its logarithm.
        normalize: whether to bring the features to unit length.
        group: the ranks that contrast with each other.
    """
    targets = label_targets(image_labels, text_labels)
    return symmetric_info_nce(image, text, logit_scale, targets=targets, normalize=normalize, group=group)


def label_targets(image_labels: Shaped[Tensor, "n C"], text_labels: Shaped[Tensor, "m C"]) -> Softened:
    """y: for each image, the softmax over texts of how many findings agree less how many contradict.

    Raises:
        ValueError: images and texts are labelled with different numbers of findings.
    """
    if image_labels.shape[1] != text_labels.shape[1]:
        raise ValueError(
            f"Images have {image_labels.shape[1]} labels and texts {text_labels.shape[1]}: both need the same "
            "findings, in one order."
        )
    return Softened(image_labels, text_labels, 1.0, normalize=False)
