"""Sums of softplus over all pairs: the sigmoid loss.

With unit queries x_i, unit keys y_j and logits l_ij = s <x_i, y_j> + b:

    Σ_i w_i ( Σ_j softplus(l_ij) - l_ii )            (the sum over the pairs kept; l_ii of its own key)

There is no normaliser to wait for, so the gradient is taken in the same sweep as the sum: three matrix products in
all. The keys of other ranks come round a ring, and their gradients travel with them (Zhai et al. 2023, SigLIP,
arXiv 2303.15343, section 3.3).

Shape legend: n queries of this rank, m keys of this rank, M keys of one rank, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from collimate import distributed
from collimate.kernels.tile_math import masked_, tile_math
from collimate.kernels.tiles import Keep, own_cells, tiles, unit, unit_backward_


def pair_softplus(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "m D"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    weights: Float[Tensor, " n"],
    counts: tuple[int, ...],
    first: int | None,
    keep: Keep | None = None,
    normalize: bool = True,
    group: distributed.Group = None,
) -> Float[Tensor, ""]:
    """The sum, i over this rank's queries and j over the keys of all ranks.

    Args:
        query, key: any floating dtype; sums are taken in float32, or float64 for float64 features.
        scale, bias: the multiplier s (not its logarithm) and the bias b.
        weights: w, not differentiated.
        counts: keys of each rank (`distributed.row_counts`).
        first: query i's own key among those of all ranks is first + i; None where queries have none.
        keep: the pairs that take part (an own pair too), rows of this rank and columns of all ranks; None for all.
        normalize: whether to bring the features to unit length.

    Raises:
        RuntimeError: in backward, where ranks scale their losses by different factors: the gradient of the keys has
            been summed over ranks by then. Use `weights` for what differs between ranks.
    """
    return _PairSoftplus.apply(query, key, scale, bias, weights, counts, first, keep, normalize, group)  # type: ignore


class _PairSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: Tensor,
        bias: Tensor,
        weights: Tensor,
        counts: tuple[int, ...],
        first: int | None,
        keep: Keep | None,
        normalize: bool,
        group: distributed.Group,
    ) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            (x, x_length), (y, y_length) = unit(query, normalize), unit(key, normalize)
            factor, shift, weights = (v.detach().to(x.dtype) for v in (scale, bias, weights))
            differentiated = any(ctx.needs_input_grad)
            math = tile_math(x)
            x_grad = torch.zeros_like(x)
            sums = x.new_zeros(2, dtype=torch.float64)  # of the loss, and of the logits' gradients, which is the bias's

            def visit(block: Tensor, start: int, block_grad: Tensor) -> None:
                for r, c, (logits, *buffers) in tiles(x.shape[0], block.shape[0], x, buffers=4):
                    torch.mm(x[r], block[c].T, out=logits).mul_(factor).add_(shift)
                    places = slice(start + c.start, start + c.stop)
                    if first is not None:  # softplus(l) - l = softplus(-l)
                        own_cells(logits, r, places, first)[0].neg_()
                    if keep is not None:
                        masked_(logits, keep(r, places), -torch.inf)
                    sums[0] += torch.dot(math.softplus_and_gradient_(logits, weights[r], buffers), weights[r])
                    if differentiated:
                        if first is not None:
                            own_cells(logits, r, places, first)[0].neg_()
                        sums[1] += logits.sum()  # its gradients by now
                        x_grad[r].addmm_(logits, block[c])
                        block_grad[c].addmm_(logits.T, x[r])

            y_grad = distributed.ring(y, visit, counts, group)
            if differentiated:
                scale_grad = torch.linalg.vecdot(x_grad, x).sum()  # Σ l'_ij <x_i, y_j>
                x_grad = unit_backward_(x_grad.mul_(factor), x, x_length).to(query.dtype)
                y_grad = unit_backward_(y_grad.mul_(factor), y, y_length).to(key.dtype)
                ctx.save_for_backward(x_grad, y_grad, scale_grad.to(scale.dtype), sums[1].to(bias.dtype))
        ctx.group = group
        return sums[0].to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not distributed.same_on_ranks(grad, ctx.group):
            raise RuntimeError(
                "The ranks scale this sigmoid loss by different factors, and the gradient of the keys has already "
                "been summed over ranks. Pass what differs between ranks as `weights`."
            )
        return (*(saved * grad.to(saved.dtype) for saved in ctx.saved_tensors), None, None, None, None, None, None)
