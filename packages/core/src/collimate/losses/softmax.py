"""The softmax contrast on four axes: similarity x targets x weights x negatives.

With unit queries x_i and keys y_j, logits l_ij = s <x_i, y_j>, targets t_ij >= 0 and a set K_i of keys kept,

    L_i = - Σ_j t_ij / (Σ_j t_ij) * ( l_ij - log Σ_{j in K_i} exp l_ij ),

and likewise for each key over the queries, with targets of its own. The loss is the mean over all samples of all
ranks of w_i L_i. Each rank computes its own queries against the keys of all ranks, each tile once for both
directions; value and gradient on a rank are those of its own samples' losses, so the mean over ranks, as DDP takes
it, is exactly the single-process loss and gradient, also where ranks hold unequal numbers of samples.

Shape legend: n queries and m keys of this rank, N and M those of all ranks in rank order, Q entries of a queue,
D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize as to_unit

from collimate import distributed
from collimate.distributed import Group
from collimate.kernels.fixed_keys import row_logsumexp
from collimate.kernels.logsumexp import pair_logsumexp
from collimate.kernels.tiles import Factor, Keep
from collimate.losses.negatives import kept_pairs
from collimate.losses.targets import Paired, Targets

NO_POSITIVE = 1e-6  # sum of target weights below which a sample has no positive (HobbitLong/SupContrast, losses.py)


class SymmetricLosses(NamedTuple):
    """Per-sample losses of both directions."""

    queries: Float[Tensor, " n"]
    keys: Float[Tensor, " m"]


def info_nce(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "m D"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    targets: Targets | None = None,
    ids: Int[Tensor, " n"] | None = None,
    mask: Bool[Tensor, "n M"] | Keep | None = None,
    queue: Float[Tensor, "Q D"] | None = None,
    weights: Float[Tensor, " n"] | None = None,
    normalize: bool = True,
    factor: Factor | None = None,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Contrast queries with keys, in that direction only (van den Oord et al. 2018, arXiv 1807.03748, equation 4).

    Args:
        query, key: this rank's features, any floating dtype; the arithmetic is float32, or float64 for float64.
        logit_scale: the multiplier s of the cosines: an inverse temperature, not its logarithm.
        targets: who is a positive of whom; None pairs query i with key i.
        ids: pairs of equal id are no negatives of each other (same patient, same caption). One for each pair.
        mask: True where a key takes part in a query's sum; spans the keys of all ranks. Or a function that
            gives the mask of one tile (`collimate.losses.negatives`), which never makes the whole.
        queue: further negatives for every query, as kept by momentum methods; the same or another on each rank.
        weights: a factor on each query's loss; the mean still divides by the number of queries.
        normalize: whether to bring the features to unit length.
        factor: what each logit of the sum is multiplied by (SiMHand's weights), a function that gives it for one
            tile; the positives' logits are without it, and so are those of a queue.
        group: the ranks that contrast with each other; `distributed.LOCAL` for each on its own.

    Returns:
        the loss, float32 (float64 for float64 features). A query without a positive contributes 0 and is counted.
    """
    losses = info_nce_losses(
        query,
        key,
        logit_scale,
        targets=targets,
        ids=ids,
        mask=mask,
        queue=queue,
        normalize=normalize,
        factor=factor,
        group=group,
    )
    return global_mean(losses, weights, group)


def symmetric_info_nce(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "m D"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    targets: Targets | None = None,
    key_targets: Targets | None = None,
    ids: Int[Tensor, " n"] | None = None,
    mask: Bool[Tensor, "n M"] | Keep | None = None,
    queue: Float[Tensor, "Q D"] | None = None,
    query_queue: Float[Tensor, "Q D"] | None = None,
    weights: Float[Tensor, " n"] | None = None,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Half the contrast of queries with keys plus half that of keys with queries, at the cost of one.

    Args (beyond those of `info_nce`):
        key_targets: targets of the keys, normalised over the queries; None flips `targets`.
        query_queue: further negatives for every key.
        weights: a factor on both losses of pair i (ALIP's gates).
    """
    losses = symmetric_info_nce_losses(
        query,
        key,
        logit_scale,
        targets=targets,
        key_targets=key_targets,
        ids=ids,
        mask=mask,
        queue=queue,
        query_queue=query_queue,
        normalize=normalize,
        group=group,
    )
    return (global_mean(losses.queries, weights, group) + global_mean(losses.keys, weights, group)) / 2


def info_nce_losses(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "m D"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    targets: Targets | None = None,
    ids: Int[Tensor, " n"] | None = None,
    mask: Bool[Tensor, "n M"] | Keep | None = None,
    queue: Float[Tensor, "Q D"] | None = None,
    normalize: bool = True,
    factor: Factor | None = None,
    group: Group = None,
) -> Float[Tensor, " n"]:
    """The loss of each query of this rank; `info_nce` is their mean over all ranks."""
    contrast = _Contrast(query, key, logit_scale, targets, ids, mask, normalize, group, both=False, factor=factor)
    return contrast.of_queries(queue)


def symmetric_info_nce_losses(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "m D"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    targets: Targets | None = None,
    key_targets: Targets | None = None,
    ids: Int[Tensor, " n"] | None = None,
    mask: Bool[Tensor, "n M"] | Keep | None = None,
    queue: Float[Tensor, "Q D"] | None = None,
    query_queue: Float[Tensor, "Q D"] | None = None,
    normalize: bool = True,
    group: Group = None,
) -> SymmetricLosses:
    """The loss of each query and of each key of this rank; `symmetric_info_nce` is the mean of both over all ranks."""
    contrast = _Contrast(query, key, logit_scale, targets, ids, mask, normalize, group, both=True)
    return SymmetricLosses(contrast.of_queries(queue), contrast.of_keys(key_targets, query_queue))


class _Contrast:
    """One sweep over this rank's queries and all ranks' keys, and what one or both directions make of it."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        logit_scale: Tensor | float,
        targets: Targets | None,
        ids: Tensor | None,
        mask: Tensor | Keep | None,
        normalize: bool,
        group: Group,
        both: bool,
        factor: Factor | None = None,
    ) -> None:
        check_shapes(query, key)
        self.query, self.key, self.normalize, self.group = query, key, normalize, group
        self.targets = targets or Paired()
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.scale = torch.as_tensor(logit_scale, device=query.device).reshape(())
        self.key_counts = distributed.row_counts(key, group)
        self.all_keys = distributed.gather(key, group, self.key_counts)
        keep = kept_pairs(ids, mask, self.key_counts, group)
        self.own = None
        if factor is None and not (both or self.all_keys.requires_grad):
            self.rows = row_logsumexp(query, self.all_keys, self.scale, keep, normalize)
            return
        self.rows, self.columns, self.own = pair_logsumexp(
            query,
            self.all_keys,
            self.scale,
            distributed.gather(self.scale.expand(key.shape[0]), group, self.key_counts),
            distributed.own(self.key_counts, group).start if query.shape[0] == key.shape[0] else None,
            keep,
            normalize,
            factor,
        )

    def of_queries(self, queue: Tensor | None) -> Tensor:
        lse = self.rows if queue is None else torch.logaddexp(self.rows, self._against(self.query, queue))
        if isinstance(self.targets, Paired):
            check_paired(self.query, self.key)
            if self.own is not None:
                return (lse - self.own).to(self.dtype)
        return self._targeted(lse, self.query, self.all_keys, self.targets, self.key_counts)

    def of_keys(self, targets: Targets | None, queue: Tensor | None) -> Tensor:
        lse = distributed.column_logsumexp(self.columns, self.key_counts, self.group)
        if queue is not None:
            lse = torch.logaddexp(lse, self._against(self.key, queue))
        targets = targets or self.targets.flipped()
        if isinstance(targets, Paired):
            check_paired(self.query, self.key)
            assert self.own is not None
            return (lse - self.own).to(self.dtype)
        counts = distributed.row_counts(self.query, self.group)
        return self._targeted(lse, self.key, distributed.gather(self.query, self.group, counts), targets, counts)

    def _against(self, features: Tensor, queue: Tensor) -> Tensor:
        """Log-sum-exps over a queue alone."""
        return row_logsumexp(features, queue, self.scale, None, self.normalize)

    def _targeted(self, lse: Tensor, features: Tensor, others: Tensor, targets: Targets, counts: tuple) -> Tensor:
        features, others = features.to(self.dtype), others.to(self.dtype)
        if self.normalize:
            features, others = to_unit(features, dim=1), to_unit(others, dim=1)
        blended, mass = targets.blend(others, counts, self.group)
        positive = self.scale * torch.linalg.vecdot(features, blended) / mass.clamp_min(NO_POSITIVE)
        return torch.where(mass > NO_POSITIVE, (lse - positive).to(self.dtype), 0.0)


def global_mean(losses: Tensor, weights: Tensor | None, group: Group) -> Tensor:
    """This rank's share of the mean over all samples of all ranks."""
    share = distributed.global_share(distributed.row_counts(losses, group))
    return share * (losses if weights is None else losses * weights).sum()


def check_shapes(query: Tensor, key: Tensor) -> None:
    if query.ndim != 2 or key.ndim != 2 or query.shape[1] != key.shape[1]:
        raise ValueError(
            f"Features are (samples, width) of one width; got {tuple(query.shape)} and {tuple(key.shape)}."
        )


def check_paired(query: Tensor, key: Tensor) -> None:
    if query.shape[0] != key.shape[0]:
        raise ValueError(
            f"{query.shape[0]} queries cannot be paired with {key.shape[0]} keys one to one; say with `targets` which "
            "key belongs to which query."
        )
