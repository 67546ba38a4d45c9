"""By how much detectors miss the heading of what they find.

Shape legend: M objects that were found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from collimate_3d.boxes import heading_difference
from collimate_3d.lidar.objects import Objects
from collimate_3d.rotated_iou import bev_iou


def heading_errors(
    truths: Sequence[Objects], detections: Sequence[Objects], name: str, min_overlap: float = 0.3
) -> Float[np.ndarray, " M"]:
    """Degrees, from 0 to 180, between each labelled object of a class and the detection that overlaps it most.

    Objects that no detection of the class overlaps by more than the least, seen from above, are left out; how many
    there are is what AP measures.

    Args:
        truths, detections: of each frame, in one order.

    Raises:
        ValueError: unequal numbers of frames.
    """
    errors = [np.zeros(0)]
    for truth, found in zip(truths, detections, strict=True):
        one, other = (torch.from_numpy(objects.named(name).boxes) for objects in (truth, found))
        if len(one) and len(other):
            overlap, place = bev_iou(one, other).max(1)
            error = torch.rad2deg(heading_difference(one[:, 6], other[place, 6]))
            errors.append(error[overlap > min_overlap].numpy())
    return np.concatenate(errors)
