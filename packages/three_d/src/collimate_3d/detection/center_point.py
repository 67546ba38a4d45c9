"""CenterPoint: a detector that finds objects as peaks of a map from above.

Yin, Zhou, Krähenbühl 2021, arXiv 2006.11275, its first stage; see `collimate_3d.detection.center_head`. The encoder is
SECOND's (`BEVEncoder` over a `VoxelEncoder`) or PointPillars'. What a run of pre-training taught its backbone comes in
by `pretrained`.

    L = L_heat + 2 L_box          (the weights are `optimization.loss_weights`)

Departures: all classes share one head, as classes are few and do not conflict on KITTI; there is no velocity, and no
second stage; which boxes overlap is told by their exact overlap.

Shape legend: B sweeps, N rows of stacked points, C values of a point, K classes, H W rows and columns of the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate import distributed
from collimate.encoding import Encoding
from collimate.evaluation.result import Result
from collimate.training import Method
from collimate.training.optimization import Optimization
from collimate_3d.bev import bev_map
from collimate_3d.detection.center_head import (
    CenterHead,
    Detections,
    Targets,
    box_loss,
    center_targets,
    decoded,
    heat_loss,
)
from collimate_3d.detection.weights import fill_backbone
from collimate_3d.grid import BEVGrid
from collimate_3d.lidar.kitti_ap import CLASSES, DIFFICULTIES, EVERYTHING, kitti_ap
from collimate_3d.lidar.objects import OBJECTS, Objects
from collimate_3d.lidar.processing import SweepProcessor, unpacked_sweeps
from collimate_3d.norms import SLOW, set_norm_momentum
from collimate_3d.voxel_encoder import BEVEncoder


class CenterPoint(Method):
    """CenterPoint: a detector of objects as peaks of a map from above; see the module.

    A batch holds `lidar` and, as lists, the objects of each sweep. The augmentation of sweeps is `SweepView`; boxes
    follow it. Validation logs KITTI's average precision over 40 recalls, from above and in space, of each class.

    Args:
        encoder: sweeps to a map.
        sweep_processor: how sweeps become inputs.
        classes: names of what is found. Objects of other classes are not taught, and ignored in evaluation where KITTI
            does so.
        head_width: of the head's convolutions.
        least_score: of what is found.
        most: objects of each sweep, before overlapping ones are left out.
        overlap: IoU from above that two boxes of a class may have.
        norm_momentum: at which averages of the encoder's batch norms follow; short runs need more than OpenPCDet's.
        pretrained: a run of pre-training, whose backbone this one begins with: a model folder, a .ckpt, or a checkpoint
            of OpenPCDet's SECOND (.pth), with `backbone_3d` in it.
    """

    modalities = ("lidar",)
    also = (OBJECTS,)

    def __init__(
        self,
        encoder: BEVEncoder,
        sweep_processor: SweepProcessor,
        classes: Sequence[str] = CLASSES,
        head_width: int = 64,
        least_score: float = 0.1,
        most: int = 100,
        overlap: float = 0.1,
        norm_momentum: float = SLOW,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        self.processors = {"lidar": sweep_processor}
        self.encoders = nn.ModuleDict({"lidar": encoder})
        self.classes = tuple(classes)
        self.head = CenterHead(encoder.width, len(self.classes), head_width)
        self.least_score, self.most, self.overlap = least_score, most, overlap
        set_norm_momentum(encoder, norm_momentum)
        if pretrained is not None:
            fill_backbone(encoder.lift, pretrained)
        self.optimization = Optimization(loss_weights={"box": 2.0})
        self._validated: list[tuple[int, Objects, Objects]] = []

    @property
    def bev(self) -> BEVGrid:
        """Where the cells of the map lie."""
        return self.encoders["lidar"].bev  # type: ignore[return-value]

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        heat, boxes = self.head(bev_map(self.encode("lidar", batch["lidar"])))
        return {"heat": heat, "boxes": boxes}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        targets = self.targets(batch)
        self.statistics = {"objects": torch.tensor(float(len(targets.cells)))}
        return {"heat": heat_loss(embeddings["heat"], targets), "box": box_loss(embeddings["boxes"], targets)}

    def targets(self, batch: dict[str, Any]) -> Targets:
        """What the maps of a batch should be."""
        device = batch["lidar"].device
        boxes, classes = [], []
        for entries, transform in zip(batch[OBJECTS], unpacked_sweeps(batch["lidar"]).transforms, strict=True):
            objects = Objects.from_json(entries).named(*self.classes)
            own = transform.boxes(torch.from_numpy(objects.boxes))
            boxes.append(own.float().to(device))
            classes.append(
                torch.tensor([self.classes.index(name) for name in objects.names], dtype=torch.int64, device=device)
            )
        return center_targets(boxes, classes, self.bev, len(self.classes))

    @torch.no_grad()
    def detect(self, inputs: Float[Tensor, "B N C"] | Sequence[Any]) -> list[Objects]:
        """What is in sweeps, in the frame in which each was before any transform.

        Args:
            inputs: sweeps as the processor stacks them, or raw ones.
        """
        stacked = inputs if isinstance(inputs, Tensor) else self.processors["lidar"].batch(inputs)
        embeddings = self.embed({"lidar": stacked})
        return self._objects(embeddings, stacked)

    def _objects(self, embeddings: dict[str, Tensor], stacked: Tensor) -> list[Objects]:
        found = decoded(embeddings["heat"], embeddings["boxes"], self.bev, self.least_score, self.most, self.overlap)
        transforms = unpacked_sweeps(stacked).transforms
        return [
            self._named(each, transform.inverse_boxes(each.boxes.double().cpu()).numpy())
            for each, transform in zip(found, transforms, strict=True)
        ]

    def _named(self, found: Detections, boxes: Float[np.ndarray, "M 7"]) -> Objects:
        names = tuple(self.classes[number] for number in found.classes.tolist())
        return Objects(names, boxes, scores=found.scores.double().cpu().numpy())

    # Validation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        embeddings = self._embeddings(batch)
        found = self._objects(embeddings, batch["lidar"])
        rows = zip(batch["index"].tolist(), batch[OBJECTS], found, batch["valid"].tolist(), strict=True)
        self._validated += [(place, Objects.from_json(truth), own) for place, truth, own, valid in rows if valid]
        return {"embeddings": embeddings}

    def on_validation_epoch_end(self) -> None:
        every = {
            place: (truth, own) for part in distributed.gather_objects(self._validated) for place, truth, own in part
        }
        self._validated.clear()
        if not every:
            return
        truths, found = zip(*(every[place] for place in sorted(every)), strict=True)
        metrics = average_precisions(truths, found, self.classes).metrics
        logged = {f"val/{name.replace(' ', '_')}": value for name, value in metrics.items()}
        self.log_dict(logged, sync_dist=False)


def average_precisions(
    truths: Sequence[Objects],
    found: Sequence[Objects],
    classes: Sequence[str],
    overlaps: Mapping[str, float] | None = None,
) -> Result:
    """KITTI's average precision, at its three difficulties where labels know of them, else of everything.

    Args:
        truths, found: of each sweep.
        classes: that are judged.
        overlaps: class -> least IoU at which an object is found; KITTI's 0.7 for cars, 0.5 for all others unless given.
    """
    least = [(overlaps or {}).get(name, 0.7 if name == "Car" else 0.5) for name in classes]
    graded = any(objects.image_boxes is not None for objects in truths)
    pictured = graded and all(objects.image_boxes is not None for objects in (*truths, *found) if len(objects))
    metrics = ("bbox", "bev", "3d") if pictured else ("bev", "3d")
    return kitti_ap(truths, found, classes, dict.fromkeys(metrics, least), DIFFICULTIES if graded else EVERYTHING)
