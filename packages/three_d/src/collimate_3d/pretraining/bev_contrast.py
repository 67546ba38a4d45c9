"""BEVContrast: places of a map from above that two sweeps, taken one after the other, both see.

Sautier, Puy, Boulch, Marlet, Lepetit 2024, BEVContrast, 3DV, arXiv 2310.17281; the loss is
`collimate_3d.losses.bev_contrast_loss`, of at most 4096 cells at τ = 0.07. Voxels get a linear layer, and cells the
mean of their voxels. Needs the poses of both sweeps, and no flow.

The published code pre-trains the backbones of its own tasks; here it is the backbone of the detector that is to be
fine-tuned, with its range and voxels. Each sweep has its own transform, which the warp takes into account.

Shape legend: B pairs of sweeps, C values of a point, E embedding, H W rows and columns of the map.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.distributed import LOCAL
from collimate.losses.composition import composed
from collimate_3d.lidar.bev import collapse_to_map
from collimate_3d.lidar.processing import SweepProcessor, unpacked_sweeps
from collimate_3d.losses import bev_contrast_loss
from collimate_3d.pretraining.base import SweepMethod
from collimate_3d.pretraining.parts import occupied_cells
from collimate_3d.voxel_encoder import VoxelEncoder


@composed(
    similarity="cosine of cells",
    targets="the same cell a sweep later",
    negatives="other cells drawn",
)
class BEVContrast(SweepMethod):
    """BEVContrast: places that two sweeps both see; see the module.

    A batch holds `lidar` and `previous_sweep`.

    Args:
        encoder: the backbone.
        sweep_processor: how sweeps become inputs.
        embed_dim: E.
        max_cells: that are contrasted, of all pairs of sweeps of a rank.
        temperature: τ.
        gather: contrast with the cells of all ranks; each rank contrasts its own, as published, otherwise.
    """

    def __init__(
        self,
        encoder: VoxelEncoder,
        sweep_processor: SweepProcessor,
        embed_dim: int = 256,
        max_cells: int = 4096,
        temperature: float = 0.07,
        gather: bool = False,
    ) -> None:
        super().__init__(encoder, sweep_processor)
        self.processors["previous_sweep"] = PreviousProcessor.like(sweep_processor)
        self.projector = nn.Linear(encoder.backbone_3d.out_width, embed_dim)
        self.max_cells, self.temperature, self.gather = max_cells, temperature, gather

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        now, now_cells = self._map(batch["lidar"])
        before, before_cells = self._map(batch["previous_sweep"])
        return {"now": now, "now_cells": now_cells, "before": before, "before_cells": before_cells}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        now, before = (unpacked_sweeps(batch[key]) for key in ("lidar", "previous_sweep"))
        motions = now.motion_to(before)
        moved = [
            mine.motion(motion.cpu(), theirs)
            for mine, motion, theirs in zip(now.transforms, motions, before.transforms, strict=True)
        ]
        loss = bev_contrast_loss(
            embeddings["before"],
            embeddings["now"],
            torch.stack(moved).to(motions.device),
            self.encoder.bev,
            self.temperature,
            self.max_cells,
            (embeddings["before_cells"], embeddings["now_cells"]),
            None if self.gather else LOCAL,
        )
        return {"contrast": loss}

    def _map(self, inputs: Float[Tensor, "B N C"]) -> tuple[Float[Tensor, "B E H W"], Tensor]:
        voxels = self.encoder.levels(self.encoder.batch(unpacked_sweeps(inputs).points)).out
        cloud, _, y, x = voxels.coords.long().unbind(1)
        features = self.projector(voxels.features)
        cells = torch.stack([cloud, y, x], 1)
        return collapse_to_map(features, cells, voxels.batch_size, voxels.shape[1:]), occupied_cells(voxels)


class PreviousProcessor(SweepProcessor):
    """The sweep before, without its flow. Arguments as of `SweepProcessor`."""

    modality = "previous_sweep"

    @classmethod
    def like(cls, other: SweepProcessor) -> PreviousProcessor:
        """With the same arguments."""
        return cls(other.points, other.channels)

    def example(self) -> None:
        return None
