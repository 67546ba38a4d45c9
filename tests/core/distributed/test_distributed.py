"""Collectives for unequal ranks, on real gloo processes and alone."""

import time

import pytest
import torch
import torch.distributed as dist

from collimate import distributed
from collimate.testing import run_on_ranks

COUNTS = [3, 0, 2]


def parts(*tensors):
    return list(zip(*(tensor.split(COUNTS) for tensor in tensors), strict=True))


def gathered(rows):
    rows = rows.clone().requires_grad_(rows.is_floating_point())
    every = distributed.gather(rows)
    if not rows.requires_grad:
        return every, None
    (every * (distributed.rank() + 1) * torch.arange(len(every))[:, None]).sum().backward()
    return every.detach(), rows.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_gather_keeps_rank_order_and_sums_gradients(dtype):
    rows = torch.arange(10).view(5, 2).to(dtype)
    found = run_on_ranks(gathered, parts(rows))
    for every, _ in found:
        assert torch.equal(every, rows)
    if rows.is_floating_point():
        expected = (6 * torch.arange(5.0))[:, None].expand(5, 2)  # 1 + 2 + 3 from the three ranks
        torch.testing.assert_close(torch.cat([grad for _, grad in found]), expected.to(dtype))


def columns(partial):
    partial = partial[0].clone().requires_grad_()
    own = distributed.column_logsumexp(partial, tuple(COUNTS))
    (own * (1.0 + distributed.rank())).masked_fill(own == -torch.inf, 0.0).sum().backward()
    return own.detach(), partial.grad


def test_column_logsumexp_is_that_of_all_ranks():
    partial = torch.randn(3, 5, dtype=torch.float64)
    partial[:, 1] = -torch.inf
    partial[1, 2] = -torch.inf
    found = run_on_ranks(columns, [(row,) for row in partial[:, None]])
    torch.testing.assert_close(torch.cat([own for own, _ in found]), partial.logsumexp(0))
    factors = torch.tensor([1.0, 1.0, 1.0, 3.0, 3.0], dtype=torch.float64)
    expected = partial.softmax(0).nan_to_num(0.0) * factors
    torch.testing.assert_close(torch.stack([grad for _, grad in found]), expected)


def round_the_ring(block):
    seen = {}

    def visit(rows, first, gradient):
        seen[first] = rows.clone()
        gradient += rows * (distributed.rank() + 1)

    return distributed.ring(block, visit, tuple(COUNTS)), seen


def test_every_block_visits_every_rank_and_its_gradient_comes_home():
    rows = torch.randn(5, 2)
    for (gradient, seen), own in zip(run_on_ranks(round_the_ring, parts(rows)), rows.split(COUNTS), strict=True):
        torch.testing.assert_close(gradient, 6 * own)
        assert torch.equal(torch.cat([seen[0], seen[3][: len(seen[3])]]), rows[: 3 + len(seen[3])])


def helpers(rank):
    rows = torch.tensor([[4, 2, 0], [1, 3], [5, 0]][rank])
    return {
        "ordered": distributed.gather_ordered(rows * 10, rows).tolist(),
        "objects": distributed.gather_objects({"rank": rank}),
        "sum": distributed.all_sum(torch.tensor(float(rank))).item(),
        "mean": distributed.all_mean(torch.tensor(float(rank))).item(),
        "any": distributed.any_rank(rank == 1),
        "none": distributed.any_rank(False),
        "same": distributed.same_on_ranks(torch.tensor(1.0)),
        "different": distributed.same_on_ranks(torch.tensor(float(rank))),
        "rank": distributed.rank(),
        "world": distributed.world_size(),
        "local": (distributed.rank(distributed.LOCAL), distributed.world_size(distributed.LOCAL)),
    }


def test_helpers_agree_on_all_ranks():
    for rank, found in enumerate(run_on_ranks(helpers, [(0,), (1,), (2,)])):
        assert found.pop("rank") == rank
        assert found == {
            "ordered": [0, 10, 20, 30, 40, 50],
            "objects": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "sum": 3.0,
            "mean": 1.0,
            "any": True,
            "none": False,
            "same": True,
            "different": False,
            "world": 3,
            "local": (0, 1),
        }


def test_alone_everything_is_the_identity():
    rows = torch.randn(3, 2)
    assert (distributed.rank(), distributed.world_size(), distributed.row_counts(rows)) == (0, 1, (3,))
    assert distributed.gather(rows) is rows
    assert distributed.column_logsumexp(rows[:, 0], (3,)).equal(rows[:, 0])
    assert distributed.gather_objects("x") == ["x"]
    assert distributed.global_share((3,)) == pytest.approx(1 / 3)
    distributed.barrier()


def late(rank):
    if rank == 1:
        time.sleep(3)
        return None
    try:
        distributed.barrier("end of epoch", timeout=0.5)
    except RuntimeError as error:
        return str(error)


def test_a_barrier_names_what_it_waited_for_and_who_is_missing():
    message = run_on_ranks(late, [(0,), (1,)])[0]
    assert "end of epoch" in message
    assert "1" in message.split("(")[-1]


def pair_of_subgroup(rank):
    first, second = dist.new_group([0, 1]), dist.new_group([2])
    return distributed.gather(torch.tensor([rank]), first if rank < 2 else second).tolist()


def test_other_groups():
    assert run_on_ranks(pair_of_subgroup, [(0,), (1,), (2,)]) == [[0, 1], [0, 1], [2]]
