"""Image-text matching: does this text belong to this picture? Negatives are drawn where the model errs most.

Li et al. 2021, ALBEF, arXiv 2107.07651, section 3.2; also in TCL and ALPRO. For a query i and the keys j of its batch,

    P(j | i) ~ softmax_j(l_ij)        for j that is another sample (and, with ids, of another id), else 0.

A head then tells n true pairs from 2n false ones, each query with a drawn key and each key with a drawn query.

Ours, and 1 unless asked for: a hardness h, P(j | i) ~ softmax_j(h l_ij). A fusion encoder of random weights learns
little from the hardest negatives and much from any; ramped from 0 to 1, it meets both in turn.

Shape legend: n samples.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


@torch.no_grad()
def negative_weights(
    logits: Float[Tensor, "n n"], ids: Int[Tensor, " n"] | None = None, hardness: float = 1.0
) -> Float[Tensor, "n n"]:
    """The weight with which key j is drawn as a negative of query i; rows need not sum to 1.

    Where a row has no weight left (softmaxes of large logits underflow, and those of NaN are NaN), every key that may
    be drawn has the same.

    Args:
        logits: of queries (rows) with keys (columns); sample i is query i and key i. Any floating dtype.
        ids: keys of the query's id are no negatives of it: other captions of one picture.
        hardness: h, by which logits are multiplied; with 0 every key that may be drawn has the same weight.

    Returns:
        float32, or float64 for float64 logits. No gradient.

    Raises:
        ValueError: a sample has no other to be set against.
    """
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(f"Negatives are drawn among the samples of a batch; got {tuple(logits.shape)} logits.")
    allowed = _allowed(len(logits), ids, logits.device)
    logits = hardness * logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = logits.softmax(1).masked_fill(~allowed, 0)
    total = weights.sum(1, keepdim=True)
    return torch.where(total.isfinite() & (total > 0), weights, allowed.to(weights.dtype))


def draw_negatives(weights: Float[Tensor, "n n"], generator: torch.Generator | None = None) -> Int[Tensor, " n"]:
    """For each query, the index of a key that does not belong to it, drawn with these weights."""
    return torch.multinomial(weights, 1, generator=generator).flatten()


def matching_loss(logits: Float[Tensor, "pairs 2"], true: int) -> Float[Tensor, ""]:
    """Cross-entropy of pairs of which the first `true` belong together and the others do not; at least float32.

    Args:
        logits: class 1 is "belongs together".
    """
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), _labels(logits, true))


@torch.no_grad()
def matching_accuracy(logits: Float[Tensor, "pairs 2"], true: int) -> Float[Tensor, ""]:
    """The share of pairs that are told rightly; among n true and 2n false ones, calling all false gives 2/3."""
    return (logits.argmax(1) == _labels(logits, true)).float().mean()


def _labels(logits: Tensor, true: int) -> Int[Tensor, " pairs"]:
    return (torch.arange(len(logits), device=logits.device) < true).long()


def _allowed(n: int, ids: Tensor | None, device: torch.device) -> Bool[Tensor, "n n"]:
    own = torch.arange(n, device=device) if ids is None else ids
    allowed = own[:, None] != own
    if n < 2:
        raise ValueError(f"Matching needs another sample as a negative, but the batch has {n}: take at least 2 a rank.")
    if ids is not None and not bool(allowed.any(1).all()):
        raise ValueError(
            f"Matching needs a sample of another id as a negative, but all {n} of the batch share the id "
            f"{int(ids[0])}. Shuffle the data, or take larger batches."
        )
    return allowed
