"""MERL: ECGs with their reports, and ECGs with themselves.

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

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from collimate.distributed import Group
from collimate.encoders import Encoder, MLPProjection, Projection, projections_for
from collimate.losses import clip_loss
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method

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


@composed(
    similarity="cosine",
    targets="own report; own view under other dropout",
    negatives="all others of all ranks",
)
class MERL(Method):
    """An ECG tower that learns from reports.

    The text tower is frozen in the paper: wrap it in `collimate.encoders.Frozen`. A batch holds `ecg` and `text`.

    Args:
        ecg_encoder: the ECG tower; a ResNet-18 of one dimension, or a small transformer, in the paper.
        text_encoder: the text tower; MedCPT's query encoder in the paper.
        ecg_processor: how ECGs become the ECG tower's input.
        tokenizer: how reports become the text tower's input.
        embed_dim: D.
        dropout: the share that each view drops.
        logit_scale: 1/τ, which does not learn.
        text_projection: the text tower's vectors into the joint space; two layers if None.
    """

    modalities = ("ecg", "text")

    def __init__(
        self,
        ecg_encoder: Encoder,
        text_encoder: Encoder,
        ecg_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 256,
        dropout: float = DROPOUT,
        logit_scale: float = 1 / TEMPERATURE,
        text_projection: Projection | None = None,
    ) -> None:
        super().__init__()
        self.processors = {"ecg": ecg_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"ecg": ecg_encoder, "text": text_encoder})
        self.projections = projections_for(
            self.encoders,
            embed_dim,
            ecg=MLPProjection(ecg_encoder.width, embed_dim),
            text=text_projection or MLPProjection(text_encoder.width, embed_dim),
        )
        self.dropout_views = DropoutViews(ecg_encoder.width, dropout)
        self.logit_scale = logit_scale

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The projected vectors of both, and the views of the ECGs before their projection."""
        ecg = self.encoders["ecg"](self.processors["ecg"].finish(batch["ecg"].to(self.device)))
        projection: Any = self.projections["ecg"]
        view, other_view = self.dropout_views(ecg.pooled)
        return {
            "ecg": projection.project(ecg).pooled,
            "text": self.encode("text", batch["text"]).pooled,
            "view": view,
            "other_view": other_view,
        }

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        ecg, text, view, other_view = (embeddings[name] for name in ("ecg", "text", "view", "other_view"))
        return dict(merl_losses(ecg, text, view, other_view, self.logit_scale)._asdict())
