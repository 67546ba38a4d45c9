"""Log-sum-exps of queries over keys that do not learn: entries of a queue, features of a momentum encoder.

With unit queries x_i, fixed y_j, logits l_ij = s <x_i, y_j> and p_ij = exp(l_ij - rows_i),

    rows_i = log Σ_j exp l_ij        d rows_i / d x_i = s Σ_j p_ij y_j =: s b_i        d rows_i / d s = <x_i, b_i>,

so that what backward needs is b, as large as the queries, which the forward sweep takes along as fused attention does
(Rabe and Staats 2021, arXiv 2112.05682). Two matrix products in all, where `logsumexp`, for both directions and keys
that learn, takes four; and no tile is made twice.

Shape legend: n queries (rows), m keys (columns), D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from collimate.kernels.logsumexp import pair_logsumexp
from collimate.kernels.tile_math import masked_
from collimate.kernels.tiles import Keep, tiles, unit, unit_backward_


def row_logsumexp(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "m D"],
    scale: Float[Tensor, ""],
    keep: Keep | None = None,
    normalize: bool = True,
) -> Float[Tensor, " n"]:
    """Log-sum-exps of the rows alone; float64, -inf where no pair is kept.

    Args:
        query, key: any floating dtype; tiles are float32, or float64 for float64 features. Where the keys learn after
            all, this is `pair_logsumexp`.
        scale: the multiplier s.
        keep: the pairs that take part; None for all.
        normalize: whether to bring the features to unit length.
    """
    if key.requires_grad:
        return pair_logsumexp(query, key, scale, scale.detach().expand(len(key)), None, keep, normalize)[0]
    return _RowLogSumExp.apply(query, key, scale, keep, normalize)  # type: ignore[return-value]


class _RowLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: Tensor, keep: Keep | None, normalize: bool) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            (x, _), (y, _) = unit(query, normalize), unit(key, normalize)
            learns = ctx.needs_input_grad[0] or ctx.needs_input_grad[2]
            rows, blended = _sweep(x, y, scale.detach().to(x.dtype), keep, learns)
        ctx.save_for_backward(query, scale, blended)
        ctx.normalize = normalize
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, scale, blended = ctx.saved_tensors
        x, length = unit(query, ctx.normalize)
        by_row = blended * grad[:, None].to(x.dtype)
        scale_grad = torch.linalg.vecdot(by_row, x).sum()
        x_grad = unit_backward_(by_row.mul_(scale.to(x.dtype)), x, length)
        return x_grad.to(query.dtype), None, scale_grad.to(scale.dtype), None, None


def _sweep(
    x: Float[Tensor, "n D"], y: Float[Tensor, "m D"], scale: Float[Tensor, ""], keep: Keep | None, learns: bool
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n D"] | None]:
    """The log-sum-exps and, if asked for, the keys' means b under the softmax."""
    rows = x.new_full((x.shape[0],), -torch.inf, dtype=torch.float64)
    blended = torch.zeros_like(x) if learns else None
    for r, c, (logits,) in tiles(x.shape[0], y.shape[0], x, buffers=1):
        torch.mm(x[r], y[c].T, out=logits).mul_(scale)
        masked_(logits, None if keep is None else keep(r, c), -torch.inf)
        largest = logits.amax(1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
        shares = logits.sub_(largest).exp_()
        largest = largest.squeeze(1).double()
        joined = torch.logaddexp(rows[r], largest + shares.sum(1).double().log_())
        if blended is not None:
            reference = joined.masked_fill(joined == -torch.inf, 0)  # a row of which nothing is kept so far has b = 0
            blended[r] *= (rows[r] - reference).exp_().to(x.dtype)[:, None]
            blended[r] += (shares @ y[c]).mul_((largest - reference).exp_().to(x.dtype)[:, None])
        rows[r] = joined
    return rows, blended
