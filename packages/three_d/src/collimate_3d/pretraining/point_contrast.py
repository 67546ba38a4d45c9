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

from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.distributed import LOCAL
from collimate.encoding import Encoding
from collimate.losses.composition import composed
from collimate.training import Method
from collimate_3d.lidar.processing import SweepProcessor, unpacked_sweeps
from collimate_3d.losses import hardest_contrastive_losses, point_info_nce
from collimate_3d.pretraining.parts import Level, level_width, pointwise, rows_of, shared_points
from collimate_3d.voxel_encoder import VoxelEncoder


@composed(
    similarity="cosine of points",
    targets="the same point in the other view",
    negatives="other points drawn, or the hardest",
)
class PointContrast(Method):
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

    modalities = ("lidar",)
    shardable = False
    views = MappingProxyType({"lidar_view": "lidar"})

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
        super().__init__()
        if gather and loss == "hardest":
            raise ValueError("The hardest negatives are sought among the points of a rank: set gather to false.")
        self.processors = {"lidar": sweep_processor}
        self.encoders = nn.ModuleDict({"lidar": encoder})
        self.projector = pointwise(level_width(encoder.backbone_3d, point_level), projector_width, embed_dim)
        self.point_level: Level = point_level
        self.pairs, self.loss, self.temperature, self.gather = pairs, loss, temperature, gather

    @property
    def encoder(self) -> VoxelEncoder:
        return self.encoders["lidar"]  # type: ignore[return-value]

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoder(inputs, mask)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        points = [self.encoder.batch(unpacked_sweeps(batch[key]).points) for key in ("lidar", "lidar_view")]
        levels = [self.encoder.levels(each) for each in points]
        drawn = shared_points(self.encoder, points, levels, self.point_level, self.pairs)
        first, second = (self.projector(getattr(each, self.point_level)).features for each in levels)
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
