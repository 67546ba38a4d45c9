"""The sigmoid contrast: an independent yes or no for each pair.

With unit queries x_i and keys y_j, logits l_ij = s <x_i, y_j> + b and targets t_ij in [0, 1],

    L_i = Σ_j [ softplus(l_ij) - t_ij l_ij ],

which is -Σ_j log sigmoid(z_ij l_ij) for the labels z_ij = 2 t_ij - 1 of Zhai et al. 2023 (SigLIP, arXiv 2303.15343,
equation 1), because softplus(-l) = softplus(l) - l. The loss is the mean over all samples of all ranks of w_i L_i: it
is divided by the number of samples, not of pairs.

Shape legend: n queries and m keys of this rank, M keys of all ranks in rank order, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize as to_unit

from collimate import distributed
from collimate.distributed import Group
from collimate.kernels.softplus import pair_softplus
from collimate.kernels.tiles import Keep
from collimate.losses.negatives import kept_pairs
from collimate.losses.softmax import check_paired, check_shapes
from collimate.losses.targets import Paired, Targets


def sigmoid_contrast(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "m D"],
    logit_scale: Float[Tensor, ""] | float,
    logit_bias: Float[Tensor, ""] | float,
    *,
    targets: Targets | None = None,
    ids: Int[Tensor, " n"] | None = None,
    mask: Bool[Tensor, "n M"] | Keep | None = None,
    weights: Float[Tensor, " n"] | None = None,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Tell the queries' positives from all other keys, pair by pair.

    Args:
        query, key: this rank's features, any floating dtype; the arithmetic is float32, or float64 for float64.
        logit_scale, logit_bias: the multiplier s of the cosines (not its logarithm) and the bias b.
        targets: who is a positive of whom, weights in [0, 1]; None pairs query i with key i.
        ids: pairs of equal id, but for a query's own, are left out. One for each pair.
        mask: True where a pair takes part; spans the keys of all ranks. Or a function that gives
            the mask of one tile.
        weights: a factor on each query's loss, not differentiated; the mean still divides by the number of queries.
        normalize: whether to bring the features to unit length.
        group: the ranks that contrast with each other; `distributed.LOCAL` for each on its own.

    Returns:
        the loss, float32 (float64 for float64 features).

    Raises:
        RuntimeError: in backward, where ranks scale this loss by different factors (use `weights` for that).
    """
    check_shapes(query, key)
    targets = targets or Paired()
    if isinstance(targets, Paired):
        check_paired(query, key)
    scale, bias = (torch.as_tensor(v, device=query.device).reshape(()) for v in (logit_scale, logit_bias))
    counts = distributed.row_counts(key, group)
    share = distributed.global_share(distributed.row_counts(query, group))
    ones = torch.ones(query.shape[0], device=query.device, dtype=torch.promote_types(query.dtype, torch.float32))
    weights = share * (ones if weights is None else ones * weights.detach())
    first = distributed.own(counts, group).start if isinstance(targets, Paired) else None
    kept = kept_pairs(ids, mask, counts, group)
    loss = pair_softplus(query, key, scale, bias, weights, counts, first, kept, normalize, group)
    if isinstance(targets, Paired):
        return loss
    features, others = query.to(loss.dtype), distributed.gather(key, group, counts).to(loss.dtype)
    if normalize:
        features, others = to_unit(features, dim=1), to_unit(others, dim=1)
    blended, mass = targets.blend(others, counts, group)
    positives = scale * torch.linalg.vecdot(features, blended) + bias * mass
    return loss - (weights * positives).sum()
