"""The loss of MoRE: an X-ray and an ECG, each contrasted with the report of both.

Thapa et al. 2024, MoRE, arXiv 2410.16239; svthapa/MoRE. With unit vectors t of reports, x of X-rays and e of ECGs, the
temperature τ and CE(a, b) the mean cross-entropy of <a_i, b_.> / τ, pair i being (a_i, b_i),

    L_tx = ( CE(t, x) + CE(x, t) ) / 2,    L_te = ( CE(t, e) + CE(e, t) ) / 2,    L = L_tx + L_te,    τ = 0.02.

Ours, and not in the numbers of a batch that does without: a third term L_xe, which MEDBind (arXiv 2403.12894) has;
samples that lack the X-ray or the ECG, of which each term runs over the samples of all ranks that hold both sides; and
pairs of one patient, or of one text, that are no negatives of each other: a patient's X-ray meets several ECGs, and
thousands of reports say that nothing was found.

Shape legend: n samples of this rank, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collimate import distributed
from collimate.distributed import Group
from collimate.losses import clip_loss
from collimate.losses.negatives import Distinct

TEMPERATURE = 0.02  # pretrain_multimodel.py


class AnchoredLosses(NamedTuple):
    """L_tx, L_te and, where it was asked for, L_xe; MoRE's loss is the sum of the first two."""

    text_xray: Float[Tensor, ""]
    text_ecg: Float[Tensor, ""]
    xray_ecg: Float[Tensor, ""] | None = None


def anchored_losses(
    text: Float[Tensor, "n D"],
    xray: Float[Tensor, "n D"],
    ecg: Float[Tensor, "n D"],
    logit_scale: Float[Tensor, ""] | float = 1 / TEMPERATURE,
    *,
    xray_given: Bool[Tensor, " n"] | None = None,
    ecg_given: Bool[Tensor, " n"] | None = None,
    patient_ids: Int[Tensor, " n"] | None = None,
    text_ids: Int[Tensor, " n"] | None = None,
    xray_ecg: bool = False,
    group: Group = None,
) -> AnchoredLosses:
    """The contrasts of a batch of patients' reports, X-rays and ECGs; row i is one patient's.

    Args:
        text, xray, ecg: this rank's features, any floating dtype, normalised inside.
        logit_scale: 1/τ, not its logarithm.
        xray_given, ecg_given: whether each sample has the modality; what stands in the rows of others is not looked
            at. None where all have it, on all ranks.
        patient_ids: samples of equal number, on any rank, are no negatives of each other; None leaves them.
        text_ids: the same for equal reports (`collimate.losses.negatives.text_ids`); in all terms, as what is said of
            two patients in the same words tells neither from the other.
        xray_ecg: whether X-rays and ECGs are contrasted too.
        group: the ranks that contrast with each other.

    Returns:
        each term the mean over the samples of all ranks that hold both of its sides, float32 (float64 for float64
        features); 0, with gradients of 0, where fewer than two do.
    """
    given = [each for each in (xray_given, ecg_given) if each is not None]
    both = torch.stack(given).all(0) if given else None

    def contrast(query: Tensor, key: Tensor, given: Tensor | None) -> Tensor:
        rows = slice(None) if given is None else given
        patients, texts = (None if ids is None else ids[rows] for ids in (patient_ids, text_ids))
        return clip_loss(
            query[rows], key[rows], logit_scale, ids=patients, mask=_of_other_text(texts, group), group=group
        )

    return AnchoredLosses(
        contrast(text, xray, xray_given),
        contrast(text, ecg, ecg_given),
        contrast(xray, ecg, both) if xray_ecg else None,
    )


def _of_other_text(ids: Tensor | None, group: Group) -> Distinct | None:
    """Pairs of equal text are left out of the negatives, but for a sample and itself."""
    if ids is None:
        return None
    counts = distributed.row_counts(ids, group)
    return Distinct(ids, distributed.gather(ids, group, counts), distributed.own(counts, group).start)
