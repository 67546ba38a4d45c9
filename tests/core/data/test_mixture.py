"""Mixtures keep their proportions, and every source its own epochs."""

import pickle
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.data.mixture import BLOCK, Mixture, largest_remainder

WEIGHTS = st.lists(st.floats(0.01, 5), min_size=1, max_size=5)


@given(weights=WEIGHTS, total=st.integers(1, 2000))
def test_largest_remainder(weights, total):
    shares = largest_remainder(weights, total)
    assert sum(shares) == total
    for weight, share in zip(weights, shares, strict=True):
        assert abs(share - weight / sum(weights) * total) < 1


@settings(max_examples=15, deadline=None)
@given(weights=WEIGHTS, seed=st.integers(0, 3), data=st.data())
def test_proportions_hold_in_every_block_and_counts_tell_them(weights, seed, data, numbers):
    sources = [numbers(size + 3, name=f"s{size}") for size in range(len(weights))]
    mixture = Mixture(sources, weights, seed)
    draws = [mixture.draw(position) for position in range(2 * BLOCK)]
    for block in (draws[:BLOCK], draws[BLOCK:]):
        counts = Counter(draw.source for draw in block)
        assert [counts[place] for place in range(len(weights))] == largest_remainder(weights, BLOCK)
    until = data.draw(st.integers(0, 2 * BLOCK))
    counted = Counter(sources[draw.source].name for draw in draws[:until])
    assert mixture.counts(until) == {source.name: counted[source.name] for source in sources}


def test_every_source_goes_through_its_own_epochs(numbers):
    mixture = Mixture([numbers(7, "a"), numbers(300, "b")], [1, 3], seed=1)
    drawn: dict[tuple[int, int], list[int]] = {}
    for position in range(4 * BLOCK):
        draw = mixture.draw(position)
        drawn.setdefault((draw.source, draw.epoch), []).append(mixture.index(draw))
    whole = {key: indices for key, indices in drawn.items() if (key[0], key[1] + 1) in drawn}
    assert len(whole) > 100
    for (source, _), indices in whole.items():
        assert sorted(indices) == list(range(len(mixture.sources[source])))
    assert drawn[1, 0] != drawn[1, 1]


def test_one_source_is_a_mixture_too(numbers):
    mixture = Mixture([numbers(50)], seed=4)
    assert [mixture.draw(position) for position in (0, 49, 50, 12_345)] == [
        (0, 0, 0),
        (0, 0, 49),
        (0, 1, 0),
        (0, 246, 45),
    ]


def test_mixing_spreads_the_sources(numbers):
    mixture = Mixture([numbers(5, "a"), numbers(5, "b")], [1, 1])
    runs = [mixture.draw(position).source for position in range(BLOCK)]
    changes = sum(left != right for left, right in pairwise(runs))
    assert 400 < changes < 600


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, 1e-6], [1]])
def test_useless_weights_are_refused(weights, numbers):
    with pytest.raises(ValueError, match="weight"):
        Mixture([numbers(5, "a"), numbers(5, "b")], weights)


def test_empty_sources_are_refused(numbers):
    with pytest.raises(ValueError, match="No samples in nothing"):
        Mixture([numbers(0, "nothing")])
    with pytest.raises(ValueError, match="at least one source"):
        Mixture([])


def test_mixtures_pickle(shards):
    from collimate.data import ShardSource

    mixture = Mixture([ShardSource(shards(5, 6))], seed=2)
    again = pickle.loads(pickle.dumps(mixture))
    assert [again.index(again.draw(p)) for p in range(20)] == [mixture.index(mixture.draw(p)) for p in range(20)]
