"""MIL-NCE: a query's positives are several candidates at once, of which it need not match more than one.

Miech et al. 2020, End-to-end learning of visual representations from uncurated instructional videos, arXiv 1912.06430,
equation 1; VATT (Akbari et al. 2021, arXiv 2104.11178), equations 2 and 3, of which the contrast of pairs (NCE) is the
case of one candidate. With s_ijc = s <x_i, y_jc> for the queries x_i and the candidates y_jc of sample j,

    L_i = log( Σ_{j,c} exp s_ijc + Σ_{j≠i,c} exp s_jic ) - log Σ_c exp s_iic                        once, the papers'
    L_i = log( Σ_{j,c} exp s_ijc + Σ_{j,c}   exp s_jic ) - log Σ_c exp s_iic                        twice, the codes'
    L_i = log Σ_{j,c} exp s_ijc + log Σ_{j,c} exp s_jic - 2 log Σ_c exp s_iic                       symmetric

The released codes (antoine77340/MIL-NCE_HowTo100M, loss.py; google-research/vatt, utils/train/objectives.py,
AsymmetricNCE) count the positives in the sum of all keys and in that of all queries, so that their L_i never falls
below log 2. The third is VATT's SymmetricNCE: the sum of two directions.

A candidate that is not there is in no sum; a query of which none is there costs 0, and stays a negative of the others.
Where the released VATT takes the mean over the queries of each replica that have candidates, here it is over those of
all ranks.

Shape legend: n queries of this rank, C candidates of each, N queries of all ranks, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize as to_unit

from collimate import distributed
from collimate.distributed import Group
from collimate.kernels.logsumexp import pair_logsumexp
from collimate.kernels.tiles import Keep
from collimate.losses.composition import composed
from collimate.losses.masked_tokens import mean_of_chosen

Positives = Literal["once", "twice"]


@composed(
    similarity="cosine",
    targets="sum over several candidates",
    negatives="all others of all ranks",
)
def mil_nce_loss(
    query: Float[Tensor, "n D"],
    candidates: Float[Tensor, "n C D"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    given: Bool[Tensor, "n C"] | None = None,
    positives: Positives = "once",
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """The mean of `mil_nce_losses` over the queries of all ranks that have candidates; 0 where none has."""
    losses = mil_nce_losses(
        query, candidates, logit_scale, given=given, positives=positives, normalize=normalize, group=group
    )
    return mean_of_given(losses, given, group)


@composed(
    similarity="cosine",
    targets="sum over several candidates",
    negatives="all others of all ranks",
)
def symmetric_mil_nce_loss(
    query: Float[Tensor, "n D"],
    candidates: Float[Tensor, "n C D"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    given: Bool[Tensor, "n C"] | None = None,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, ""]:
    """The mean of `symmetric_mil_nce_losses` over the queries of all ranks that have candidates; 0 where none has."""
    losses = symmetric_mil_nce_losses(query, candidates, logit_scale, given=given, normalize=normalize, group=group)
    return mean_of_given(losses, given, group)


def mil_nce_losses(
    query: Float[Tensor, "n D"],
    candidates: Float[Tensor, "n C D"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    given: Bool[Tensor, "n C"] | None = None,
    positives: Positives = "once",
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, " n"]:
    """The loss of each query of this rank, with one softmax over what stands against it in both directions.

    Args:
        query, candidates: this rank's features, any floating dtype; the arithmetic is float32, or float64 for float64.
        logit_scale: the multiplier s: an inverse temperature, not its logarithm. The original MIL-NCE has 1, without
            `normalize`.
        given: which candidates are there; None for all.
        positives: how often they are counted in the denominator.
        normalize: whether to bring the features to unit length.
        group: the ranks that contrast with each other; `distributed.LOCAL` for each on its own.

    Returns:
        float32 (float64 for float64 features); 0 for a query without candidates.

    Raises:
        ValueError: the shapes do not fit each other, or positives are counted otherwise.
    """
    if positives not in ("once", "twice"):
        raise ValueError(f"Positives are counted 'once' or 'twice', not {positives!r}.")
    sums = _sums(query, candidates, logit_scale, given, normalize, group)
    largest = torch.maximum(sums.queries, sums.keys).detach()
    total = (sums.queries - largest).exp() + (sums.keys - largest).exp()
    if positives == "once":
        total = total - (sums.own - largest).exp()
    losses = (largest + total.log() - sums.own).masked_fill(sums.missing, 0.0)
    return losses.to(torch.promote_types(query.dtype, torch.float32))


def symmetric_mil_nce_losses(
    query: Float[Tensor, "n D"],
    candidates: Float[Tensor, "n C D"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    given: Bool[Tensor, "n C"] | None = None,
    normalize: bool = True,
    group: Group = None,
) -> Float[Tensor, " n"]:
    """The loss of each query of this rank, with a softmax a direction; arguments as of `mil_nce_losses`."""
    sums = _sums(query, candidates, logit_scale, given, normalize, group)
    return (sums.queries + sums.keys - 2 * sums.own).to(torch.promote_types(query.dtype, torch.float32))


def mean_of_given(
    losses: Float[Tensor, " n"], given: Bool[Tensor, "n C"] | None, group: Group = None
) -> Float[Tensor, ""]:
    """This rank's share of the mean over the queries of all ranks that have candidates."""
    there = torch.ones_like(losses, dtype=torch.bool) if given is None else given.any(1)
    return mean_of_chosen(losses, there.long(), group)


class _Sums(NamedTuple):
    """For each query of this rank log-sum-exps, float64; all 0 where it has no candidates."""

    queries: Float[Tensor, " n"]
    """of it with all candidates of all samples"""
    keys: Float[Tensor, " n"]
    """of its candidates with all queries"""
    own: Float[Tensor, " n"]
    """of it with its candidates"""
    missing: Bool[Tensor, " n"]
    """Whether it has none."""


@dataclass(frozen=True)
class _GivenKeys:
    """Pairs whose key is there."""

    given: Bool[Tensor, " M"]

    def __call__(self, rows: slice, columns: slice) -> Bool[Tensor, "rows columns"]:
        return self.given[columns].expand(rows.stop - rows.start, -1)


def _sums(
    query: Tensor,
    candidates: Tensor,
    logit_scale: Tensor | float,
    given: Tensor | None,
    normalize: bool,
    group: Group,
) -> _Sums:
    _check(query, candidates, given)
    count = candidates.shape[1]
    keys = candidates.flatten(0, 1)
    scale = torch.as_tensor(logit_scale, device=query.device).reshape(())
    counts = distributed.row_counts(keys, group)
    there = torch.ones(candidates.shape[:2], dtype=torch.bool, device=query.device) if given is None else given
    everywhere = distributed.gather(there.flatten(), group, counts)
    keep: Keep | None = None if bool(everywhere.all()) else _GivenKeys(everywhere)
    scales = distributed.gather(scale.expand(len(keys)), group, counts)
    rows, columns, _ = pair_logsumexp(
        query, distributed.gather(keys, group, counts), scale, scales, None, keep, normalize
    )
    columns = distributed.column_logsumexp(columns, counts, group)
    missing = ~there.any(1)
    return _Sums(
        rows.masked_fill(missing, 0.0),
        _logsumexp(columns.unflatten(0, (-1, count)), there, missing),
        _logsumexp(_own_logits(query, candidates, scale, normalize), there, missing),
        missing,
    )


def _own_logits(query: Tensor, candidates: Tensor, scale: Tensor, normalize: bool) -> Float[Tensor, "n C"]:
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, candidates = query.to(dtype), candidates.to(dtype)
    if normalize:
        query, candidates = to_unit(query, dim=-1), to_unit(candidates, dim=-1)
    return scale.to(dtype) * torch.einsum("nd,ncd->nc", query, candidates)


def _logsumexp(values: Tensor, there: Tensor, missing: Tensor) -> Float[Tensor, " n"]:
    """Over the candidates that are there; 0 for samples without any."""
    kept = there | missing[:, None]
    values = values.double().masked_fill(missing[:, None], 0.0)
    return values.masked_fill(~kept, -torch.inf).logsumexp(1).masked_fill(missing, 0.0)


def _check(query: Tensor, candidates: Tensor, given: Tensor | None) -> None:
    if query.ndim != 2 or candidates.ndim != 3 or candidates.shape[::2] != query.shape or not candidates.shape[1]:
        raise ValueError(
            f"Queries are (n, D) and their candidates (n, C, D); got {tuple(query.shape)} and "
            f"{tuple(candidates.shape)}."
        )
    if given is not None and (given.shape != candidates.shape[:2] or given.dtype != torch.bool):
        raise ValueError(
            f"`given` says of each of the {tuple(candidates.shape[:2])} candidates whether it is there; got "
            f"{given.dtype} {tuple(given.shape)}."
        )
