"""Log-sum-exps over all pairs, along both directions in one sweep.

With unit queries x_i, unit keys y_j and logits l_ij = s <x_i, y_j>:

    rows_i = log Σ_j exp w_ij l_ij        columns_j = log Σ_i exp w_ij l_ij        (sums over the pairs kept)

with factors w_ij of the pairs, 1 unless given.

A tile is computed once for both directions. Nothing but the features and the two vectors is kept for backward, which
recomputes each tile (as FlashAttention does, and Inf-CL, arXiv 2410.17243, for one direction of this loss): three
matrix products in all, where the dense softmax contrast of two directions takes six. Tiles are float32 and the
log-sum-exps float64: at s = 100 rounding them would be the largest error of the loss and of its gradient.

Shape legend: n queries (rows), m keys (columns), D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from collimate.kernels.tile_math import Terms, masked_, tile_math
from collimate.kernels.tiles import Factor, Keep, own_cells, tiles, unit, unit_backward_


def pair_logsumexp(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "m D"],
    scale: Float[Tensor, ""],
    column_scale: Float[Tensor, " m"],
    first: int | None,
    keep: Keep | None = None,
    normalize: bool = True,
    factor: Factor | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"], Float[Tensor, " n"] | None]:
    """Log-sum-exps of the rows and of the columns, and the logits of the queries with their own keys.

    Args:
        query, key: any floating dtype; tiles are float32, or float64 for float64 features.
        scale: the multiplier s; gets the gradient of the rows and of the own logits.
        column_scale: the same number for each column; gets the gradient of that column. Apart from `scale` so that
            ranks, each the owner of its own columns, can each have the gradient of its own loss.
        first: query i's own key is first + i; None where queries have none.
        keep: the pairs that take part in the sums; None for all. The own logits are given in any case.
        normalize: whether to bring the features to unit length.
        factor: w; None for 1. The own logits are given without it.

    Returns:
        rows and columns, float64, -inf where no pair is kept; own logits, or None.
    """
    return _PairLogSumExp.apply(query, key, scale, column_scale, first, keep, normalize, factor)  # type: ignore[return-value]


class _PairLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: Tensor,
        column_scale: Tensor,
        first: int | None,
        keep: Keep | None,
        normalize: bool,
        factor: Factor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.autocast(query.device.type, enabled=False):
            (x, _), (y, _) = unit(query, normalize), unit(key, normalize)
            rows, columns, own = sweep(x, y, scale.detach().to(x.dtype), first, keep, factor)
        ctx.save_for_backward(query, key, scale, column_scale, rows, columns)
        ctx.first, ctx.keep, ctx.normalize, ctx.factor = first, keep, normalize, factor
        ctx.set_materialize_grads(False)
        return rows, columns, own

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, rows_grad: Tensor | None, columns_grad: Tensor | None, own_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        query, key, scale, column_scale, rows, columns = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            (x, x_length), (y, y_length) = unit(query, ctx.normalize), unit(key, ctx.normalize)
            number = scale.to(x.dtype)
            x_grad, y_grad, by_column = sweep_backward(
                x, y, number, ctx.first, ctx.keep, (rows, columns), (rows_grad, columns_grad, own_grad), ctx.factor
            )
            by_row = torch.linalg.vecdot(x_grad, x).sum() - by_column.sum()
            x_grad = unit_backward_(x_grad.mul_(number), x, x_length)
            y_grad = unit_backward_(y_grad.mul_(number), y, y_length)
        grads = (x_grad.to(query.dtype), y_grad.to(key.dtype), by_row.to(scale.dtype), by_column.to(column_scale.dtype))
        return (*grads, None, None, None, None)


def sweep(
    x: Float[Tensor, "n D"],
    y: Float[Tensor, "m D"],
    scale: Float[Tensor, ""],
    first: int | None,
    keep: Keep | None,
    factor: Factor | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"], Float[Tensor, " n"] | None]:
    """Log-sum-exps of rows and columns, and the own logits."""
    rows = x.new_full((x.shape[0],), -torch.inf, dtype=torch.float64)
    columns = x.new_full((y.shape[0],), -torch.inf, dtype=torch.float64)
    own = None if first is None else x.new_empty(x.shape[0])
    math = tile_math(x)
    for r, c, (logits, buffer) in tiles(x.shape[0], y.shape[0], x, buffers=2):
        torch.mm(x[r], y[c].T, out=logits).mul_(scale)
        if own is not None and first is not None:
            cells, place = own_cells(logits, r, c, first)
            own[place] = cells
        if factor is not None:
            logits.mul_(factor(r, c))
        masked_(logits, None if keep is None else keep(r, c), -torch.inf)
        rows[r] = torch.logaddexp(rows[r], math.logsumexp(logits, 1, buffer))
        columns[c] = torch.logaddexp(columns[c], math.logsumexp(logits, 0, buffer))
    return rows, columns, own


def sweep_backward(
    x: Float[Tensor, "n D"],
    y: Float[Tensor, "m D"],
    scale: Float[Tensor, ""],
    first: int | None,
    keep: Keep | None,
    logsumexps: tuple[Float[Tensor, " n"], Float[Tensor, " m"]],
    grads: tuple[Float[Tensor, " n"] | None, Float[Tensor, " m"] | None, Float[Tensor, " n"] | None],
    factor: Factor | None = None,
) -> tuple[Float[Tensor, "n D"], Float[Tensor, "m D"], Float[Tensor, " m"]]:
    """The sweep that recomputes the tiles.

    Args:
        grads: of the rows, the columns and the own logits; None where nothing depends on them.

    Returns:
        with l'_ij the gradient of a logit, of which c'_ij comes by its column: Σ_j l'_ij y_j, Σ_i l'_ij x_i and
        Σ_i c'_ij <x_i, y_j>, cosines with their w_ij. The factor s of the first two is left to the caller.
    """
    x_grad, y_grad, by_column = torch.zeros_like(x), torch.zeros_like(y), y.new_zeros(y.shape[0])
    rows_grad, columns_grad, own_grad = grads
    rows, columns = _terms(logsumexps[0], rows_grad, x.dtype), _terms(logsumexps[1], columns_grad, x.dtype)
    math = tile_math(x)
    for r, c, (cosines, logits_grad, buffer) in tiles(x.shape[0], y.shape[0], x, buffers=3):
        torch.mm(x[r], y[c].T, out=cosines)
        weights = None if factor is None else factor(r, c)
        if weights is not None:
            cosines.mul_(weights)
        by_column[c] += math.softmax_gradient(
            cosines,
            scale,
            None if keep is None else keep(r, c),
            (rows[0][r], rows[1][r]),
            (columns[0][c], columns[1][c]),
            logits_grad,
            buffer,
        )
        if weights is not None:
            logits_grad.mul_(weights)
        if own_grad is not None and first is not None:
            cells, place = own_cells(logits_grad, r, c, first)
            cells += own_grad[place]
        x_grad[r].addmm_(logits_grad, y[c])
        y_grad[c].addmm_(logits_grad.T, x[r])
    return x_grad, y_grad, by_column


def _terms(logsumexp: Float[Tensor, " k"], grad: Float[Tensor, " k"] | None, dtype: torch.dtype) -> Terms:
    """(a, b) so that softmax times gradient is exp(logit + a) * b: a is rounded, and what it lost is in b.

    Where no pair was kept, and where nothing depends on the log-sum-exps, exp(-inf) * 0.
    """
    dead = torch.ones_like(logsumexp, dtype=torch.bool) if grad is None else logsumexp == -torch.inf
    shift = (-logsumexp).to(dtype).masked_fill(dead, -torch.inf)
    weight = torch.zeros_like(logsumexp) if grad is None else grad * (-shift - logsumexp).exp()
    return shift, weight.to(dtype).masked_fill(dead, 0.0)
