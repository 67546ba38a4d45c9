"""The softmax contrast of scores that are held as matrices, for similarities that are no dot product of two vectors.

What `collimate.losses.softmax` does tile by tile for cosines, here for any two matrices of scores, one a direction:
with scores q_ij of query i's candidates j, k_ji of key j's candidates i, and targets t, t' >= 0,

    L_i = - Σ_j t_ij / (Σ_j t_ij) log softmax_j(s q_ij)        L'_j = - Σ_i t'_ji / (Σ_i t'_ji) log softmax_i(s k_ji),

and the loss is half the mean of each. Each rank brings the scores of its own queries with the keys of all ranks; the
mean over ranks of value and gradients is that of one process. Sums are float64, as a scale of 100 needs them.

Shape legend: n queries and m keys of this rank, N and M those of all ranks in rank order.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collimate import distributed
from collimate.distributed import Group
from collimate.kernels.tiles import Keep
from collimate.losses.negatives import kept_pairs
from collimate.losses.softmax import NO_POSITIVE, check_paired, global_mean
from collimate.losses.targets import Paired, Targets


def symmetric_info_nce_of_scores(
    by_query: Float[Tensor, "n M"],
    by_key: Float[Tensor, "M n"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    key_counts: tuple[int, ...] | None = None,
    targets: Targets | None = None,
    key_targets: Targets | None = None,
    ids: Int[Tensor, " n"] | None = None,
    mask: Bool[Tensor, "n M"] | Keep | None = None,
    weights: Float[Tensor, " n"] | None = None,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Half the contrast of queries with keys plus half that of keys with queries, over given scores.

    Args:
        by_query: the score by which this rank's queries rank the keys of all ranks.
        by_key: the score by which the keys of all ranks rank this rank's queries; the transpose of `by_query` where the
            score has no direction.
        logit_scale: the multiplier s of the scores.
        key_counts: keys of each rank (`distributed.row_counts`); this process holds them all if None.
        targets, key_targets, ids, mask, weights, group: as of `symmetric_info_nce`. Targets other than pairs gather the
            scores of all ranks, N x M numbers.

    Raises:
        ValueError: the matrices do not fit each other or the counts, or pairs are wanted of unequally many samples.
    """
    key_counts = key_counts or (by_query.shape[1],)
    if by_query.shape != by_key.shape[::-1] or by_query.shape[1] != sum(key_counts):
        raise ValueError(
            f"The scores of queries are {tuple(by_query.shape)} and those of keys {tuple(by_key.shape)}: they are "
            f"(n, M) and (M, n), for {sum(key_counts)} keys."
        )
    own = distributed.own(key_counts, group)
    targets = targets or Paired()
    key_targets = key_targets or targets.flipped()
    scale = torch.as_tensor(logit_scale, device=by_query.device).reshape(())
    key_scale = distributed.gather(scale.expand(own.stop - own.start), group, key_counts)  # to each its own gradient
    logits, key_logits = (scale * by_query).double(), (key_scale[:, None] * by_key).double()
    keep = kept_pairs(ids, mask, key_counts, group)
    kept = None if keep is None else keep(slice(0, logits.shape[0]), slice(0, logits.shape[1]))

    lse = _kept(logits, kept).logsumexp(1)
    key_lse = _kept(key_logits, None if kept is None else kept.T).logsumexp(1)
    key_lse = distributed.column_logsumexp(key_lse, key_counts, group)
    if isinstance(targets, Paired):
        check_paired(logits, key_logits[own])
        losses = lse - logits[:, own].diagonal()
    else:
        losses = _targeted(lse, logits, targets, key_counts, group)
    if isinstance(key_targets, Paired):
        check_paired(logits, key_logits[own])
        key_losses = key_lse - key_logits[own].diagonal()
    else:
        query_counts = distributed.row_counts(logits, group)
        own_logits = distributed.gather(key_logits.T, group, query_counts)[:, own].T
        key_losses = _targeted(key_lse, own_logits, key_targets, query_counts, group)
    return ((global_mean(losses, weights, group) + global_mean(key_losses, weights, group)) / 2).to(by_query.dtype)


def _kept(logits: Tensor, kept: Tensor | None) -> Tensor:
    return logits if kept is None else logits.masked_fill(~kept, -torch.inf)


def _targeted(
    lse: Float[Tensor, " a"], logits: Float[Tensor, "a B"], targets: Targets, counts: tuple[int, ...], group: Group
) -> Float[Tensor, " a"]:
    share, mass = targets.blend(torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device), counts, group)
    losses = lse - (share * logits).sum(1) / mass.clamp_min(NO_POSITIVE)
    return torch.where(mass > NO_POSITIVE, losses, 0.0)
