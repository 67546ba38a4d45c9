"""Objects in sweeps and their names: what a frozen backbone says of a box, aligned with texts.

With r the mean of the backbone's voxels in an object's box and u the vector of its name, both projected, CLIP's loss of
r and u, where objects of one name are no negatives of each other. `zero-shot` and `retrieval` then serve objects in
sweeps as they serve pictures. No paper's method, but the contrast of regions and texts on the features of pre-training:
the smallest thing that tells what they know.

The sides of the box are not told, for they alone nearly tell the class.

Shape legend: B objects, N rows of stacked points, C values of a point, D width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from collimate.encoders import Encoder, Frozen
from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.losses.negatives import text_ids
from collimate.processing import Tokenizer
from collimate.training import Method
from collimate_3d.detection.weights import fill_backbone
from collimate_3d.lidar.object_source import LIDAR_OBJECT, SweepObject
from collimate_3d.lidar.processing import MARKED, SweepProcessor
from collimate_3d.operators.segments import segment_mean
from collimate_3d.points import PointBatch
from collimate_3d.pretraining.parts import STRIDES, Level, level_width
from collimate_3d.voxel_encoder import VoxelEncoder

BOX = 7  # rows behind a stacked sweep that hold a box, one number each


class ObjectProcessor(SweepProcessor):
    """An object of a sweep to one tensor: the sweep as `SweepProcessor` stacks it, its box in further rows of padding.

    Args:
        points: of the object and around it, at most.
        channels: as of `SweepProcessor`.
    """

    modality = LIDAR_OBJECT

    def __init__(self, points: int = 4096, channels: int = 4) -> None:
        super().__init__(points, channels)

    def __call__(self, raw: SweepObject) -> Float[Tensor, "N C"]:  # type: ignore[override]
        box = torch.full((BOX, self.channels), torch.nan)
        box[:, MARKED] = torch.from_numpy(np.asarray(raw.box, np.float32))
        return torch.cat([super().__call__(raw.sweep), box])

    def example(self) -> Any:
        return SweepObject(super().example(), np.array([20.0, 0.0, -1.0, 20.0, 20.0, 2.0, 0.3]))


class BoxEncoder(Encoder):
    """What a sparse backbone says of a box: the mean of its voxels there.

    A voxel counts where its centre lies in the box, seen from above, grown by a voxel on each side; objects have one at
    least, the nearest.

    Args:
        backbone: on voxels.
        level: of the backbone, from which voxels are read.
    """

    def __init__(self, backbone: VoxelEncoder, level: Level = "conv3") -> None:
        super().__init__()
        self.backbone = backbone
        self.level: Level = level
        self.width = level_width(backbone.backbone_3d, level)

    def forward(self, inputs: Float[Tensor, "B N C"], mask: Tensor | None = None) -> Encoding:
        """Encode objects as `ObjectProcessor` stacks them. Zeros for one without any point in range."""
        boxes = inputs[:, -BOX:, MARKED]
        levels = self.backbone.levels(PointBatch.of_padded(inputs[:, :-BOX]))
        voxels = getattr(levels, self.level)
        cloud, _, y, x = voxels.coords.long().unbind(1)
        low, cell = (boxes.new_tensor(each[:2]) for each in (self.backbone.grid.low, self.backbone.grid.cell))
        cell = cell * STRIDES[self.level]
        places = low + (torch.stack([x, y], 1) + 0.5) * cell
        inside, apart = _in_boxes(places, boxes[cloud], float(cell.max()))
        nearest = torch.full_like(boxes[:, 0], torch.inf).scatter_reduce(0, cloud, apart, "amin")
        chosen = inside | (apart == nearest[cloud])
        return Encoding(segment_mean(voxels.features, cloud.masked_fill(~chosen, -1), len(inputs)))


class ObjectText(Method):
    """Objects in sweeps and texts in one space; see the module.

    Args:
        object_encoder: of what lies in boxes. It is frozen.
        text_encoder: of names.
        object_processor: how objects become inputs.
        tokenizer: of names.
        embed_dim: of the joint space.
        init_logit_scale, max_logit_scale: of the multiplier of the cosines.
        pretrained: the run whose backbone is asked, as of `CenterPoint`.
    """

    modalities = (LIDAR_OBJECT, "text")

    def __init__(
        self,
        object_encoder: BoxEncoder,
        text_encoder: Encoder,
        object_processor: ObjectProcessor,
        tokenizer: Tokenizer,
        embed_dim: int = 64,
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        if pretrained is not None:
            fill_backbone(object_encoder.backbone, pretrained)
        self.processors = {LIDAR_OBJECT: object_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({LIDAR_OBJECT: Frozen(object_encoder), "text": text_encoder})
        width = object_encoder.width
        self.project = nn.ModuleDict(
            {  # a random backbone says little, in small numbers: no constant may drown them
                LIDAR_OBJECT: nn.Sequential(nn.LayerNorm(width, eps=1e-14), nn.Linear(width, embed_dim)),
                "text": nn.Linear(text_encoder.width, embed_dim),
            }
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))
        self.max_logit_scale = max_logit_scale

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        found = self.encoders[modality](inputs, None if modality == LIDAR_OBJECT else mask)
        return Encoding(self.project[modality](found.pooled))

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        scale, ids = self.logit_scale.exp(), text_ids(batch["text"])
        return {"contrast": clip_loss(embeddings[LIDAR_OBJECT], embeddings["text"], scale, ids=ids)}


def _in_boxes(
    places: Float[Tensor, "V 2"], boxes: Float[Tensor, "V 7"], margin: float
) -> tuple[Bool[Tensor, " V"], Float[Tensor, " V"]]:
    """Whether each place lies in its own box seen from above, and how far from its middle."""
    x, y = (places - boxes[:, :2]).unbind(1)
    cosine, sine = boxes[:, 6].cos(), boxes[:, 6].sin()
    local = torch.stack([x * cosine + y * sine, y * cosine - x * sine], 1)
    return (local.abs() <= boxes[:, 3:5] / 2 + margin).all(1), local.norm(dim=1)
