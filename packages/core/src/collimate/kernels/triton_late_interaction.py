"""`late_interaction` in Triton: products of tokens that never leave the chip. Imported on CUDA only.

Forward, a program multiplies one query with some keys, a block of its tokens at a time, and keeps what is highest along
both sides. Backward, a program owns some tokens of a sample and goes through all samples of the other side: which rows
it needs, and how much of each, is a matrix that is nearly all zeros, but made on the chip and fed to the tensor cores
it is faster than fetching rows one by one. Tokens are read as they are, and brought to unit length by scaling products.

Shape legend: n queries of P tokens, m keys of L tokens, D width; N samples of T tokens on the own side and M of U on
the other; a program holds a block of R x C of products.
"""

# A kernel call takes numbers where the kernel is annotated constexpr, and num_warps, which is no argument of it.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from collimate.kernels.late_interaction import Best, Side

LONGEST_KEY, WIDEST = 256, 256  # a key's columns, and in backward a token's width, are one block
COLUMNS = 128  # of products that a program holds; of shorter keys, several
ROWS, LONG_ROWS = 128, 32  # with so many columns, and with more
OWN, OTHERS = 64, 32  # tokens of either side that meet in backward; half of the own in float32
DEPTH = 128  # bytes of a token in one step of a product


def fits(x: Side, y: Side) -> bool:
    """Whether these kernels can do it; y is the side with the shorter samples."""
    return (
        x.tokens.dtype == y.tokens.dtype
        and x.tokens.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and y.tokens.shape[1] <= LONGEST_KEY
        and x.tokens.shape[2] <= WIDEST
    )


def sweep(x: Side, y: Side, best: Best | None) -> tuple[Float[Tensor, "n m"], Float[Tensor, "m n"]]:
    query, key = x.tokens.contiguous(), y.tokens.contiguous()
    by_query = query.new_empty(len(query), len(key), dtype=torch.float32)
    by_key = query.new_empty(len(key), len(query), dtype=torch.float32)
    query_real, key_real = _real(x), _real(y)
    query_inverse, key_inverse = _inverse(x), _inverse(y)
    query_lengths = _lengths(x)
    places = best or (query_real, key_real)  # not written to where they are not wanted
    for first, last in _spans(y.lengths):  # keys of like length, so that short ones are not padded to the longest
        width = _power(y.lengths[last - 1])
        keys = max(1, COLUMNS // width)
        _forward[(len(query), triton.cdiv(last - first, keys))](
            query, key, query_inverse, key_inverse, query_real, key_real, query_lengths, by_query, by_key, *places,
            first, last, len(query), query.shape[1], len(key), key.shape[1], query.shape[2],
            KEEP=best is not None, R=ROWS if keys * width <= COLUMNS else LONG_ROWS, KEYS=keys, WIDTH=width,
            DEPTH=min(DEPTH // query.itemsize, _power(query.shape[2])), PRECISION=_precision(query), num_warps=8,
        )  # fmt: skip
    return by_query.div_(x.count()), by_key.div_(y.count())


@triton.jit
def _forward(
    query, key, query_inverse, key_inverse, query_real, key_real, query_lengths, by_query, by_key, best_query, best_key,
    first, last, n, P, m, L, D,
    KEEP: tl.constexpr, R: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)  # 64 bits as far as samples are counted, 32 within them
    j = (first + tl.program_id(1) * KEYS).to(tl.int64)
    query += i * P * D
    query_inverse += i * P
    query_real += i * P
    key += j * L * D
    key_inverse += j * L
    key_real += j * L
    by_query += i * m + j
    by_key += j * n + i
    best_query += i * P * m + j
    best_key += j * L * n + i
    own_key = tl.arange(0, KEYS)
    column = tl.arange(0, KEYS * WIDTH)
    keys_inside = own_key < last - j
    columns_inside = (column // WIDTH < last - j) & (column % WIDTH < L)
    key_row = column // WIDTH * L + column % WIDTH
    columns_real = tl.load(key_real + key_row, columns_inside, other=0) != 0
    columns_inverse = tl.load(key_inverse + key_row, columns_inside, other=0.0)
    key_top = tl.full((KEYS * WIDTH,), -float("inf"), tl.float32)
    key_place = tl.zeros((KEYS * WIDTH,), tl.int32)
    total = tl.zeros((KEYS,), tl.float32)
    length = tl.load(query_lengths + i)
    for start in range(0, length, R):
        row = start + tl.arange(0, R)
        rows_real = tl.load(query_real + row, row < length, other=0) != 0
        rows_inverse = tl.load(query_inverse + row, row < length, other=0.0)
        products = tl.zeros((R, KEYS * WIDTH), tl.float32)
        for step in range(0, D, DEPTH):
            depth = step + tl.arange(0, DEPTH)
            left = tl.load(
                query + row[:, None] * D + depth[None, :], rows_real[:, None] & (depth < D)[None, :], other=0.0
            )
            right = tl.load(
                key + key_row[None, :] * D + depth[:, None], columns_real[None, :] & (depth < D)[:, None], other=0.0
            )
            products = tl.dot(left, right, products, input_precision=PRECISION)
        products = products * rows_inverse[:, None] * columns_inverse[None, :]
        products = tl.where(rows_real[:, None] & columns_real[None, :], products, -float("inf"))
        top, found = tl.max(products, 0, return_indices=True)
        key_place = tl.where(top > key_top, start + found, key_place)
        key_top = tl.maximum(key_top, top)
        query_top, query_place = tl.max(tl.reshape(products, (R, KEYS, WIDTH)), 2, return_indices=True)
        total += tl.sum(tl.where(rows_real[:, None], query_top, 0.0), 0)
        if KEEP:
            inside = (row < length)[:, None] & keys_inside[None, :]
            tl.store(best_query + row[:, None] * m + own_key[None, :], query_place, inside)
    tl.store(by_query + own_key, total, keys_inside)
    sums = tl.sum(tl.reshape(tl.where(columns_real, key_top, 0.0), (KEYS, WIDTH)), 1)
    tl.store(by_key + own_key * n, sums, keys_inside)
    if KEEP:
        tl.store(best_key + key_row * n, key_place, columns_inside)


def sweep_backward(
    own: Side,
    other: Side,
    best: tuple[Int[Tensor, "N T M"], Int[Tensor, "M U N"]],
    grads: tuple[Float[Tensor, "N M"] | None, Float[Tensor, "M N"] | None],
) -> Float[Tensor, "N T D"]:
    tokens, others = own.tokens.contiguous(), other.tokens.contiguous()
    gradient = torch.empty_like(tokens)
    (samples, length, width), (other_samples, other_length, _) = tokens.shape, others.shape
    shares = [
        tokens.new_zeros(shape, dtype=torch.float32) if grad is None else (grad / side.count()).contiguous()
        for grad, side, shape in zip(
            grads, (own, other), ((samples, other_samples), (other_samples, samples)), strict=True
        )
    ]
    half = tokens.itemsize == 2
    rows, columns = min(OWN if half else OWN // 2, _power(length)), min(OTHERS, _power(other_length))
    _gradient[(samples, triton.cdiv(length, rows))](
        tokens, others, _inverse(own), _inverse(other), _real(own), _real(other), _lengths(own), _lengths(other),
        *shares, *best, gradient, samples, length, other_samples, other_length, width,
        NORMALIZE=own.normalize, R=rows, C=columns, WIDTH=_power(width),
        HALF=tokens.dtype == torch.bfloat16, PRECISION=_precision(tokens), num_warps=8,
    )  # fmt: skip
    return gradient


@triton.jit
def _gradient(
    own, other, own_inverse, other_inverse, own_real, other_real, own_lengths, other_lengths,
    own_share, other_share, own_best, other_best, gradient, n, P, m, L, D,
    NORMALIZE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)  # 64 bits as far as samples are counted, 32 within them
    own += i * P * D
    gradient += i * P * D
    own_best += i * P * m
    own_share += i * m
    other_share += i
    other_best += i
    row = tl.program_id(1) * R + tl.arange(0, R)
    depth = tl.arange(0, WIDTH)
    rows_real = tl.load(own_real + i * P + row, row < P, other=0) != 0
    total = tl.zeros((R, WIDTH), tl.float32)
    if tl.program_id(1) * R < tl.load(own_lengths + i):
        for _ in range(m):
            share, back = tl.load(own_share), tl.load(other_share)
            found = tl.load(own_best + row * m, rows_real, other=-1).to(tl.int32)
            for start in range(0, tl.load(other_lengths), C):
                column = start + tl.arange(0, C)
                columns_real = tl.load(other_real + column, column < L, other=0) != 0
                inverse = tl.load(other_inverse + column, column < L, other=0.0)
                found_back = tl.load(other_best + column * n, columns_real, other=-1).to(tl.int32)
                weights = tl.where(found[:, None] == column[None, :], share, 0.0)
                weights += tl.where(found_back[None, :] == row[:, None], back, 0.0)
                weights *= inverse[None, :]
                tokens = tl.load(
                    other + column[:, None] * D + depth[None, :],
                    columns_real[:, None] & (depth < D)[None, :],
                    other=0.0,
                )
                if HALF:
                    total = tl.dot(weights.to(tokens.dtype), tokens, total)
                else:  # float16 would lose small weights
                    total = tl.dot(weights, tokens.to(tl.float32), total, input_precision=PRECISION)
            other += L * D
            other_inverse += L
            other_real += L
            other_lengths += 1
            other_best += L * n
            own_best += 1
            own_share += 1
            other_share += n
    place = row[:, None] * D + depth[None, :]
    inside = (row < P)[:, None] & (depth < D)[None, :]
    if NORMALIZE:
        inverse = tl.load(own_inverse + i * P + row, row < P, other=0.0)
        unit = tl.load(own + place, inside & rows_real[:, None], other=0.0).to(tl.float32) * inverse[:, None]
        along = tl.sum(total * unit, 1)
        total = (total - along[:, None] * unit) * inverse[:, None]
    tl.store(gradient + place, tl.where(rows_real[:, None], total, 0.0), inside)


def _real(side: Side) -> Int[Tensor, "N T"]:
    if side.mask is None:
        return torch.ones(side.tokens.shape[:2], dtype=torch.uint8, device=side.tokens.device)
    return side.mask.contiguous().view(torch.uint8)


def _inverse(side: Side) -> Float[Tensor, "N T"]:
    """1 over the length of each token, and 0 for zero vectors, as `tiles.unit` has it, and for padding; or 1."""
    if not side.normalize:
        return torch.ones(side.tokens.shape[:2], dtype=torch.float32, device=side.tokens.device)
    length = torch.linalg.vector_norm(side.tokens, dim=2, dtype=torch.float32)
    inverse = length.reciprocal().masked_fill_(length < 1e-12, 0.0)
    return inverse if side.mask is None else inverse.masked_fill_(~side.mask, 0.0)


def _lengths(side: Side) -> Int[Tensor, " N"]:
    return torch.tensor(side.lengths, dtype=torch.int32, device=side.tokens.device)


def _spans(lengths: list[int]) -> list[tuple[int, int]]:
    """Samples, which are in order of their length, whose lengths have one power of two above them."""
    widths = [_power(length) for length in lengths]
    firsts = [place for place, width in enumerate(widths) if place == 0 or width != widths[place - 1]]
    return list(zip(firsts, [*firsts[1:], len(widths)], strict=True))


def _power(size: int) -> int:
    """The power of two that holds it, and that a tensor core's operand may have."""
    return max(16, 1 << (size - 1).bit_length())


def _precision(tokens: Tensor) -> str:
    """Of products of float32, as torch is told to take them; for float16, to which TF32 gives all its digits, TF32."""
    if tokens.dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "tf32x3" if torch.version.hip is None else "ieee"
