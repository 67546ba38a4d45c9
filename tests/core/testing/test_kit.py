"""The test kit finds what it is for: each assertion passes on the right thing and fails on the wrong one."""

import os
import time

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

from collimate import distributed
from collimate.losses import clip_loss
from collimate.testing import (
    assert_cached_equals_full,
    assert_same_on_ranks,
    assert_saved_memory_below,
    even_and_uneven,
    run_on_ranks,
    saved_memory,
)

ROWS = {"image": torch.randn(6, 4), "text": torch.randn(6, 4)}


def local_negatives_only(image, text):
    return clip_loss(image, text, 5.0, group=distributed.LOCAL)


def without_gradient_through_the_gather(image, text):
    image, text = normalize(image), normalize(text)
    every = distributed.gather(text.detach())
    place = torch.arange(len(image)) + distributed.own(distributed.row_counts(text)).start
    return cross_entropy(5 * image @ every.T, place)


@pytest.mark.parametrize("loss", [local_negatives_only, without_gradient_through_the_gather])
def test_inexact_distributed_losses_are_found(loss):
    with pytest.raises(AssertionError, match="2 ranks with"):
        assert_same_on_ranks(loss, ROWS, ranks=(2,))


def test_closures_may_run_on_ranks():
    scale = 5.0
    assert_same_on_ranks(lambda image, text: clip_loss(image, text, scale), ROWS, ranks=(2,))


def test_splits():
    assert even_and_uneven(7, 1) == [[7]]
    for ranks in (2, 3):
        splits = even_and_uneven(7, ranks)
        assert len(splits) == 3
        assert all(sum(split) == 7 and len(split) == ranks for split in splits)


def failing(rank):
    if rank == 1:
        raise ValueError("no such caption")
    distributed.gather_objects(rank)


def dying(rank):
    if rank == 1:
        os._exit(3)
    distributed.gather_objects(rank)


def hanging(rank):
    time.sleep(30)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (failing, "no such caption"),
        (dying, "rank 1 of 2: the process died"),
        (hanging, r"ranks \[0, 1\] did not answer"),
    ],
)
def test_a_rank_that_fails_ends_the_job_and_the_next_job_runs(function, message):
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        run_on_ranks(function, [(0,), (1,)], timeout=4.0 if function is hanging else 60.0)
    assert time.monotonic() - start < 30
    assert run_on_ranks(distributed.rank, [(), ()]) == [0, 1]


def test_cached_equals_full():
    tower = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.0))
    image, text = ROWS["image"], ROWS["text"][:, :3]

    def full():
        return clip_loss(tower(image), text, 5.0)

    def cached():
        parts = [checkpoint(tower, chunk, use_reentrant=False) for chunk in image.split(2)]
        return clip_loss(torch.cat(parts), text, 5.0)

    def accumulated():
        return sum(clip_loss(tower(i), t, 5.0) for i, t in zip(image.split(3), text.split(3), strict=True)) / 2

    assert_cached_equals_full(full, cached, dict(tower.named_parameters()))
    with pytest.raises(AssertionError, match=r"gradient of 0\.weight"):
        assert_cached_equals_full(full, accumulated, dict(tower.named_parameters()))


def test_saved_memory_counts_each_storage_once_and_no_inputs():
    x = torch.randn(10, 10, requires_grad=True)
    with saved_memory(existing=[x]) as memory:
        y = x.exp()  # keeps its result
        z = (y * y).sum()  # keeps y, which is counted
    assert memory.bytes == 400
    z.backward()
    assert_saved_memory_below(401, lambda: x.exp().sum(), existing=[x])
    with pytest.raises(AssertionError, match="400 bytes are kept"):
        assert_saved_memory_below(400, lambda: x.exp().sum(), existing=[x])
