"""Late interaction over all pairs of token sets, in both directions out of one product of the tokens.

With unit tokens x_ip of query i, of which the set P_i is real, and y_jl of key j, of which L_j is real:

    by_query_ij = 1/|P_i| Σ_{p in P_i} max_{l in L_j} <x_ip, y_jl>
    by_key_ji   = 1/|L_j| Σ_{l in L_j} max_{p in P_i} <x_ip, y_jl>

A maximum sends its gradient to one place, so all that is kept for backward is where each was: small integers instead
of the products. Forward multiplies the tokens block by block and reads each block along both sides while it is in
cache; backward multiplies nothing, for each token's gradient is a sum of a few rows of the other side. Samples go in
order of their length and a block is no longer than its longest sample, so that padding costs next to nothing.

Shape legend: n queries of P tokens, m keys of L tokens, D width; N samples of T tokens on one side and M of U on the
other, whichever they are; k samples in a part of a side, W the longest of them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from collimate.kernels.threads import for_each
from collimate.kernels.tiles import unit, unit_backward_

Block = tuple[int, int]
"""About how many tokens of either side meet at a time; a sample is never cut."""

CPU_PRODUCTS: Block = (256, 1024)  # 1 MiB in float32: in a core's cache while it is read along both sides
CPU_SUMS: Block = (512, 512)  # 2 MiB of indices and rows a thread; with twice as many it takes a third less time
GPU_BLOCK: Block = (4096, 4096)  # large enough to hide the launches
HELD = 2**16  # tokens of keys that are ready at a time, 64 MiB at a width of 256
LANES = 32  # keys at a time: below it torch's reductions over outer dimensions are not vectorised, and 15 times as slow

Best = tuple[Int[Tensor, "n P m"], Int[Tensor, "m L n"]]
"""The place of each maximum: in key j for token p of query i, and in query i for token l of key j."""


def pair_late_interaction(
    query: Float[Tensor, "n P D"],
    key: Float[Tensor, "m L D"],
    query_mask: Bool[Tensor, "n P"] | None = None,
    key_mask: Bool[Tensor, "m L"] | None = None,
    normalize: bool = True,
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "m n"]]:
    """The mean over each query's tokens of their best match in each key, and the same with the sides exchanged.

    Args:
        query, key: any floating dtype; the arithmetic is float32, or float64 for float64 tokens.
        query_mask, key_mask: True where a token is real; None where all are.
        normalize: whether to bring each token to unit length.

    Returns:
        by_query and by_key; float32, or float64. Of several equal maxima one gets the gradient.

    Raises:
        ValueError: shapes that do not fit, or a sample without a real token, for which neither mean is defined.
    """
    _check(query, key, query_mask, key_mask)
    query, query_mask, query_lengths, query_place = _by_length(query, query_mask, "query")
    key, key_mask, key_lengths, key_place = _by_length(key, key_mask, "key")
    sides = (query, query_mask, query_lengths), (key, key_mask, key_lengths)
    if query.shape[1] < key.shape[1]:  # blocks are low and wide where keys are the shorter samples
        by_key, by_query = _PairLateInteraction.apply(*sides[1], *sides[0], normalize)  # type: ignore[misc]
    else:
        by_query, by_key = _PairLateInteraction.apply(*sides[0], *sides[1], normalize)  # type: ignore[misc]
    return _placed(by_query, query_place, key_place), _placed(by_key, key_place, query_place)


class Part(NamedTuple):
    """Some samples of a side.

    Attributes:
        samples: which.
        width: W, the length of the longest; what is cut off is padding.
    """

    samples: slice
    width: int

    @property
    def rows(self) -> int:
        """k * W, the tokens, padding among them."""
        return (self.samples.stop - self.samples.start) * self.width


@dataclass(frozen=True)
class Side:
    """The samples of one side, in order of their length.

    Attributes:
        tokens: as they were given.
        mask: True where a token is real; None where all are.
        lengths: of each sample, up to its last real token; ascending.
        normalize: whether tokens are to be brought to unit length.
    """

    tokens: Float[Tensor, "N T D"]
    mask: Bool[Tensor, "N T"] | None
    lengths: list[int]
    normalize: bool

    def count(self) -> Int[Tensor, "N 1"]:
        """Real tokens of each sample."""
        if self.mask is None:
            return torch.full((len(self.tokens), 1), self.tokens.shape[1], device=self.tokens.device)
        return self.mask.sum(1, keepdim=True)

    def parts(self, tokens: int, multiple: int = 1) -> list[Part]:
        """All samples, about `tokens` tokens at a time; the number of samples is a `multiple` but at the end."""
        found, first, count = [], 0, len(self.lengths)
        while first < count:
            last = min(first + multiple, count)
            while last < count and self._rows(first, min(last + multiple, count)) <= tokens:
                last = min(last + multiple, count)
            found.append(Part(slice(first, last), self.lengths[last - 1]))
            first = last
        return found

    def _rows(self, first: int, last: int) -> int:
        return (last - first) * self.lengths[last - 1]

    def units(self, part: Part) -> tuple[Float[Tensor, "k*W D"], Float[Tensor, "k*W 1"] | None]:
        """The tokens of a part, of unit length if wanted, and the lengths that they had. Padding becomes 0."""
        tokens = self.tokens[part.samples, : part.width]
        if (padded := self.padded(part)) is not None:
            tokens = tokens.masked_fill(padded[:, :, None], 0.0)
        return unit(tokens.flatten(0, 1), self.normalize)

    def padded(self, part: Part) -> Bool[Tensor, "k W"] | None:
        """True where a part is padding; None where it has none."""
        if self.mask is None:
            return None
        padded = ~self.mask[part.samples, : part.width]
        return padded if bool(padded.any()) else None


class Columns(NamedTuple):
    """The tokens of some keys, ready for use, the neighbours of each those of the same place in other keys.

    Attributes:
        part: which keys.
        tokens: of unit length if wanted, float32 or float64.
        padded: True where a token is padding; None where none is.
        bias: what is added to products for padding.
    """

    part: Part
    tokens: Float[Tensor, "W*k D"]
    padded: Bool[Tensor, "k W"] | None
    bias: Float[Tensor, " W*k"] | None


class _PairLateInteraction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        query_mask: Tensor | None,
        query_lengths: list[int],
        key: Tensor,
        key_mask: Tensor | None,
        key_lengths: list[int],
        normalize: bool,
    ) -> tuple[Tensor, Tensor]:
        best = None
        if any(ctx.needs_input_grad):
            longest = max(query.shape[1], key.shape[1])
            dtype = torch.int16 if longest <= torch.iinfo(torch.int16).max else torch.int32
            best = (
                torch.zeros(*query.shape[:2], len(key), dtype=dtype, device=query.device),
                torch.zeros(*key.shape[:2], len(query), dtype=dtype, device=query.device),
            )
            ctx.save_for_backward(query, key, query_mask, key_mask, *best)
        ctx.lengths, ctx.normalize = (query_lengths, key_lengths), normalize
        ctx.set_materialize_grads(False)
        x = Side(query, query_mask, query_lengths, normalize)
        y = Side(key, key_mask, key_lengths, normalize)
        with torch.autocast(query.device.type, enabled=False):
            return _sweeps(x, y).sweep(x, y, best)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_query_grad: Tensor | None, by_key_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, query_mask, key_mask, *best = ctx.saved_tensors
        x = Side(query, query_mask, ctx.lengths[0], ctx.normalize)
        y = Side(key, key_mask, ctx.lengths[1], ctx.normalize)
        with torch.autocast(query.device.type, enabled=False):
            sweeps = _sweeps(x, y)
            query_grad = sweeps.sweep_backward(x, y, (best[0], best[1]), (by_query_grad, by_key_grad))
            key_grad = sweeps.sweep_backward(y, x, (best[1], best[0]), (by_key_grad, by_query_grad))
        return query_grad, None, None, key_grad, None, None, None


def _sweeps(x: Side, y: Side) -> ModuleType:
    """The module to use: `triton_late_interaction` where it can run, else this one."""
    if x.tokens.is_cuda and find_spec("triton") is not None:
        from collimate.kernels import triton_late_interaction

        if triton_late_interaction.fits(x, y):
            return triton_late_interaction
    return sys.modules[__name__]


def sweep(x: Side, y: Side, best: Best | None) -> tuple[Float[Tensor, "n m"], Float[Tensor, "m n"]]:
    """Scores of both directions; where the maxima were is written to `best`."""
    query_tokens, key_tokens = _block(x, CPU_PRODUCTS)
    dtype = torch.promote_types(x.tokens.dtype, torch.float32)
    by_query = x.tokens.new_empty(len(x.lengths), len(y.lengths), dtype=dtype)
    by_key = x.tokens.new_empty(len(y.lengths), len(x.lengths), dtype=dtype)

    def visit(keys: list[Columns], q: Part) -> None:
        query, query_padded = x.units(q)[0], x.padded(q)
        # The same memory for every block: new pages cost as much as what is done to them.
        memory = by_query.new_empty(2, q.rows * max(k.rows for k, *_ in keys))
        for k, key, key_padded, key_bias in keys:
            products, buffer = (half[: q.rows * k.rows].view(q.rows, k.rows) for half in memory)
            torch.mm(query, key.T, out=products)
            if query_padded is not None:
                products += _bias(query_padded, products).view(-1, 1)
            if key_bias is not None:
                products += key_bias
            shape = (-1, q.width, k.width, k.samples.stop - k.samples.start)
            products, buffer = products.view(shape), buffer.view(shape)
            query_top, key_top = products.amax(2), products.amax(1)
            by_query[q.samples, k.samples] = _sums(query_top, query_padded)
            by_key[k.samples, q.samples] = _sums(key_top.permute(2, 1, 0), key_padded)
            if best is not None:
                best[0][q.samples, : q.width, k.samples] = _places(products, query_top, 2, buffer)
                best[1][k.samples, : k.width, q.samples] = _places(products, key_top, 1, buffer).permute(2, 1, 0)

    parts, step = y.parts(key_tokens, LANES), max(1, HELD // key_tokens)
    for first in range(0, len(parts), step):
        keys = [_columns(y, part) for part in parts[first : first + step]]
        for_each(partial(visit, keys), x.parts(query_tokens), x.tokens.device)
    return by_query.div_(x.count()), by_key.div_(y.count())


def _columns(side: Side, part: Part) -> Columns:
    units, padded = side.units(part)[0], side.padded(part)
    columns = units.unflatten(0, (-1, part.width)).transpose(0, 1).flatten(0, 1)
    return Columns(part, columns, padded, None if padded is None else _bias(padded.T, units).flatten())


def _bias(padded: Bool[Tensor, "a b"], like: Tensor) -> Float[Tensor, "a b"]:
    """-inf where a token is padding, 0 where it is real."""
    return like.new_zeros(padded.shape).masked_fill_(padded, -torch.inf)


def _sums(top: Float[Tensor, "k W other"], padded: Bool[Tensor, "k W"] | None) -> Float[Tensor, "k other"]:
    """The sum over real tokens."""
    return (top if padded is None else top.masked_fill(padded[:, :, None], 0.0)).sum(1)


def _places(products: Tensor, top: Tensor, dim: int, buffer: Tensor) -> Tensor:
    """Where along `dim` the maxima are, as floats: a few passes in cache, where torch.max takes four times as long."""
    shape = [-1 if axis == dim else 1 for axis in range(products.ndim)]
    places = torch.arange(products.shape[dim], dtype=products.dtype, device=products.device).view(shape)
    return torch.eq(products, top.unsqueeze(dim), out=buffer).mul_(places).amax(dim)


def sweep_backward(
    own: Side,
    other: Side,
    best: tuple[Int[Tensor, "N T M"], Int[Tensor, "M U N"]],
    grads: tuple[Float[Tensor, "N M"] | None, Float[Tensor, "M N"] | None],
) -> Float[Tensor, "N T D"]:
    """The gradient of one side's tokens: of the queries', or, with all arguments exchanged, of the keys'.

    Args:
        best: the maxima of the own tokens, and of the other side's.
        grads: of the own scores, and of the other side's; None where nothing depends on them.
    """
    own_tokens, other_tokens = _block(own, CPU_SUMS)
    if own.tokens.device.type == "cpu":
        own_tokens = min(own_tokens, sum(own.lengths) // torch.get_num_threads())  # a part for every thread
    by_own, by_other = (
        None if grad is None else grad / side.count() for grad, side in zip(grads, (own, other), strict=True)
    )
    gradient = torch.zeros_like(own.tokens)

    def visit(part: Part) -> None:
        total = gradient.new_zeros(
            part.rows, gradient.shape[2], dtype=torch.promote_types(gradient.dtype, torch.float32)
        )
        for other_part in other.parts(other_tokens):
            rows, _ = other.units(other_part)
            if by_own is not None:
                places, weights = _matches(own, part, other_part, best[0], by_own)
                total += embedding_bag(places, rows, per_sample_weights=weights, mode="sum")
            if by_other is not None:  # each own token gets the rows whose match it is, unequally many
                places, weights = _matches(other, other_part, part, best[1], by_other)
                samples = places.shape[1]
                places, order = places.flatten().sort()
                starts = torch.searchsorted(places, torch.arange(part.rows, dtype=places.dtype, device=places.device))
                weights = weights.flatten().take(order)
                total += embedding_bag(order // samples, rows, starts, per_sample_weights=weights, mode="sum")
        units, length = own.units(part)
        gradient[part.samples, : part.width] = unit_backward_(total, units, length).unflatten(0, (-1, part.width))

    for_each(visit, own.parts(own_tokens), own.tokens.device)
    return gradient


def _matches(
    side: Side,
    part: Part,
    other: Part,
    best: Int[Tensor, "N T M"],
    share: Float[Tensor, "N M"],
) -> tuple[Int[Tensor, "k*W other"], Float[Tensor, "k*W other"]]:
    """For each token of a part and each sample of the other side's part: its match's row there, and what it counts."""
    best = best[part.samples, : part.width, other.samples]
    first = torch.arange(0, other.rows, other.width, dtype=torch.int32, device=best.device)
    weights = share[part.samples, None, other.samples].expand(best.shape)
    if (padded := side.padded(part)) is not None:  # padding has some place too, which may lie behind this part's width
        best, weights = (each.masked_fill(padded[:, :, None], 0) for each in (best, weights))
    return (best + first).flatten(0, 1), weights.reshape(-1, len(first))


def _block(side: Side, on_cpu: Block) -> Block:
    return on_cpu if side.tokens.device.type == "cpu" else GPU_BLOCK


def _check(query: Tensor, key: Tensor, query_mask: Tensor | None, key_mask: Tensor | None) -> None:
    if query.ndim != 3 or key.ndim != 3 or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"Tokens are (samples, tokens, width) of one width; got {tuple(query.shape)} and {tuple(key.shape)}."
        )
    for tokens, mask in ((query, query_mask), (key, key_mask)):
        if mask is not None and mask.shape != tokens.shape[:2]:
            raise ValueError(f"The mask is {tuple(mask.shape)}, the tokens are {tuple(tokens.shape)}.")


def _by_length(
    tokens: Tensor, mask: Tensor | None, name: str
) -> tuple[Tensor, Tensor | None, list[int], Tensor | None]:
    """Samples in order of their length: tokens, mask, lengths, and where each sample went."""
    if mask is None or bool(mask.all()):
        return tokens, None, [tokens.shape[1]] * len(tokens), None
    ends = torch.where(mask, torch.arange(1, mask.shape[1] + 1, device=mask.device), 0).amax(1)
    lengths, order = ends.sort(stable=True)
    found = lengths.tolist()
    if found and found[0] == 0:
        raise ValueError(f"{name} {int(order[0])} has no real token: its mask is False everywhere.")
    if found == ends.tolist():
        return tokens, mask, found, None
    return tokens.index_select(0, order), mask[order], found, order.argsort()


def _placed(scores: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    if rows is not None:
        scores = scores.index_select(0, rows)
    return scores if columns is None else scores.index_select(1, columns)
