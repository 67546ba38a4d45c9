"""Of boxes that overlap, the surest.

Shape legend: M boxes, K that are kept.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from collimate_3d.rotated_iou import bev_iou


@torch.no_grad()
def rotated_nms(boxes: Float[Tensor, "M 7"], scores: Float[Tensor, " M"], overlap: float) -> Int64[Tensor, " K"]:
    """The places of the boxes that are kept, the surest first; each leaves out those that overlap it by more.

    Args:
        overlap: IoU of footprints, exact.
    """
    order = scores.argsort(descending=True, stable=True)
    covers = (bev_iou(boxes[order], boxes[order]) > overlap).cpu().triu(1)
    kept = torch.ones(len(order), dtype=torch.bool)
    for place in range(len(order)):
        if kept[place]:
            kept &= ~covers[place]
    return order[kept.to(order.device)]
