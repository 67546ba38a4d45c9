"""Alignment of two sequences by optimal transport, and by connectionist temporal classification.

Le et al. 2023, Pre-training for speech translation: CTC meets optimal transport, arXiv 2301.11716, section 3; the
divergence is that of Feydy et al. 2019, arXiv 1810.08278, with the schedule of geomloss' `SamplesLoss("sinkhorn")`.

For points x_i and y_j of one sample, uniform weights a_i = 1/S, b_j = 1/T, the cost C(x, y) = |x - y|^p / p, and

    softmin_ε(C, h)_i = -ε log Σ_j exp(h_j - C_ij / ε),

the potentials f, g begin with h = log b and log a at ε = d^p, d the diagonal of the sample's bounding box. At each of
the temperatures d^p, then p ln d, p ln d + p ln σ, ... down to p ln blur, exponentiated, then blur^p,

    f <- (f + softmin_ε(C_xy, log b + g / ε)) / 2        g <- (g + softmin_ε(C_yx, log a + f / ε)) / 2

at once, and one whole step ends it. With the same of x and x, y and y, which take away what blurring adds,

    W = Σ_i a_i (f_i - f^xx_i) + Σ_j b_j (g_j - g^yy_j).

The schedule does not run to convergence: it is part of the definition. The gradient is that of the last step, its
potentials and the other points held: with P_ij the softmax that its softmin takes,

    ∂W/∂x_i = a_i [ Σ_j P^xy_ij ∇C(x_i, y_j) - Σ_j P^xx_ij ∇C(x_i, x_j) ].

Departures, none in the numbers of a sample alone: samples are computed side by side, each with its own diameter and
schedule, where the released code mixes them or gives padding a weight; and the gradient is written out, so that nothing
of the iterations is kept.

Shape legend: B samples, S and T points of both sides, D width, V ids of the vocabulary, N labels, K temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import ctc_loss, log_softmax
from torch.nn.functional import normalize as to_unit

COSTS = 2**24  # ours: costs held at a time, 64 MiB; more are computed block by block
NEAREST = 1e-8  # geomloss: squared distances below it count as this where p = 1, and have no gradient
SMALLEST = 1e-3  # ours: a cloud's diameter is at least so much of the blur, for points that coincide


def sinkhorn_divergences(
    x: Float[Tensor, "B S D"],
    y: Float[Tensor, "B T D"],
    x_mask: Bool[Tensor, "B S"] | None = None,
    y_mask: Bool[Tensor, "B T"] | None = None,
    *,
    p: int = 2,
    blur: float = 0.05,
    scaling: float = 0.5,
    position_weight: float = 0.0,
    normalize: bool = False,
    diameter: float | None = None,
    costs: int = COSTS,
) -> Float[Tensor, " B"]:
    """W of each sample.

    Args:
        x, y: the points, any floating dtype; the arithmetic is float32, or float64 for float64, also under autocast.
        x_mask, y_mask: True where a point is real; all are if None.
        p: 2 or 1, of the cost.
        blur: the scale, in the points' own units, below which the two sides are not told apart.
        scaling: σ, by which the scale shrinks from one step to the next, in (0, 1).
        position_weight: λ; appends λ i / (S - 1) and λ j / (T - 1) to the points, which makes crossing alignments
            dear. Left out where a side has one point.
        normalize: bring the points to unit length first.
        diameter: d of all samples; each sample's own if None. One for all makes results comparable with code that takes
            it of a whole batch; a bound that is not met costs steps only.
        costs: how many costs are held at a time; fewer take less memory, and longer where they do not suffice.

    Returns:
        W, float32 (float64 for float64 points). It is 0 where a side has no point, and not negative but for rounding.

    Raises:
        ValueError: the shapes do not fit each other, or a setting has no meaning.
    """
    _check(x, y, x_mask, y_mask, p, blur, scaling, position_weight)
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    masks = [
        torch.ones(points.shape[:2], dtype=torch.bool, device=points.device) if mask is None else mask
        for points, mask in ((x, x_mask), (y, y_mask))
    ]
    with torch.autocast(x.device.type, enabled=False):
        points = [to_unit(each.to(dtype), dim=-1) if normalize else each.to(dtype) for each in (x, y)]
        if position_weight > 0:
            points = _with_positions(points, masks, position_weight)
        return _Divergences.apply(*points, *masks, p, blur, scaling, diameter, costs)  # type: ignore[return-value]


def ctc_losses(
    logits: Float[Tensor, "B S V"],
    labels: Int[Tensor, "B N"],
    mask: Bool[Tensor, "B S"] | None = None,
    label_mask: Bool[Tensor, "B N"] | None = None,
    *,
    blank: int,
) -> Float[Tensor, " B"]:
    """-log of the probability of each sample's labels, over all their alignments (Graves et al. 2006).

    Args:
        logits: not normalised, any floating dtype; the arithmetic is float32, or float64 for float64.
        labels: the ids, each sample's real ones in front. None of them is `blank`.
        mask: True where a frame is real, in front; all are if None.
        label_mask: True where a label is real; all are if None.
        blank: the id of the blank.

    Returns:
        the losses. One is 0, without gradient, where there is no alignment, for the frames are fewer than the labels
        and the blanks between equal ones; `is_alignable` tells.
    """
    frames, count = _lengths(logits, mask), _lengths(labels, label_mask)
    with torch.autocast(logits.device.type, enabled=False):
        scores = log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return ctc_loss(scores.transpose(0, 1), labels, frames, count, blank, reduction="none", zero_infinity=True)


def is_alignable(
    labels: Int[Tensor, "B N"], mask: Bool[Tensor, "B S"], label_mask: Bool[Tensor, "B N"]
) -> Bool[Tensor, " B"]:
    """Whether there are frames enough for a sample's labels: one for each, and one between equal neighbours."""
    again = (labels[:, 1:] == labels[:, :-1]) & label_mask[:, 1:]
    return mask.sum(1) >= label_mask.sum(1) + again.sum(1)


def _check(x: Tensor, y: Tensor, x_mask: Any, y_mask: Any, p: int, blur: float, scaling: float, weight: float) -> None:
    if x.ndim != 3 or y.ndim != 3 or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        raise ValueError(
            f"Points are (samples, points, width), equally many samples of one width; got {tuple(x.shape)} and "
            f"{tuple(y.shape)}. Bring both sides to one width by adapters."
        )
    for name, points, mask in (("x", x, x_mask), ("y", y, y_mask)):
        if mask is not None and mask.shape != points.shape[:2]:
            raise ValueError(
                f"{name}_mask is {tuple(mask.shape)}; it says of each of {tuple(points.shape[:2])} points."
            )
    if p not in (1, 2):
        raise ValueError(f"p is 1 or 2, not {p}.")
    if blur <= 0 or not 0 < scaling < 1 or weight < 0:
        raise ValueError(
            f"blur must be positive, scaling between 0 and 1, position_weight not negative; got {blur:g}, {scaling:g}, "
            f"{weight:g}."
        )


def _lengths(rows: Tensor, mask: Tensor | None) -> Int[Tensor, " B"]:
    return torch.full(rows.shape[:1], rows.shape[1], device=rows.device) if mask is None else mask.sum(1)


def _with_positions(points: list[Tensor], masks: list[Tensor], weight: float) -> list[Tensor]:
    """The points with one coordinate more; 0 for all where a side has one point."""
    lengths = [mask.sum(1, keepdim=True) for mask in masks]
    several = (lengths[0] > 1) & (lengths[1] > 1)
    placed = []
    for each, mask, length in zip(points, masks, lengths, strict=True):
        place = (mask.cumsum(1) - 1).to(each.dtype) / (length - 1).clamp_min(1)
        placed.append(torch.cat([each, (weight * place * several)[..., None]], -1))
    return placed


class _Divergences(torch.autograd.Function):
    """The values and, at once, their gradients: what backward needs is of the points' own size."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        x_mask: Tensor,
        y_mask: Tensor,
        p: int,
        blur: float,
        scaling: float,
        diameter: float | None,
        costs: int,
    ) -> Tensor:
        values, x_grad, y_grad = x.new_zeros(x.shape[0]), torch.zeros_like(x), torch.zeros_like(y)
        lengths = torch.stack([x_mask.sum(1), y_mask.sum(1)])
        for rows in _groups(lengths, costs):
            x_most, y_most = (_last(mask[rows]) for mask in (x_mask, y_mask))
            some = _Clouds(
                x[rows, :x_most], y[rows, :y_most], x_mask[rows, :x_most], y_mask[rows, :y_most], p, blur, costs
            )
            values[rows], x_grad[rows, :x_most], y_grad[rows, :y_most] = some.solve(scaling, diameter)
        ctx.save_for_backward(x_grad, y_grad)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_grad, y_grad = ctx.saved_tensors
        return grad[:, None, None] * x_grad, grad[:, None, None] * y_grad, *[None] * 7


def _groups(lengths: Int[Tensor, "2 B"], costs: int) -> Iterator[Tensor]:
    """Samples with points on both sides, those of like length together, as many as `costs` allow, but at least one."""
    sizes = lengths.amax(0).tolist()
    there = (lengths > 0).all(0).tolist()
    order = sorted((place for place, has in enumerate(there) if has), key=lambda place: -sizes[place])
    while order:
        count = max(1, costs // (4 * sizes[order[0]] ** 2))
        yield torch.tensor(order[:count], device=lengths.device)
        order = order[count:]


def _last(mask: Tensor) -> int:
    """How many positions hold all real ones."""
    return int(mask.any(0).nonzero().max()) + 1


class _Clouds:
    """Two clouds of points for each of a few samples, and the four costs between them."""

    def __init__(self, x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor, p: int, blur: float, costs: int) -> None:
        self.p, self.blur = p, blur
        every, real = torch.cat([x, y], 1), torch.cat([x_mask, y_mask], 1)[..., None]
        low, high = (every.masked_fill(~real, sign * torch.inf) for sign in (1, -1))
        low, high = low.amin(1, keepdim=True), high.amax(1, keepdim=True)
        self.diameter = (high - low)[:, 0].norm(dim=1)
        # Distances do not know where the origin is, and products of small numbers round less.
        middle = (low + high) / 2
        x, y = ((each - middle).masked_fill(~mask[..., None], 0) for each, mask in ((x, x_mask), (y, y_mask)))
        self.a, self.b = (mask / mask.sum(1, keepdim=True) for mask in (x_mask.to(x), y_mask.to(y)))
        held = 4 * x.shape[0] * max(x.shape[1], y.shape[1]) ** 2 <= costs
        block = None if held else max(1, costs // (4 * x.shape[0] * max(x.shape[1], y.shape[1])))
        self.xy, self.yx, self.xx, self.yy = (
            _Costs(one, other, p, block) for one, other in ((x, y), (y, x), (x, x), (y, y))
        )

    def solve(self, scaling: float, diameter: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """W of each sample, and its gradients with respect to both clouds."""
        a, b = self.a.log(), self.b.log()
        first, *rest = self._temperatures(scaling, diameter)
        f, g = self.xy.softmin(first[0], b), self.yx.softmin(first[0], a)
        f_x, g_y = self.xx.softmin(first[0], a), self.yy.softmin(first[0], b)
        for epsilon, going in (first, *rest):
            new = (
                self.xy.softmin(epsilon, b + g / epsilon),
                self.yx.softmin(epsilon, a + f / epsilon),
                self.xx.softmin(epsilon, a + f_x / epsilon),
                self.yy.softmin(epsilon, b + g_y / epsilon),
            )
            f, g, f_x, g_y = (
                torch.where(going, (old + step) / 2, old) for old, step in zip((f, g, f_x, g_y), new, strict=True)
            )
        epsilon = torch.full_like(f[:, :1], self.blur**self.p)
        (f_end, f_slope), (g_end, g_slope), (f_x, x_slope), (g_y, y_slope) = (
            costs.softmin_and_slope(epsilon, weights + potential / epsilon)
            for costs, weights, potential in (
                (self.xy, b, g),
                (self.yx, a, f),
                (self.xx, a, f_x),
                (self.yy, b, g_y),
            )
        )
        values = (self.a * (f_end - f_x)).sum(1) + (self.b * (g_end - g_y)).sum(1)
        return values, self.a[..., None] * (f_slope - x_slope), self.b[..., None] * (g_slope - y_slope)

    def _temperatures(
        self, scaling: float, diameter: float | None
    ) -> list[tuple[Float[Tensor, "B 1"], Bool[Tensor, "B 1"]]]:
        """The temperature of each step, and which samples still take it: a wide cloud takes more steps."""
        own = self.diameter if diameter is None else torch.full_like(self.diameter, diameter)
        start, stop, step = own.clamp_min(SMALLEST * self.blur).double().log(), math.log(self.blur), math.log(scaling)
        between = ((stop - start) / step).ceil().clamp_min(0)  # as many as numpy.arange has
        steps = torch.arange(int(between.max()) + 2, device=start.device, dtype=start.dtype)[:, None]
        scale = torch.where(steps == 0, start, start + (steps - 1) * step)
        scale = torch.where(steps > between, stop, scale)
        epsilon = (self.p * scale).exp().to(self.diameter.dtype)
        return list(zip(epsilon[..., None], (steps <= between + 1)[..., None], strict=True))


class _Costs:
    """C of all pairs of two clouds, held whole where `block` is None, else made anew for so many rows at a time."""

    def __init__(self, x: Tensor, y: Tensor, p: int, block: int | None) -> None:
        self.x, self.y, self.p = x, y, p
        self.block = block or x.shape[1]
        self.x_square, self.y_square = x.square().sum(-1), y.square().sum(-1)
        self.held = self._of(slice(None)) if block is None else None

    def softmin(self, epsilon: Float[Tensor, "B 1"], h: Float[Tensor, "B T"]) -> Float[Tensor, "B S"]:
        parts = [self._exponents(rows, epsilon, h).logsumexp(2) for rows in self._rows()]
        return -epsilon * torch.cat(parts, 1)

    def softmin_and_slope(
        self, epsilon: Float[Tensor, "B 1"], h: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S D"]]:
        """The softmin, and its gradient with respect to the points of its rows."""
        values, slopes = [], []
        for rows in self._rows():
            exponents = self._exponents(rows, epsilon, h)
            values.append(-epsilon * exponents.logsumexp(2))
            share = exponents.softmax(2)
            if self.p == 1:  # ∇C = (x - y) / |x - y|
                squares = self._squares(rows)
                share = torch.where(squares > NEAREST, share / squares.clamp_min(NEAREST).sqrt(), 0.0)
            slopes.append(share.sum(2, keepdim=True) * self.x[:, rows] - share @ self.y)
        return torch.cat(values, 1), torch.cat(slopes, 1)

    def _rows(self) -> Iterator[slice]:
        for first in range(0, self.x.shape[1], self.block):
            yield slice(first, first + self.block)

    def _exponents(self, rows: slice, epsilon: Tensor, h: Tensor) -> Float[Tensor, "B s T"]:
        costs = self._of(rows) if self.held is None else self.held[:, rows]
        return h[:, None] - costs / epsilon[..., None]

    def _of(self, rows: slice) -> Float[Tensor, "B s T"]:
        squares = self._squares(rows)
        return squares / 2 if self.p == 2 else squares.clamp_min(NEAREST).sqrt()

    def _squares(self, rows: slice) -> Float[Tensor, "B s T"]:
        products = self.x[:, rows] @ self.y.mT
        return (self.x_square[:, rows, None] + self.y_square[:, None] - 2 * products).clamp_min(0)
