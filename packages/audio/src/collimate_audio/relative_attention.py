"""Attention with a relative bias that each query may scale, block by block.

    score_ij = q_i . k_j / sqrt(d) + g_i r_ij,    P = softmax(score),    o = P v

g differs by clip, head and query, and r by head, so that g r is as large as the scores, of which the plain form holds a
dozen. On a CPU, forward and backward go block by block through a head's queries, some of a long clip or all of several
short ones, and whatever is as large as a block's scores stays in a core's cache. P alone is kept for backward, and
beyond `KEPT` tokens made anew instead. With ∘ the product by elements,

    dS = P ∘ (do v' - (do . o)),    dq = dS k / sqrt(d),    dk = dS' q / sqrt(d),    dg_i = dS_i . r_i,    dr = g dS

summed over the clips for r. Elsewhere torch's fused kernel is given g r, which backward makes anew.

Shape legend: B clips, H heads, L tokens, d width of a head, C clips and R queries of each in a block.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from collimate.kernels.threads import for_each

BLOCK = 2**17  # ours: scores of a block, which take 0.5 MiB in float32
KEPT = 512  # ours: P of a head takes 1 MiB then, twice what its q, k, v and o take in the base model


def relative_attention(
    query: Float[Tensor, "B H L d"],
    key: Float[Tensor, "B H L d"],
    value: Float[Tensor, "B H L d"],
    gate: Float[Tensor, "B H L 1"] | None = None,
    bias: Float[Tensor, "*B H L L"] | None = None,
    mask: Bool[Tensor, "B L"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H L d"]:
    """o, in the dtype of the query; the softmax is of float32, or of float64 for float64.

    Args:
        gate: g; 1 unless given. It scales the bias.
        bias: r, of all clips or of each; 0 unless given.
        mask: True where a key is real. A clip without any attends to all of its keys alike.
        dropout: the probability with which a weight is dropped.
    """
    arguments = (query, key, value, gate, bias, mask)
    if bias is None and mask is None:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    if not torch.is_grad_enabled():
        return _fused(*arguments, dropout)
    if dropout or query.device.type != "cpu":
        return checkpoint(_fused, *arguments, dropout, use_reentrant=False)  # type: ignore[return-value]
    return _RelativeAttention.apply(*arguments)  # type: ignore[return-value]


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H L d"]:
    added = bias if bias is None or gate is None else gate * bias
    if mask is not None:
        added = query.new_zeros(()) if added is None else added
        added = torch.where(mask[:, None, None, :], added, torch.finfo(query.dtype).min)
    added = None if added is None else added.to(query.dtype)
    return scaled_dot_product_attention(query, key, value, added, dropout)


class _RelativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, gate: Any, bias: Any, mask: Any) -> Tensor:
        found = torch.empty_like(query)
        count, heads, length, _ = query.shape
        kept = None if length > KEPT else query.new_empty(count, heads, length, length, dtype=_exact(query))

        def visit(head: int) -> None:
            scratch = _scratch(query)
            for clips in _clips(query):
                inputs = _inputs(clips, head, query, key, value, gate, bias, mask)
                for rows in _rows(length):
                    scores, weights = _fitting(scratch, clips, rows)
                    weights = weights if kept is None else kept[clips, head, rows]
                    found[clips, head, rows] = inputs.probabilities(rows, scores, weights) @ inputs.value

        with torch.autocast(query.device.type, enabled=False):
            for_each(visit, range(heads), query.device)
        ctx.save_for_backward(query, key, value, gate, bias, mask, found, kept)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, gate, bias, mask, found, kept = ctx.saved_tensors
        (gradient,) = gradients
        sums = [
            torch.zeros_like(tensor, dtype=_exact(tensor)) if learns else None
            for tensor, learns in zip((query, key, value, gate, bias), ctx.needs_input_grad[:5], strict=True)
        ]

        def visit(head: int) -> None:
            scratch = _scratch(query)
            for clips in _clips(query):
                inputs = _inputs(clips, head, query, key, value, gate, bias, mask)
                upper = gradient[clips, head].to(inputs.query.dtype)
                whole = (upper * found[clips, head]).sum(2, keepdim=True)
                into = _Gradients(*(_place(each, clips, head) for each in sums))
                for rows in _rows(query.shape[2]):
                    scores, weights = _fitting(scratch, clips, rows)
                    weights = inputs.probabilities(rows, scores, weights) if kept is None else kept[clips, head, rows]
                    _backward(inputs, rows, weights, upper[:, rows], whole[:, rows], into, scores)

        with torch.autocast(query.device.type, enabled=False):
            for_each(visit, range(query.shape[1]), query.device)  # a head's bias has one thread that adds to it
        given = query, key, value, gate, bias
        return *(None if each is None else each.to(like.dtype) for each, like in zip(sums, given, strict=True)), None


class _Inputs(NamedTuple):
    """What a head has of some clips; in float32 or float64."""

    query: Float[Tensor, "C L d"]
    key: Float[Tensor, "C L d"]
    value: Float[Tensor, "C L d"]
    gate: Float[Tensor, "C L 1"] | None
    bias: Float[Tensor, "*C L L"] | None
    hidden: Bool[Tensor, "C 1 L"] | None

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.query.shape[2])

    def probabilities(self, rows: slice, scores: Float[Tensor, "C R L"], into: Float[Tensor, "C R L"]) -> Tensor:
        """P of some queries; what `scores` held is lost."""
        if self.bias is None:
            torch.bmm(self.query[:, rows], self.key.mT, out=scores).mul_(self.scale)
        else:
            added = self.bias[..., rows, :].expand_as(scores)
            torch.mul(added, 1.0 if self.gate is None else self.gate[:, rows], out=scores)
            scores.baddbmm_(self.query[:, rows], self.key.mT, alpha=self.scale)
        if self.hidden is not None:
            scores.masked_fill_(self.hidden, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, 2, out=into)


class _Gradients(NamedTuple):
    """Where the gradients of a head's inputs are added up; None for what does not learn."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    gate: Tensor | None
    bias: Tensor | None


def _inputs(
    clips: slice, head: int, query: Tensor, key: Tensor, value: Tensor, gate: Any, bias: Any, mask: Any
) -> _Inputs:
    dtype = _exact(query)
    found = [_place(tensor, clips, head) for tensor in (query, key, value, gate, bias)]
    hidden = None if mask is None else ~mask[clips, None]
    return _Inputs(*(None if tensor is None else tensor.to(dtype) for tensor in found), hidden)  # type: ignore[arg-type]


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _place(tensor: Tensor | None, clips: slice, head: int) -> Tensor | None:
    """What belongs to a head of some clips; a bias may be of all clips."""
    if tensor is None:
        return None
    return tensor[head] if tensor.ndim == 3 else tensor[clips, head]


def _backward(
    inputs: _Inputs,
    rows: slice,
    weights: Float[Tensor, "C R L"],
    upper: Float[Tensor, "C R d"],
    whole: Float[Tensor, "C R 1"],
    into: _Gradients,
    scores: Float[Tensor, "C R L"],
) -> None:
    """Add what some queries give to the gradients; dS is made in `scores`."""
    if into.value is not None:
        into.value.baddbmm_(weights.mT, upper)
    torch.bmm(upper, inputs.value.mT, out=scores).sub_(whole).mul_(weights)
    if into.query is not None:
        into.query[:, rows] = inputs.scale * (scores @ inputs.key)
    if into.key is not None:
        into.key.baddbmm_(scores.mT, inputs.query[:, rows], alpha=inputs.scale)
    if into.gate is not None and inputs.bias is not None:
        into.gate[:, rows] = (scores * inputs.bias[..., rows, :]).sum(2, keepdim=True)
    if into.bias is not None:
        found = scores if inputs.gate is None else scores.mul_(inputs.gate[:, rows])
        into.bias[..., rows, :] += found if into.bias.ndim == 3 else found.sum(0)


def _rows(length: int) -> list[slice]:
    """The queries of each block."""
    return _slices(length, BLOCK // length)


def _clips(query: Float[Tensor, "B H L d"]) -> list[slice]:
    """The clips of each block."""
    return _slices(query.shape[0], BLOCK // query.shape[2] ** 2)


def _slices(size: int, step: int) -> list[slice]:
    step = min(max(step, 1), size)
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _scratch(query: Float[Tensor, "B H L d"]) -> Float[Tensor, "2 C R L"]:
    """Room for the scores of a block and for what is made of them."""
    length = query.shape[2]
    clips, rows = (slices[0].stop for slices in (_clips(query), _rows(length)))
    return query.new_empty(2, clips, rows, length, dtype=_exact(query))


def _fitting(scratch: Tensor, clips: slice, rows: slice) -> Tensor:
    """As much of the room as a block needs; the last ones are smaller."""
    return scratch[:, : clips.stop - clips.start, : rows.stop - rows.start]
