"""Orders are bijections, pure functions of their keys, and shuffle well."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.data import Permutation, ShardOrder

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)


@given(size=st.integers(1, 700), keys=st.lists(st.integers(-(2**70), 2**70), max_size=3))
def test_permutation_is_a_bijection(size, keys):
    permutation = Permutation(size, *keys)
    assert sorted(permutation[place] for place in range(size)) == list(range(size))


@given(counts=COUNTS, lanes=st.integers(1, 9), window=st.integers(1, 50), seed=st.integers(0, 9))
def test_shard_order_is_a_bijection(counts, lanes, window, seed):
    order = ShardOrder(counts, seed, 0, lanes, window)
    assert sorted(order[place] for place in range(sum(counts))) == list(range(sum(counts)))


@given(counts=COUNTS, lanes=st.integers(1, 4))
def test_positions_outside_are_refused(counts, lanes):
    for order in (ShardOrder(counts, 0, 0, lanes), Permutation(sum(counts))):
        for position in (-1, sum(counts)):
            with pytest.raises(IndexError):
                order[position]


def test_a_billion_samples_cost_no_memory():
    permutation = Permutation(10**9, 7)
    taken = {permutation[place] for place in range(2000)}
    assert len(taken) == 2000
    assert max(taken) > 9 * 10**8


@pytest.mark.parametrize("size", [3, 7, 64, 1000])
def test_every_place_is_as_likely_as_any_other(size):
    draws = 4000
    places = np.array([Permutation(size, seed)[0] for seed in range(draws)])
    counts = np.bincount(places * min(size, 10) // size, minlength=min(size, 10))
    expected = np.bincount(np.arange(size) * min(size, 10) // size) * draws / size
    assert ((counts - expected) ** 2 / expected).sum() < 30  # chi-square, at most 9 degrees: p < 0.0005


def test_neighbours_part():
    permutation = Permutation(10_000, 1)
    values = np.array([permutation[place] for place in range(10_000)])
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), values)[0, 1]) < 0.05


def test_the_order_never_changes_between_versions():
    """Resuming relies on it: were it to change, a run of an older version would repeat and lose samples."""
    assert [Permutation(10, 0, 0)[place] for place in range(10)] == [3, 9, 4, 8, 0, 5, 6, 7, 1, 2]
    assert [ShardOrder([3, 4, 3], 5, 1, 2, 3)[place] for place in range(10)] == [7, 0, 9, 6, 8, 5, 4, 2, 3, 1]


@settings(max_examples=30)
@given(seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_epochs_and_seeds_differ(seed, epoch):
    for make in (lambda s, e: Permutation(50, s, e), lambda s, e: ShardOrder([20, 30], s, e, 2, 10)):
        one, next_epoch, other_seed = make(seed, epoch), make(seed, epoch + 1), make(seed + 1, epoch)
        values = [one[place] for place in range(50)]
        assert values == [make(seed, epoch)[place] for place in range(50)]
        assert values != [next_epoch[place] for place in range(50)]
        assert values != [other_seed[place] for place in range(50)]


def test_each_rank_reads_its_own_shards_where_lanes_fit():
    counts, ranks = [100] * 12, 4
    order = ShardOrder(counts, seed=3, epoch=2, lanes=ranks, window=64)
    shards = [{order[place] // 100 for place in range(rank, 1200, ranks)} for rank in range(ranks)]
    assert sum(map(len, shards)) == len(set.union(*shards)) == 12


def test_a_window_bounds_what_is_open():
    order = ShardOrder([100] * 50, seed=0, epoch=0, window=200)
    for start in range(0, 5000, 200):
        assert len({order[place] // 100 for place in range(start, start + 200)}) <= 3


def test_orders_pickle():
    order = ShardOrder([3, 4], 0, 0)
    again = pickle.loads(pickle.dumps(order))
    assert [again[place] for place in range(7)] == [order[place] for place in range(7)]
