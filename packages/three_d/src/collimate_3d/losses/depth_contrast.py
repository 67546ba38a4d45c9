"""DepthContrast (Zhang et al. 2021, arXiv 2101.02691, section 3): one scan in two formats, contrasted through queues.

A scan is seen by an encoder of points and one of voxels, q_p and q_v, and by their momentum copies, k_p and k_v. With
queues K_p and K_v of earlier keys, and MoCo's contrast of a query with its own key against a queue,

    ℓ(q, k, K) = - log ( exp(q · k / τ) / (exp(q · k / τ) + Σ_{u in K} exp(q · u / τ)) ),

    L = ℓ(q_p, k_p, K_p) + ℓ(q_v, k_v, K_v)        within a format
      + ℓ(q_p, k_v, K_v) + ℓ(q_v, k_p, K_p)        across formats.

Departure: keys get no gradient here, whoever made them; the released loss lets it through.

Shape legend: n scans of this rank, D width, Q entries of a queue.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from collimate.distributed import LOCAL, Group
from collimate.losses.negatives import Given
from collimate.losses.softmax import global_mean, info_nce_losses


class DepthContrastLosses(NamedTuple):
    """The four terms; the loss is their sum, with weights of 1 as published."""

    points: Float[Tensor, ""]
    voxels: Float[Tensor, ""]
    points_to_voxels: Float[Tensor, ""]
    voxels_to_points: Float[Tensor, ""]


def depth_contrast_losses(
    points: Float[Tensor, "n D"],
    voxels: Float[Tensor, "n D"],
    point_keys: Float[Tensor, "n D"],
    voxel_keys: Float[Tensor, "n D"],
    point_queue: Float[Tensor, "Q D"],
    voxel_queue: Float[Tensor, "Q D"],
    temperature: Float[Tensor, ""] | float = 0.1,
    group: Group = None,
) -> DepthContrastLosses:
    """The contrasts within and across formats. Any features are normalised inside.

    Args:
        points, voxels: q_p and q_v.
        point_keys, voxel_keys: k_p and k_v of momentum encoders.
        point_queue, voxel_queue: earlier keys (`collimate.losses.FeatureQueue`, with the kinds `points` and `voxels`);
            add this step's keys after the backward pass.
        temperature: τ; 0.1 as published.
        group: the ranks over whose scans the mean is taken.
    """
    terms = (
        (points, point_keys, point_queue),
        (voxels, voxel_keys, voxel_queue),
        (points, voxel_keys, voxel_queue),
        (voxels, point_keys, point_queue),
    )
    return DepthContrastLosses(*(queue_contrast(*term, temperature, group) for term in terms))


def queue_contrast(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "n D"],
    queue: Float[Tensor, "Q D"],
    temperature: Float[Tensor, ""] | float,
    group: Group = None,
) -> Float[Tensor, ""]:
    """ℓ: a query's own key against the entries of a queue alone; other keys of the batch are no negatives."""
    own_only = Given(torch.zeros(len(key), dtype=torch.bool, device=key.device), 0)
    losses = info_nce_losses(query, key.detach(), 1 / temperature, mask=own_only, queue=queue.clone(), group=LOCAL)
    return global_mean(losses, None, group)
