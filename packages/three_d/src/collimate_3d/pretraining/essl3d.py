"""E-SSL3D: a backbone of LiDAR detectors that learns, without labels, how its features move with the scene.

Hegde, Lohit, Peng, Jones, Patel 2024, Equivariant Spatio-Temporal Self-Supervision for LiDAR Object Detection, ECCV,
arXiv 2404.11737. With online networks f (the backbone), m (projector), q (predictor), s (classifier of rotations) and
slow copies f', m',

    L = 0.01 L_pnce + 1 L_ce + 300 L_flow                    (the weights are `optimization.loss_weights`)

    contrast   L_pnce = - Σ_{(i,j) in P} log ( exp(x_i · x_j / τ) / Σ_{(., k) in P} exp(x_i · x_k / τ) ),
               x unit features m(f(T1 p)), m(f(T2 p)) of up to 2048 points that both views of a sweep show
    rotation   L_ce: s tells in which of 10 bins the angle of a view lies
    flow       L_flow = 1 / (H W) Σ_cells | z^ - y^ |²,  y = q(m(f(p_t))),  z = m'(f'(p_{t-1}) carried by its flow)

    ξ <- γ ξ + (1 - γ) θ after each step, from γ = 0.999 along BYOL's ramp.

Only f is transferred. No code was published. What the paper leaves open, or was not at hand, is a decision of this
project, an argument where another one could be meant:

- Widths of m, q, s; each of m and q is Linear, batch norm, ReLU, Linear on every voxel, s sees maximum and mean of f's
  voxels.
- τ, unit features, and who is a negative: the pairs of all sweeps of a rank (`negatives`), as in PointContrast's code.
  The sum runs over the pairs of a sweep, and the mean over sweeps, so that it does not grow with the batch.
- A point's feature is that of the voxel in which it lies; of points that share a voxel in either view one is taken, for
  the others would be false negatives.
- The angle is that by which a view was turned, and each of both views is asked; or that between them (`rotation`).
- y is of the first view, and the earlier sweep with its flow gets the same transform: one pass of f serves all
  objectives. The paper draws y from "the sweep".
- Cells that only one map fills are not compared, and count in H W.
- Features that meet in a voxel are averaged, point by point. The flow is whatever the data hold; the paper's is that of
  a trained network.
- Views are cropped to the encoder's range after the transform, so that the shape of a crop does not tell the angle.

Shape legend: B sweeps, N rows of stacked points, C values of a point, K pairs of a sweep, or bins of the angle, V
voxels, E embedding, H W rows and columns of the map.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate import distributed
from collimate.distributed import LOCAL
from collimate.losses.composition import composed
from collimate.losses.softmax import global_mean
from collimate.training import follow, momentum_copy
from collimate.training.optimization import Optimization
from collimate_3d.lidar.processing import FlowProcessor, StackedSweeps, SweepProcessor, unpacked_sweeps
from collimate_3d.lidar.transforms import Transform
from collimate_3d.losses import (
    flow_equivariance_loss,
    flow_warped,
    point_info_nce,
    rotation_class,
    rotation_classification_loss,
)
from collimate_3d.losses.equivariance import CONTRAST_WEIGHT, FLOW_WEIGHT, ROTATION_WEIGHT
from collimate_3d.norms import SLOW, set_norm_momentum
from collimate_3d.points import PointBatch
from collimate_3d.pretraining.base import SweepMethod
from collimate_3d.pretraining.parts import (
    Level,
    cells_at,
    level_width,
    occupied_cells,
    pointwise,
    ramped_momentum,
    rows_of,
    shared_points,
    voxels_of_points,
)
from collimate_3d.sparse import SparseVoxels, VoxelSites
from collimate_3d.voxel_backbone import Levels
from collimate_3d.voxel_encoder import VoxelEncoder


@composed(
    similarity="cosine of points",
    targets="the same point in the other view",
    negatives="other points drawn, of the sweep, the rank or all ranks",
)
class ESSL3D(SweepMethod):
    """E-SSL3D: contrast of views, classification of turns and agreement along the flow; see the module.

    A batch holds `lidar` and `lidar_view`, two draws of the augmentation of one sweep (`SweepView`, under
    `data.augmentations`), and `previous_sweep`, the sweep before with its flow.

    Args:
        encoder: f.
        sweep_processor: how sweeps become inputs.
        embed_dim: of m and q.
        projector_width, predictor_width, classifier_width: the hidden widths of m, q and s.
        pairs: K, points of each sweep that are contrasted.
        negatives: of a point: the others of its `sweep`, those of all sweeps of the `rank`, or of `all` ranks.
        temperature: τ. PointContrast's code has 0.07, its published model 0.4.
        reduction: the `sum` over the pairs of a sweep, as published; or the `mean` over pairs, whose weight is then K
            times as large.
        point_level: at which points are read: `out`, as published, or a finer one, which then has a projector of its
            own. At `out` a voxel is 0.4 m long on KITTI's grid, and a pedestrian one or two of them. What lies behind a
            finer level is not contrasted: in short runs its features fell together (effective rank 2 of 48, 5 with
            `out`), and detectors learned from them worse than from none.
        rotation: what is told: the angle of a view, `absolute`, or that between both, `relative`.
        rotation_classes: bins of the angle.
        largest_angle: radians, of the turn of a view; that of the augmentation.
        normalise: of L_flow: over the whole `grid`, as published, or over the cells that are `occupied` in both maps,
            whose weight is then 300 times their share.
        momentum: γ at the beginning.
        ramp: whether γ rises to 1 until the end of training, or stays.
        norm_momentum: at which averages of f's batch norms follow; short runs need more than OpenPCDet's.
    """

    views = MappingProxyType({"lidar_view": "lidar"})

    def __init__(
        self,
        encoder: VoxelEncoder,
        sweep_processor: SweepProcessor,
        embed_dim: int = 128,
        projector_width: int = 256,
        predictor_width: int = 256,
        classifier_width: int = 256,
        pairs: int = 2048,
        negatives: Literal["sweep", "rank", "all"] = "rank",
        temperature: float = 0.07,
        reduction: Literal["sum", "mean"] = "sum",
        point_level: Level = "out",
        rotation: Literal["absolute", "relative"] = "absolute",
        rotation_classes: int = 10,
        largest_angle: float = math.pi / 2,
        normalise: Literal["grid", "occupied"] = "grid",
        momentum: float = 0.999,
        ramp: bool = True,
        norm_momentum: float = SLOW,
    ) -> None:
        super().__init__(encoder, sweep_processor)
        set_norm_momentum(encoder, norm_momentum)
        width = encoder.backbone_3d.out_width
        self.processors["previous_sweep"] = FlowProcessor(sweep_processor.points, sweep_processor.channels)
        self.projector = pointwise(width, projector_width, embed_dim)
        self.predictor = pointwise(embed_dim, predictor_width, embed_dim)
        finer = None
        if point_level != "out":
            finer = pointwise(level_width(encoder.backbone_3d, point_level), projector_width, embed_dim)
        self.point_projector = finer
        seen = 1 if rotation == "absolute" else 2
        self.classifier = nn.Sequential(
            nn.Linear(2 * width * seen, classifier_width), nn.ReLU(), nn.Linear(classifier_width, rotation_classes)
        )
        self.slow = momentum_copy(nn.ModuleDict({"encoder": encoder, "projector": self.projector}))
        self.pairs, self.negatives, self.temperature = pairs, negatives, temperature
        self.reduction: Literal["sum", "mean"] = reduction
        self.point_level: Level = point_level
        self.rotation, self.largest_angle = rotation, largest_angle
        self.normalise: Literal["grid", "occupied"] = normalise
        self.momentum, self.ramp = momentum, ramp
        weights = {"contrast": CONTRAST_WEIGHT, "rotation": ROTATION_WEIGHT, "flow": FLOW_WEIGHT}
        self.optimization = Optimization(loss_weights=weights)

    # Training ---------------------------------------------------------------------------------------------

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = [unpacked_sweeps(batch[key]) for key in ("lidar", "lidar_view")]
        points = [PointBatch.of_padded(view.points) for view in views]
        first, second = (self.encoder.levels(each) for each in points)
        drawn = shared_points(self.encoder, points, (first, second), self.point_level, self.pairs)
        predicted = self.predictor(self.projector(first.out))
        warped = self._warped(unpacked_sweeps(batch["previous_sweep"]), views[0])
        return {
            "first": rows_of(self._point_features(first), drawn.first),
            "second": rows_of(self._point_features(second), drawn.second),
            "paired": drawn.given,
            "rotation": self._rotation_logits(first.out, second.out),
            "predicted": predicted.bev(),
            "predicted_cells": occupied_cells(predicted),
            "warped": warped.bev(),
            "warped_cells": occupied_cells(warped),
        }

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        angles, logits = self._angles(batch), embeddings["rotation"].flatten(0, 1)
        largest = self.largest_angle * (1 if self.rotation == "absolute" else 2)
        cells = embeddings["warped_cells"], embeddings["predicted_cells"]
        told = rotation_class(angles, logits.shape[1], largest)
        self.statistics = {
            "accuracy/rotation": (logits.detach().argmax(1) == told).float().mean(),
            "matched/points": embeddings["paired"].sum(1).float().mean(),
            "matched/cells": (cells[0] & cells[1]).sum((1, 2)).float().mean(),
        }
        return {
            "contrast": self._contrast(embeddings),
            "rotation": rotation_classification_loss(logits, angles, largest),
            "flow": flow_equivariance_loss(embeddings["warped"], embeddings["predicted"], self.normalise, cells),
        }

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        momentum = self.momentum
        if self.ramp and self._trainer is not None:
            momentum = ramped_momentum(momentum, self.global_step, int(self.trainer.estimated_stepping_batches))
        follow(self.slow, nn.ModuleDict({"encoder": self.encoder, "projector": self.projector}), momentum)

    def _point_features(self, levels: Levels) -> Float[Tensor, "V E"]:
        projector = self.projector if self.point_projector is None else self.point_projector
        return projector(getattr(levels, self.point_level)).features

    def _rotation_logits(self, first: SparseVoxels, second: SparseVoxels) -> Float[Tensor, "B views K"]:
        pooled = [torch.cat([view.maxima(), view.means()], 1) for view in (first, second)]
        if self.rotation == "relative":
            return self.classifier(torch.cat(pooled, 1))[:, None]
        return self.classifier(torch.stack(pooled, 1))

    @torch.no_grad()
    def _warped(self, previous: StackedSweeps, view: StackedSweeps) -> SparseVoxels:
        """z: the earlier sweep's features where its points will be, both as the view would have them."""
        channels = self.encoder.channels
        start = previous.points[..., :channels]
        flow = previous.points[..., channels:]
        stop = start[..., :3] + flow
        if not bool(previous.flow_includes_ego.all()):
            motion = previous.motion_to(view)
            still = start[..., :3].double() @ motion[:, :3, :3].mT + motion[:, None, :3, 3]
            stop = torch.where(previous.flow_includes_ego[:, None, None], stop, still.to(stop.dtype) + flow)
        encoder: Any = self.slow["encoder"]
        before = PointBatch.of_padded(_transformed(start, view.transforms))
        after = PointBatch.of_padded(_transformed(stop, view.transforms), start[..., :3].isfinite().all(-1))
        levels: Levels = encoder.levels(before)
        cells, inside = cells_at(after.xyz, encoder.grid, levels, "out")
        depth, height, width = levels.out.shape
        keys = ((after.cloud * depth + cells[:, 0]) * height + cells[:, 1]) * width + cells[:, 2]
        voxels = voxels_of_points(before, encoder.grid, levels, "out")
        found, carried = flow_warped(levels.out.features, voxels, keys.masked_fill(~inside, -1))
        sites = VoxelSites(found, levels.out.shape, before.batch_size)
        return self.slow["projector"](SparseVoxels(carried, sites))

    def _angles(self, batch: dict[str, Any]) -> Float[Tensor, " views"]:
        """Radians, in the order of the logits."""
        first, second = (
            torch.tensor([each.angle for each in unpacked_sweeps(batch[key]).transforms])
            for key in ("lidar", "lidar_view")
        )
        angles = torch.stack([first, second], 1).flatten() if self.rotation == "absolute" else second - first
        return angles.to(batch["lidar"].device)

    def _contrast(self, embeddings: dict[str, Tensor]) -> Float[Tensor, ""]:
        first, second, given = (embeddings[name] for name in ("first", "second", "paired"))
        if self.negatives == "sweep":
            terms = [
                self._info_nce(one[real], other[real]) for one, other, real in zip(first, second, given, strict=True)
            ]
            return global_mean(torch.stack(terms), None, None)
        loss = self._info_nce(first[given], second[given])
        if self.reduction == "sum":
            loss = loss * distributed.global_share(distributed.row_counts(first))
        return loss

    def _info_nce(self, first: Float[Tensor, "n E"], second: Float[Tensor, "n E"]) -> Float[Tensor, ""]:
        places = torch.arange(len(first), device=first.device)[:, None].expand(-1, 2)
        group = None if self.negatives == "all" else LOCAL
        return point_info_nce(first, second, places, self.temperature, reduction=self.reduction, group=group)


def _transformed(points: Float[Tensor, "B N C"], transforms: list[Transform]) -> Float[Tensor, "B N C"]:
    return torch.stack([transform.points(each) for transform, each in zip(transforms, points, strict=True)])
