"""What the losses do to one tile of logits, in torch: the reference, on any device.

`triton_math` has the same functions, each one pass over the tile on CUDA. Matrix products are not theirs.

Shape legend: a tile has `rows` queries and `columns` keys. Buffers are tiles whose content does not matter.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Terms = tuple[Float[Tensor, " k"], Float[Tensor, " k"]]
"""(a, b): softmax times gradient is exp(logit + a) * b."""


def tile_math(like: Tensor) -> ModuleType:
    """The module to use for tiles of that kind: `triton_math` where it can run, else this one."""
    if like.is_cuda and like.dtype == torch.float32 and find_spec("triton") is not None:
        from collimate.kernels import triton_math

        return triton_math
    from collimate.kernels import tile_math

    return tile_math


def logsumexp(
    logits: Float[Tensor, "rows columns"], dim: int, buffer: Float[Tensor, "rows columns"]
) -> Float[Tensor, " kept"]:
    """As torch.logsumexp, with the maximum and the logarithm of the sum added in float64."""
    largest = logits.amax(dim, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
    return largest.squeeze(dim).double() + torch.sub(logits, largest, out=buffer).exp_().sum(dim).double().log_()


def softmax_gradient(
    cosines: Float[Tensor, "rows columns"],
    scale: Float[Tensor, ""],
    kept: Bool[Tensor, "rows columns"] | None,
    row_terms: Terms,
    column_terms: Terms,
    out: Float[Tensor, "rows columns"],
    buffer: Float[Tensor, "rows columns"],
) -> Float[Tensor, " columns"]:
    """Write the logits' gradient, the sum of what comes by rows and what by columns, to `out`.

    Returns:
        the part that comes by columns times the cosines, summed over rows.
    """
    logits = torch.mul(cosines, scale, out=buffer)  # rounded as in the forward sweep, or shares would not add up to 1
    masked_(logits, kept, -torch.inf)
    torch.add(logits, column_terms[0], out=out).exp_().mul_(column_terms[1])
    by_column = torch.linalg.vecdot(out, cosines, dim=0)
    out.addcmul_(logits.add_(row_terms[0][:, None]).exp_(), row_terms[1][:, None])
    return by_column


def softplus_and_gradient_(
    logits: Float[Tensor, "rows columns"],
    weights: Float[Tensor, " rows"],
    buffers: list[Float[Tensor, "rows columns"]],
) -> Float[Tensor, " rows"]:
    """The sum over each row of softplus(l) = max(l, 0) + log1p(exp -|l|); logits become weights * sigmoid(l).

    torch's softplus and log1p take several times as long as its exp and log on a CPU, so log1p(z) is written as
    log(u) + (z - (u - 1)) / u with u the rounded 1 + z: the second term is what the rounding took away.
    """
    z, u, rest = buffers
    torch.abs(logits, out=z).neg_().exp_()
    torch.add(z, 1, out=u)
    z.sub_(torch.sub(u, 1, out=rest)).div_(u)
    sums = u.log_().add_(z).add_(torch.clamp_min(logits, 0, out=rest)).sum(1)
    logits.sigmoid_().mul_(weights[:, None])
    return sums


def masked_(tile: Float[Tensor, "rows columns"], kept: Bool[Tensor, "rows columns"] | None, value: float) -> None:
    """Set, in place, what does not take part."""
    if kept is not None:
        tile.masked_fill_(~kept, value)
