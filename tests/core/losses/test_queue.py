"""The queue of features: its order, its end, its ranks, its state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.losses import FeatureQueue
from collimate.losses.queue import NO_ID
from collimate.testing import run_on_ranks

WIDTHS = {"image": 3, "text": 2}


def batch(count, start=0):
    """Features that tell which sample they are of."""
    numbers = torch.arange(start, start + count, dtype=torch.float32)
    return {"image": numbers[:, None].expand(-1, 3), "text": -numbers[:, None].expand(-1, 2), "ids": numbers.long()}


def test_it_begins_with_random_unit_vectors_that_are_the_same_everywhere():
    torch.manual_seed(1)
    one = FeatureQueue(50, WIDTHS)
    torch.manual_seed(2)
    other = FeatureQueue(50, WIDTHS)
    torch.testing.assert_close(one["image"].norm(dim=1), torch.ones(50))
    assert torch.equal(one["image"], other["image"])
    assert (one.ids == NO_ID).all()
    assert one.fill == 0


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(1, 9), st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_it_holds_the_last_samples_whatever_the_batches(size, counts):
    queue, added = FeatureQueue(size, WIDTHS), 0
    for count in counts:
        queue.add(**batch(count, added))
        added += count
    assert int(queue.added) == added
    kept = range(max(0, added - size), added)
    for number in kept:
        place = number % size  # each sample has its place, so that the oldest one is overwritten
        assert (queue["image"][place] == number).all()
        assert (queue["text"][place] == -number).all()
        assert queue.ids[place] == number
    assert int((queue.ids != NO_ID).sum()) == len(kept)
    assert float(queue.fill) == pytest.approx(len(kept) / size)


def test_samples_without_id_equal_no_sample():
    queue = FeatureQueue(4, WIDTHS)
    queue.add(**batch(4))
    features = batch(2)
    del features["ids"]
    queue.add(**features)
    assert queue.ids.tolist() == [NO_ID, NO_ID, 2, 3]


def test_no_gradient_runs_into_it():
    queue, features = FeatureQueue(4, {"image": 3}), torch.randn(2, 3, requires_grad=True)
    queue.add(image=features)
    assert not queue["image"].requires_grad
    assert not queue.added.requires_grad


def filled(*parts):
    queue = FeatureQueue(7, WIDTHS)
    for part in parts:
        queue.add(**part)
    return dict(queue.state_dict())


@pytest.mark.parametrize("split", [[2, 2], [3, 1], [0, 4], [1, 1, 2]])
def test_all_ranks_hold_the_samples_of_all_in_rank_order(split):
    """Three batches, of which the second wraps round the end, are those of one process."""
    whole = [batch(4, start) for start in (0, 4, 8)]
    parts = zip(*(zip(*(each.split(split) for each in one.values()), strict=True) for one in whole), strict=True)
    jobs = [[dict(zip(WIDTHS | {"ids": 1}, part, strict=True)) for part in own] for own in parts]
    wanted = filled(*whole)
    for state in run_on_ranks(filled, jobs):
        assert all(torch.equal(state[name], value) for name, value in wanted.items())


def test_it_goes_on_from_its_state():
    one, other = FeatureQueue(5, WIDTHS), FeatureQueue(5, WIDTHS)
    one.add(**batch(3))
    other.load_state_dict(one.state_dict())
    for queue in (one, other):
        queue.add(**batch(4, 3))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one entry"):
        FeatureQueue(0, WIDTHS)
    queue = FeatureQueue(4, WIDTHS)
    with pytest.raises(ValueError, match="keeps image, text; got image"):
        queue.add(image=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"text features are \(1, 2\), the queue takes \(2, 2\)"):
        queue.add(image=torch.zeros(2, 3), text=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="one a sample"):
        queue.add(**batch(2) | {"ids": torch.arange(3)})
    assert queue.added == 0
