"""PointContrast on sweeps: points of two views of a sweep, told apart from all others.

Xie, Gu, Guo, Qi, Guibas, Litany 2020, PointContrast, ECCV, arXiv 2007.10985; the losses are `point_info_nce` and
`hardest_contrastive_losses` of `collimate_3d.losses`.

Departures: the published work pairs two partial scans of a room by the distance of their points, and trains a U-Net at
full resolution. Here both views are transforms of one sweep, so that a point is its own match, and the network is the
backbone of a detector, as in what E-SSL3D (arXiv 2404.11737) compares itself with: points are read at their voxel of
one of its levels, through Linear, batch norm, ReLU, Linear.

Shape legend: B sweeps, K pairs of a sweep, E embedding.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from collimate.distributed import LOCAL
from collimate.losses.composition import composed
from collimate_3d.lidar.processing import SweepProcessor
from collimate_3d.losses import hardest_contrastive_losses, point_info_nce
from collimate_3d.pretraining.base import TwoViews
from collimate_3d.pretraining.parts import Level, rows_of, shared_points
from collimate_3d.voxel_encoder import VoxelEncoder


@composed(
    similarity="cosine of points",
    targets="the same point in the other view",
    negatives="other points drawn, or the hardest",
)
class PointContrast(TwoViews):
    """PointContrast: points that two views of a sweep show; see the module.

    A batch holds `lidar` and `lidar_view`, two draws of the augmentation of one sweep (`SweepView`).

    Args:
        encoder: the backbone.
        sweep_processor: how sweeps become inputs.
        embed_dim: E; 32 as published.
        projector_width: hidden width.
        point_level: of the backbone, at which points are read. Layers behind it learn nothing: on several devices, say
            `trainer.strategy: ddp_find_unused_parameters_true` for any but `out`.
        pairs: K; 4096 of a batch as published.
        loss: `nce`, or `hardest` with the published margins.
        temperature: τ of `nce`.
        gather: contrast with the points of all ranks (`nce` only); each rank contrasts its own, as published,
            otherwise.

    Raises:
        ValueError: the hardest negatives are to be sought on all ranks.
    """

    def __init__(
        self,
        encoder: VoxelEncoder,
        sweep_processor: SweepProcessor,
        embed_dim: int = 32,
        projector_width: int = 256,
        point_level: Level = "out",
        pairs: int = 2048,
        loss: Literal["nce", "hardest"] = "nce",
        temperature: float = 0.07,
        gather: bool = False,
    ) -> None:
        if gather and loss == "hardest":
            raise ValueError("The hardest negatives are sought among the points of a rank: set gather to false.")
        super().__init__(encoder, sweep_processor, embed_dim, projector_width, point_level)
        self.pairs, self.loss, self.temperature, self.gather = pairs, loss, temperature, gather

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        points, levels, (first, second) = self.both(batch)
        drawn = shared_points(self.encoder, points, levels, self.point_level, self.pairs)
        return {
            "first": rows_of(first, drawn.first),
            "second": rows_of(second, drawn.second),
            "paired": drawn.given,
        }

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        given = embeddings["paired"]
        first, second = embeddings["first"][given], embeddings["second"][given]
        places = torch.arange(len(first), device=first.device)
        pairs = places[:, None].expand(-1, 2)
        if self.loss == "hardest":
            found = hardest_contrastive_losses(normalize(first, dim=1), normalize(second, dim=1), pairs, places, places)
            return {"positive": found.positive, "negative": found.negative}
        group = None if self.gather else LOCAL
        return {"contrast": point_info_nce(first, second, pairs, self.temperature, group=group)}
