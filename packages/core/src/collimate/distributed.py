"""Process groups: the only home of what crosses devices.

Everything here also works where torch.distributed is not initialised, as on one rank, so that no caller ever asks how
many ranks there are. Ranks may hold unequal numbers of rows. `group` is None for all ranks, `LOCAL` for this rank
alone, or any process group.

What is differentiated is exact for the SUM of the ranks' losses, whatever factor each rank puts on its own; the mean
over ranks that DDP takes then gives the gradient of the mean of the ranks' losses. `global_share` turns per-sample
losses into rank losses whose mean over ranks is the mean over all samples.

Shape legend: n rows of this rank, N rows of all ranks in rank order, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from itertools import accumulate
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

T = TypeVar("T")


class Local(Enum):
    """The group of this rank alone."""

    LOCAL = "local"


LOCAL = Local.LOCAL
Group: TypeAlias = dist.ProcessGroup | Local | None


def is_initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank(group: Group = None) -> int:
    """This rank's place in the group; 0 where there is none."""
    several = _several(group)
    return 0 if several is None else dist.get_rank(several)


def world_size(group: Group = None) -> int:
    several = _several(group)
    return 1 if several is None else several.size()


def neighbours(size: int) -> Group:
    """The block of ranks that this rank lies in, where ranks in order are divided into blocks of equal size.

    All ranks must call this, with the same size.

    Args:
        size: of a block, at most: the largest that divides the number of ranks is taken.
    """
    ranks = world_size()
    size = max(each for each in range(1, size + 1) if ranks % each == 0)
    world = dist.group.WORLD if size > 1 else None
    if world is None:
        return LOCAL
    groups = _blocks.setdefault(world, {})
    if size not in groups:
        groups[size] = [dist.new_group(range(first, first + size)) for first in range(0, ranks, size)]
    return groups[size][rank() // size]


# Collectives with gradient --------------------------------------------------------------------------------------


def row_counts(rows: Shaped[Tensor, "n ..."], group: Group = None) -> tuple[int, ...]:
    """The number of rows that each rank holds."""
    several = _several(group)
    if several is None:
        return (rows.shape[0],)
    count = torch.tensor(rows.shape[0], device=rows.device)
    return tuple(_all_gather_even(count, several).tolist())


def own(counts: tuple[int, ...], group: Group = None) -> slice:
    """Where this rank's rows lie among the rows of all ranks."""
    place = rank(group)
    first = sum(counts[:place])
    return slice(first, first + counts[place])


def gather(
    rows: Shaped[Tensor, "n ..."], group: Group = None, counts: tuple[int, ...] | None = None
) -> Shaped[Tensor, "N ..."]:
    """The rows of all ranks in rank order. Backward: each rank gets the sum over ranks of its rows' gradients.

    Args:
        rows: any dtype; all dimensions but the first agree between ranks.
        counts: rows of each rank where already known (it saves an exchange).
    """
    several = _several(group)
    if several is None:
        return rows
    return _Gather.apply(rows, several, counts or row_counts(rows, several))  # type: ignore[return-value]


def column_logsumexp(partial: Float[Tensor, " N"], counts: tuple[int, ...], group: Group = None) -> Float[Tensor, " n"]:
    """Join log-sum-exps of all columns, each taken over one rank's rows; every rank gets its own columns."""
    several = _several(group)
    if several is None:
        return partial
    return _ColumnLogSumExp.apply(partial, counts, several)  # type: ignore[return-value]


def total(value: Float[Tensor, " ..."], group: Group = None) -> Float[Tensor, " ..."]:
    """The sum over ranks. Backward: each rank gets the sum over ranks of the gradients."""
    several = _several(group)
    return value if several is None else _Total.apply(value, several)  # type: ignore[return-value]


def global_share(counts: tuple[int, ...]) -> float:
    """W / N: times the sum of its own samples' losses, a rank's loss; their mean over ranks is the global mean."""
    return len(counts) / max(sum(counts), 1)


def ring(
    block: Float[Tensor, "n D"],
    visit: Callable[[Float[Tensor, "m D"], int, Float[Tensor, "m D"]], None],
    counts: tuple[int, ...],
    group: Group = None,
) -> Float[Tensor, "n D"]:
    """Carry every rank's block round all ranks, one at a time; a rank never holds more than two.

    Args:
        block: this rank's rows.
        visit: `visit(block, first, gradient)` works on the block of some rank, whose rows begin at row `first` of all
            ranks, and adds to its gradient, which travels with it.

    Returns:
        the gradient of this rank's own block, summed over all ranks.
    """
    several = _several(group)
    if several is None:
        gradient = torch.zeros_like(block)
        visit(block, 0, gradient)
        return gradient
    ranks, owner, longest = several.size(), dist.get_rank(several), max(counts)
    firsts = [0, *accumulate(counts)]
    block = _pad(block, longest)
    gradient = torch.zeros_like(block)
    for step in range(ranks):
        coming = _send_round(block, several) if step < ranks - 1 else None
        visit(block[: counts[owner]], firsts[owner], gradient[: counts[owner]])
        gradient = _send_round(gradient, several)()  # after the last step it is home again
        block = coming() if coming else block
        owner = (owner - 1) % ranks
    return gradient[: counts[owner]]


# Collectives without gradient -----------------------------------------------------------------------------------


def gather_objects(value: T, group: Group = None) -> list[T]:
    """One picklable object of each rank, in rank order."""
    several = _several(group)
    if several is None:
        return [value]
    values: list[Any] = [None] * several.size()
    dist.all_gather_object(values, value, group=several)
    return values


@torch.no_grad()
def gather_ordered(
    rows: Shaped[Tensor, "n ..."], positions: Shaped[Tensor, " n"], group: Group = None
) -> Shaped[Tensor, "N ..."]:
    """The rows of all ranks in the order of their positions, each position once: for evaluation.

    Samples that were repeated to pad ranks to equal length carry the same position and are dropped.
    """
    counts = row_counts(rows, group)
    rows, positions = gather(rows, group, counts), gather(positions, group, counts)
    order = positions.argsort(stable=True)
    positions = positions[order]
    first = torch.ones_like(positions, dtype=torch.bool)
    first[1:] = positions[1:] != positions[:-1]
    return rows[order[first]]


@torch.no_grad()
def all_sum(value: Shaped[Tensor, " ..."], group: Group = None) -> Shaped[Tensor, " ..."]:
    """The sum over ranks; a new tensor."""
    value, several = value.detach().clone(), _several(group)
    if several is not None:
        dist.all_reduce(value, group=several)
    return value


def all_mean(value: Shaped[Tensor, " ..."], group: Group = None) -> Shaped[Tensor, " ..."]:
    """The mean over ranks; a new tensor."""
    return all_sum(value, group) / world_size(group)


def any_rank(flag: bool, group: Group = None) -> bool:
    """Whether the flag is up on any rank; all ranks get the same answer."""
    return any(gather_objects(bool(flag), group))


def same_on_ranks(value: Float[Tensor, ""], group: Group = None) -> bool:
    """Whether all ranks hold the same number."""
    every = gather(value.detach().reshape(1), group, (1,) * world_size(group))
    return bool((every == every[0]).all())


def barrier(name: str = "barrier", timeout: float = 600.0) -> None:
    """Wait for all ranks.

    Args:
        name: what is being waited for; stands in the message.
        timeout: seconds.

    Raises:
        RuntimeError: some rank did not arrive in time; the message names the missing ranks.
    """
    if world_size() == 1:
        return
    try:
        dist.monitored_barrier(_cpu_group(), timeout=timedelta(seconds=timeout), wait_all_ranks=True)
    except RuntimeError as error:
        raise RuntimeError(
            f"Rank {rank()} of {world_size()} waited {timeout:g} s at {name!r} for ranks that did not come. A rank "
            f"may have died or run out of data: look at its log first. ({error})"
        ) from error


# Under the bonnet -----------------------------------------------------------------------------------------------


def _several(group: Group) -> dist.ProcessGroup | None:
    """The process group where it has more than one rank, else None."""
    if isinstance(group, Local) or not is_initialised():
        return None
    several = group or dist.group.WORLD
    return several if several is not None and several.size() > 1 else None


def _pad(rows: Tensor, length: int) -> Tensor:
    if rows.shape[0] == length:
        return rows.contiguous()
    padded = rows.new_zeros((length, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    return padded


def _join(padded: Tensor, counts: tuple[int, ...]) -> Tensor:
    """(W * longest, ...) -> (N, ...)"""
    longest = max(counts)
    if all(count == longest for count in counts):
        return padded
    return torch.cat([padded[i * longest : i * longest + count] for i, count in enumerate(counts)])


def _split(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """(N, ...) -> (W * longest, ...)"""
    longest = max(counts)
    if all(count == longest for count in counts):
        return rows.contiguous()
    return torch.cat([_pad(part, longest) for part in rows.split(list(counts))])


def _all_gather(rows: Tensor, counts: tuple[int, ...], group: dist.ProcessGroup) -> Tensor:
    return _join(_all_gather_even(_pad(rows, max(counts)), group).flatten(0, 1), counts)


def _all_gather_even(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """A tensor of one shape on every rank, stacked: (W, ...)."""
    every = value.new_empty((group.size(), *value.shape))
    dist.all_gather(list(every.unbind(0)), value.contiguous(), group=group)
    return every


def _reduce_scatter(rows: Tensor, counts: tuple[int, ...], group: dist.ProcessGroup) -> Tensor:
    """Sum over ranks; in float32 where the rows are of half precision."""
    padded = _split(rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows, counts)
    mine = padded.new_empty((max(counts), *rows.shape[1:]))
    dist.reduce_scatter(mine, list(padded.view(len(counts), *mine.shape).unbind(0)), group=group)
    return mine[: counts[dist.get_rank(group)]].to(rows.dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup, counts: tuple[int, ...]) -> Tensor:
        ctx.group, ctx.counts = group, counts
        return _all_gather(rows, counts, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _reduce_scatter(grad, ctx.counts, ctx.group), None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return all_sum(value, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_sum(grad, ctx.group), None


class _ColumnLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, counts: tuple[int, ...], group: dist.ProcessGroup) -> Tensor:
        total = _all_gather_even(partial, group).logsumexp(0)
        finite = total.masked_fill(total == -torch.inf, torch.inf)  # a column that is masked as a whole shares 0
        ctx.share = (partial - finite).exp()
        ctx.group, ctx.counts = group, counts
        return total[own(counts, group)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _all_gather(grad, ctx.counts, ctx.group) * ctx.share, None, None


def _send_round(rows: Tensor, group: dist.ProcessGroup) -> Callable[[], Tensor]:
    """Start sending rows to the next rank; the function returned waits for those of the rank before."""
    place, ranks = dist.get_rank(group), group.size()
    if dist.get_backend(group) not in ("gloo", "nccl", "mpi"):  # no send and receive: gather, then choose
        every = _all_gather_even(rows, group)
        return lambda: every[(place - 1) % ranks].clone()
    coming = torch.empty_like(rows)
    requests = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, rows, group=group, group_peer=(place + 1) % ranks),
            dist.P2POp(dist.irecv, coming, group=group, group_peer=(place - 1) % ranks),
        ]
    )

    held = [rows]  # what is being sent must outlive the sending

    def wait() -> Tensor:
        for request in requests:
            request.wait()
        del held[:]
        return coming

    return wait


_blocks: dict[dist.ProcessGroup, dict[int, list[Any]]] = {}
_gloo: dict[dist.ProcessGroup, dist.ProcessGroup] = {}


def _cpu_group() -> dist.ProcessGroup:
    """A gloo group of all ranks, made once for each default group: only gloo says which rank is missing."""
    world = dist.group.WORLD
    assert world is not None
    if world not in _gloo:
        _gloo.clear()
        _gloo[world] = world if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")  # type: ignore[assignment]
    return _gloo[world]
