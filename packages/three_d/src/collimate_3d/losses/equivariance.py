"""E-SSL3D's equivariances to time and to rotation (Hegde et al. 2024, arXiv 2404.11737, section 3), as functions.

Time. Features h of a sweep's voxels are carried by its scene flow d into the voxels where their points will be, and the
map z made of them is compared with the map y of the next sweep, channel vectors brought to unit length in each cell:

    L_flow = 1 / (H W) Σ_cells | z^ - y^ |².

Rotation. The range of angles is cut into bins, and a classifier names the bin of the angle a view was turned by.

The paper gives neither which cells are compared nor how colliding voxels are joined. Ours: cells that are occupied in
both maps, and means. Its weights are 300 for L_flow, 1 for the classification, 0.01 for the contrast
(`point_info_nce`, summed).

Shape legend: B sweeps, C channels, H rows, W columns, V voxels, N points, K classes.
"""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from collimate.distributed import Group
from collimate.losses.softmax import global_mean
from collimate_3d.lidar.bev import occupied
from collimate_3d.operators.segments import segment_mean

FLOW_WEIGHT, ROTATION_WEIGHT, CONTRAST_WEIGHT = 300.0, 1.0, 0.01  # section 3: the weights of the sum


def flow_equivariance_loss(
    warped: Float[Tensor, "B C H W"],
    predicted: Float[Tensor, "B C H W"],
    normalise: Literal["grid", "occupied"] = "grid",
    occupancies: tuple[Bool[Tensor, "B H W"], Bool[Tensor, "B H W"]] | None = None,
    group: Group = None,
) -> Float[Tensor, ""]:
    """L_flow, the mean over the sweeps of all ranks; 0, with a graph, where the maps share no cell.

    Args:
        warped: z of the target networks; no gradient goes there.
        predicted: y.
        normalise: over all H W cells, as published, so that a sparser sweep counts less; or over those compared, which
            does not depend on the range: its weight is then 300 times the share of cells that are.
        occupancies: of both maps, where a cell with something in it may be zero.
    """
    of_warped, of_predicted = occupancies or (occupied(warped), occupied(predicted))
    both = of_warped & of_predicted
    apart = (normalize(warped.detach(), dim=1) - normalize(predicted, dim=1)).square().sum(1)
    summed = apart.masked_fill(~both, 0.0).sum((1, 2))
    cells = both.sum((1, 2)).clamp_min(1) if normalise == "occupied" else both.shape[1] * both.shape[2]
    return global_mean(summed / cells, None, group)


def flow_warped(
    features: Float[Tensor, "V C"], voxels: Int[Tensor, " N"], targets: Int[Tensor, " N"]
) -> tuple[Int64[Tensor, " U"], Float[Tensor, "U C"]]:
    """Features carried by points into other voxels; what comes to lie in one voxel is averaged, point by point.

    Args:
        features: h.
        voxels: of which voxel each point takes the feature; below 0 for none.
        targets: the number of the cell in which each point will be; below 0 beyond the range.

    Returns:
        the cells that get something, by rising number, and their features.
    """
    carried = (voxels >= 0) & (targets >= 0)
    cells, place = targets[carried].long().unique(return_inverse=True)
    return cells, segment_mean(features[voxels[carried].long()], place, len(cells))


def rotation_class(
    angle: Float[Tensor, "*some"], classes: int = 10, largest: float = math.pi / 2
) -> Int64[Tensor, "*some"]:
    """The bin of each angle among `classes` of equal width from -largest to largest.

    Bins hold their lower end, and the last one its upper end too. For the angle between two views, pass their
    difference and twice the range.

    Raises:
        ValueError: an angle lies beyond the range.
    """
    if bool((angle.abs() > largest * (1 + 1e-6)).any()):
        raise ValueError(f"Angles go up to {float(angle.abs().max()):.4g}, the classes to {largest:.4g} radians.")
    return ((angle + largest) / (2 * largest) * classes).floor().long().clamp(0, classes - 1)


def rotation_classification_loss(
    logits: Float[Tensor, "B K"],
    angle: Float[Tensor, " B"],
    largest: float = math.pi / 2,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Cross-entropy with the bin of each sweep's angle, the mean over the sweeps of all ranks.

    Args:
        logits: of K bins.
        angle: radians that each view was turned by.
        largest: of the range that the bins share out.
    """
    wanted = rotation_class(angle, logits.shape[1], largest)
    return global_mean(cross_entropy(logits, wanted, reduction="none"), None, group)
