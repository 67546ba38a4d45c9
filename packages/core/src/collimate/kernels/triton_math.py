"""`tile_math` in Triton: one pass over a float32 tile each. Imported on CUDA only.

Shape legend: a tile has `rows` queries and `columns` keys; a program holds a block of R x C of it at a time.
"""

# A kernel call takes numbers where the kernel is annotated constexpr.
# pyright: reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from collimate.kernels.tile_math import Terms

ROW_BLOCK, COLUMN_BLOCK = 16, 256  # for programs that own rows: neighbouring threads read neighbouring columns
TALL_BLOCK, NARROW_BLOCK = 64, 64  # for programs that own columns


def logsumexp(
    logits: Float[Tensor, "rows columns"], dim: int, buffer: Float[Tensor, "rows columns"]
) -> Float[Tensor, " kept"]:
    along, across = (logits, (ROW_BLOCK, COLUMN_BLOCK)) if dim == 1 else (logits.T, (NARROW_BLOCK, TALL_BLOCK))
    out = logits.new_empty(along.shape[0], dtype=torch.float64)
    grid = (triton.cdiv(along.shape[0], across[0]),)
    _logsumexp[grid](along, out, *along.shape, *along.stride(), R=across[0], C=across[1])
    return out


@triton.jit
def _logsumexp(tile, out, rows, columns, row_stride, column_stride, R: tl.constexpr, C: tl.constexpr):
    row = tl.program_id(0) * R + tl.arange(0, R)
    largest = tl.full((R,), -float("inf"), tl.float32)
    total = tl.zeros((R,), tl.float32)
    for start in range(0, columns, C):
        column = start + tl.arange(0, C)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        place = row[:, None] * row_stride + column[None, :] * column_stride
        logits = tl.load(tile + place, inside, other=-float("inf"))
        grown = tl.maximum(largest, tl.max(logits, 1))
        shift = tl.where(grown == -float("inf"), 0.0, grown)  # while nothing was kept, exp(-inf) rather than NaN
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(logits - shift[:, None]), 1)
        largest = grown
    tl.store(out + row, largest.to(tl.float64) + tl.log(total.to(tl.float64)), row < rows)


def softmax_gradient(
    cosines: Float[Tensor, "rows columns"],
    scale: Float[Tensor, ""],
    kept: Bool[Tensor, "rows columns"] | None,
    row_terms: Terms,
    column_terms: Terms,
    out: Float[Tensor, "rows columns"],
    buffer: Float[Tensor, "rows columns"],
) -> Float[Tensor, " columns"]:
    rows, columns = cosines.shape
    by_column = cosines.new_empty(columns)
    mask = cosines if kept is None else kept.contiguous().view(torch.uint8)  # not read where all are kept
    _softmax_gradient[(triton.cdiv(columns, NARROW_BLOCK),)](
        cosines, out, mask, scale, *row_terms, *column_terms, by_column, rows, columns,
        MASKED=kept is not None, R=TALL_BLOCK, C=NARROW_BLOCK,
    )  # fmt: skip
    return by_column


@triton.jit
def _softmax_gradient(
    cosines_at, out, mask, scale_at, row_shift, row_weight, column_shift, column_weight, by_column, rows, columns,
    MASKED: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    scale = tl.load(scale_at)
    column = tl.program_id(0) * C + tl.arange(0, C)
    columns_shift = tl.load(column_shift + column, column < columns, other=0.0)
    columns_weight = tl.load(column_weight + column, column < columns, other=0.0)
    sums = tl.zeros((C,), tl.float32)
    for start in range(0, rows, R):
        row = start + tl.arange(0, R)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        place = row[:, None] * columns + column[None, :]
        rows_shift = tl.load(row_shift + row, row < rows, other=0.0)
        rows_weight = tl.load(row_weight + row, row < rows, other=0.0)
        cosines = tl.load(cosines_at + place, inside, other=0.0)
        logits = cosines * scale
        if MASKED:
            logits = tl.where(tl.load(mask + place, inside, other=0) != 0, logits, -float("inf"))
        gradient = tl.exp(logits + columns_shift[None, :]) * columns_weight[None, :]
        sums += tl.sum(tl.where(inside, gradient * cosines, 0.0), 0)
        gradient += tl.exp(logits + rows_shift[:, None]) * rows_weight[:, None]
        tl.store(out + place, gradient, inside)
    tl.store(by_column + column, sums, column < columns)


def softplus_and_gradient_(
    logits: Float[Tensor, "rows columns"],
    weights: Float[Tensor, " rows"],
    buffers: list[Float[Tensor, "rows columns"]],
) -> Float[Tensor, " rows"]:
    rows, columns = logits.shape
    sums = logits.new_empty(rows)
    _softplus_and_gradient[(triton.cdiv(rows, ROW_BLOCK),)](
        logits, weights, sums, rows, columns, R=ROW_BLOCK, C=COLUMN_BLOCK
    )
    return sums


@triton.jit
def _softplus_and_gradient(tile, weights, sums, rows, columns, R: tl.constexpr, C: tl.constexpr):
    row = tl.program_id(0) * R + tl.arange(0, R)
    weight = tl.load(weights + row, row < rows, other=0.0)
    total = tl.zeros((R,), tl.float32)
    for start in range(0, columns, C):
        column = start + tl.arange(0, C)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        place = row[:, None] * columns + column[None, :]
        logits = tl.load(tile + place, inside, other=-float("inf"))
        z = tl.exp(-tl.abs(logits))
        u = 1.0 + z
        total += tl.sum(tl.maximum(logits, 0.0) + tl.log(u) + (z - (u - 1.0)) / u, 1)
        tl.store(tile + place, tl.where(logits >= 0, 1.0, z) / u * weight[:, None], inside)
    tl.store(sums + row, total, row < rows)
