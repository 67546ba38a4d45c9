"""MERL's losses: ECGs with their reports, and ECGs with themselves.

Liu et al. 2024, Zero-shot ECG classification with multimodal learning and test-time clinical knowledge enhancement,
arXiv 2403.06659, section 3; cheliu-computation/MERL-ICML2024. With CE(a, b) the mean cross-entropy of the cosines of
a with b over τ, pair i being (a_i, b_i),

    L_CMA = CE(e, t) + CE(t, e)           e the projected ECGs, t the projected reports,
    L_UMA = CE(z, z') + CE(z', z)         z and z' two views of the pooled ECG, each a matrix behind a dropout,
    L = L_CMA + L_UMA,                    τ = 0.07, which does not learn.

The directions are added, not averaged. Departure: samples of other ranks are gathered with their gradient, which the
released code cuts.

Shape legend: n samples of this rank, D joint width, E width of the ECG tower.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from collimate.distributed import Group
from collimate.losses import clip_loss

TEMPERATURE = 0.07  # utils/utils_loss.py
DROPOUT = 0.1  # section 3.2


class MerlLosses(NamedTuple):
    """L_CMA and L_UMA; MERL's loss is their sum."""

    cross_modal: Float[Tensor, ""]
    uni_modal: Float[Tensor, ""]


def merl_losses(
    ecg: Float[Tensor, "n D"],
    report: Float[Tensor, "n D"],
    view: Float[Tensor, "n E"],
    other_view: Float[Tensor, "n E"],
    logit_scale: Float[Tensor, ""] | float = 1 / TEMPERATURE,
    group: Group = None,
) -> MerlLosses:
    """Both contrasts of a batch.

    Args:
        ecg, report: this rank's projected features, any floating dtype, normalised inside.
        view, other_view: what `DropoutViews` makes of the pooled ECGs.
        logit_scale: 1/τ, not its logarithm.
        group: the ranks that contrast with each other.
    """
    return MerlLosses(
        2 * clip_loss(ecg, report, logit_scale, group=group), 2 * clip_loss(view, other_view, logit_scale, group=group)
    )


class DropoutViews(nn.Module):
    """Two views of a vector: two matrices, each followed by a dropout of its own.

    Args:
        width: E.
        dropout: the share that is dropped in training.
    """

    def __init__(self, width: int, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: Float[Tensor, "n E"]) -> tuple[Float[Tensor, "n E"], Float[Tensor, "n E"]]:
        return self.dropout(self.linear1(pooled)), self.dropout(self.linear2(pooled))
