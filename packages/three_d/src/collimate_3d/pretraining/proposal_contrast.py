"""ProposalContrast on sweeps: regions of a sweep, the same in two views of it.

Yin, Zhou, Zhang, Fang, Xu, Shen, Wang 2022, ProposalContrast, ECCV, arXiv 2207.12654; the losses and the attention are
those of `collimate_3d.losses`: L = L_ins + 0.005 L_clu (the weights are `optimization.loss_weights`).

Proposals are points far from one another as seen from above, among those that both views show, with up to 16 points
within a metre of each. Departures: points are read at their voxel of a level of a detector's backbone, through Linear,
batch norm, ReLU, Linear, where the published work reads the map from above; and the ground is not left out first.

Shape legend: B sweeps, S proposals of a sweep, K points about one, E embedding, P points of all sweeps.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.training.optimization import Optimization
from collimate_3d.lidar.processing import SweepProcessor
from collimate_3d.losses import ProposalEncoding, proposal_cluster_loss, proposal_instance_loss
from collimate_3d.losses.proposal_contrast import CLUSTER_WEIGHT
from collimate_3d.operators import ball_query, farthest_points
from collimate_3d.points import PointBatch
from collimate_3d.pretraining.base import TwoViews
from collimate_3d.pretraining.parts import Level, voxels_of_views
from collimate_3d.voxel_encoder import VoxelEncoder


class ProposalContrast(TwoViews):
    """ProposalContrast: regions that two views of a sweep show; see the module.

    A batch holds `lidar` and `lidar_view`, two draws of the augmentation of one sweep (`SweepView`).

    Args:
        encoder: the backbone.
        sweep_processor: how sweeps become inputs.
        embed_dim: E.
        projector_width: hidden width.
        point_level: of the backbone, at which points are read.
        proposals: S; 2048 as published.
        neighbours: K.
        radius: metres around a proposal.
        prototypes: of the clusters.
        temperature: of both losses.
    """

    def __init__(
        self,
        encoder: VoxelEncoder,
        sweep_processor: SweepProcessor,
        embed_dim: int = 128,
        projector_width: int = 256,
        point_level: Level = "out",
        proposals: int = 2048,
        neighbours: int = 16,
        radius: float = 1.0,
        prototypes: int = 128,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(encoder, sweep_processor, embed_dim, projector_width, point_level)
        self.attention = ProposalEncoding(embed_dim)
        self.prototypes = nn.Linear(embed_dim, prototypes, bias=False)
        self.proposals, self.neighbours, self.radius = proposals, neighbours, radius
        self.temperature = temperature
        self.optimization = Optimization(loss_weights={"cluster": CLUSTER_WEIGHT})

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        points, levels, features = self.both(batch)
        voxels = voxels_of_views(self.encoder, points, levels, self.point_level)
        shared = (voxels[0] >= 0) & (voxels[1] >= 0)
        size = points[0].batch_size
        regions = features[0].new_zeros(size, self.proposals, 2, features[0].shape[1])
        given = torch.zeros(size, self.proposals, dtype=torch.bool, device=shared.device)
        for sweep in range(size):
            rows = (shared & (points[0].cloud == sweep)).nonzero().flatten()
            chosen = self._chosen(points[0], rows)
            given[sweep, : len(chosen)] = True
            for view in (0, 1):
                own = self._regions(points[view], rows, chosen, voxels[view], features[view])
                regions[sweep, : len(chosen), view] = own
        regions = regions + sum(each.sum() for each in features) * 0  # a graph, also of no proposal
        return {"regions": regions, "given": given}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        regions = embeddings["regions"][embeddings["given"]]
        weights = normalize(self.prototypes.weight, dim=1)
        first, second = (normalize(regions, dim=-1) @ weights.T).unbind(1)
        return {
            "instance": proposal_instance_loss(regions, self.temperature),
            "cluster": proposal_cluster_loss(first, second, self.temperature),
        }

    def _chosen(self, points: PointBatch, rows: Int64[Tensor, " R"]) -> Int64[Tensor, " S"]:
        """Which of the rows are proposals."""
        if not len(rows):
            return rows
        flat = points.xyz[rows].clone()
        flat[:, 2] = 0
        start = int(torch.randint(len(rows), ()))
        chosen = farthest_points(flat[None], min(self.proposals, len(rows)), start)[0]
        return rows[chosen.unique()]  # of fewer places than proposals some would be given twice

    def _regions(
        self,
        points: PointBatch,
        rows: Int64[Tensor, " R"],
        chosen: Int64[Tensor, " S"],
        voxels: Int64[Tensor, " P"],
        features: Float[Tensor, "V E"],
    ) -> Float[Tensor, "S E"]:
        """The embedding of each proposal in one view."""
        if not len(chosen):
            return features[:0]
        near = ball_query(
            points.xyz[rows][None], points.xyz[chosen][None], self.radius, self.neighbours, inclusive=True
        )
        about = rows[near.index[0]]
        return self.attention(features[voxels[chosen]], points.xyz[chosen], features[voxels[about]], points.xyz[about])
