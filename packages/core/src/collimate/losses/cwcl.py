"""The continuously weighted contrastive loss (Srinivasa et al. 2023, CWCL, arXiv 2309.14580)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from collimate.distributed import Group
from collimate.losses.composition import composed
from collimate.losses.softmax import symmetric_info_nce
from collimate.losses.targets import Paired, Similarities, Softened, Targets


@composed(
    similarity="cosine",
    targets="how near a frozen tower finds them; own pair backwards",
    negatives="all others of all ranks",
)
def cwcl_loss(
    frozen_features: Float[Tensor, "n D"],
    trained_features: Float[Tensor, "n D"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    teacher: Float[Tensor, "n *several E"] | None = None,
    target_temperature: float | None = None,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Pull towards each sample what is near it in a frozen encoder's space, by how near it is.

    The direction frozen -> trained has targets (cosine + 1) / 2 of the teacher, normalised over all keys; the direction
    trained -> frozen is plain InfoNCE. The two are added, as published.

    Args:
        frozen_features: of the modality whose frozen encoder says what is near.
        trained_features: of the other modality.
        logit_scale: the multiplier of the cosines, not its logarithm.
        teacher: embeddings to take the targets from; several a sample give the mean of their cosines. None takes
            `frozen_features`. Not differentiated.
        target_temperature: ours: targets are the softmax of the teacher's cosines over this, which is less flat than
            the published targets, among which a cosine of 0 counts half of 1. None for those.

    Raises:
        ValueError: a temperature for several teacher embeddings a sample.
    """
    teacher = frozen_features if teacher is None else teacher
    if target_temperature is not None and teacher.ndim != 2:
        raise ValueError(f"A target_temperature takes one teacher embedding a sample, not {tuple(teacher.shape)}.")
    targets: Targets = Similarities(teacher, teacher)
    if target_temperature is not None:
        targets = Softened(teacher, teacher, 1 / target_temperature)
    return 2 * symmetric_info_nce(
        frozen_features,
        trained_features,
        logit_scale,
        targets=targets,
        key_targets=Paired(),
        normalize=normalize,
        group=group,
    )
