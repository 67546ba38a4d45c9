"""What the methods of pre-training on sweeps are built on: a backbone, and two views of each sweep."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from collimate.encoding import Encoding
from collimate.training import Method
from collimate_3d.lidar.processing import SweepProcessor, unpacked_sweeps
from collimate_3d.points import PointBatch
from collimate_3d.pretraining.parts import Level, level_width, pointwise
from collimate_3d.voxel_backbone import Levels
from collimate_3d.voxel_encoder import VoxelEncoder


class SweepMethod(Method):
    """A method that trains a backbone on sweeps.

    Args:
        encoder: the backbone.
        sweep_processor: how sweeps become inputs.
    """

    modalities = ("lidar",)
    shardable = False

    def __init__(self, encoder: VoxelEncoder, sweep_processor: SweepProcessor) -> None:
        super().__init__()
        self.processors = {"lidar": sweep_processor}
        self.encoders = nn.ModuleDict({"lidar": encoder})

    @property
    def encoder(self) -> VoxelEncoder:
        return self.encoders["lidar"]  # type: ignore[return-value]

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoder(inputs, mask)


class TwoViews(SweepMethod):
    """One that contrasts two draws of the augmentation of each sweep: `lidar` and `lidar_view` (`SweepView`).

    Args:
        encoder, sweep_processor: see `SweepMethod`.
        embed_dim: E.
        projector_width: hidden width of the head that reads voxels.
        point_level: of the backbone, at which points are read.
    """

    views = MappingProxyType({"lidar_view": "lidar"})

    def __init__(
        self,
        encoder: VoxelEncoder,
        sweep_processor: SweepProcessor,
        embed_dim: int,
        projector_width: int,
        point_level: Level,
    ) -> None:
        super().__init__(encoder, sweep_processor)
        self.projector = pointwise(level_width(encoder.backbone_3d, point_level), projector_width, embed_dim)
        self.point_level: Level = point_level

    def both(self, batch: dict[str, Any]) -> tuple[list[PointBatch], list[Levels], list[Tensor]]:
        """Of each view: its points, the levels of its map, and the embeddings of the voxels of one of them."""
        points = [self.encoder.batch(unpacked_sweeps(batch[key]).points) for key in ("lidar", "lidar_view")]
        levels = [self.encoder.levels(each) for each in points]
        return points, levels, [self.projector(getattr(each, self.point_level)).features for each in levels]
