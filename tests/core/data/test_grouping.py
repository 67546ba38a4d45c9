"""Batches of groups: what stands in them, epochs, any ranks, exact resuming, workers, corrupt samples, bad tables."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.data import (
    CorruptSample,
    DataModule,
    DistinctLabels,
    GroupedStream,
    Mixture,
    PerLabel,
    Source,
    TrainingPreparation,
    TrainLoader,
    WithNeighbours,
)
from collimate.data.grouping import labels_in
from collimate.processing import Processor


class Labelled(Source):
    """Sample i has the label that a list says; None for no label."""

    name = "labelled"

    def __init__(self, labels, corrupt=()):
        self.labels, self.corrupt = list(labels), set(corrupt)

    def __len__(self):
        return len(self.labels)

    def peek(self, index, keys):
        label = self.labels[index]
        return {"__key__": str(index), "__source__": self.name, **({} if label is None else {"cls": label})}

    def read(self, index):
        if index in self.corrupt:
            raise CorruptSample(str(index), "damaged")
        return {"__key__": str(index), "__source__": self.name, "number": index}


class Number(Processor):
    def __call__(self, raw):
        return torch.tensor(raw)


def labels(sizes):
    return [label for label, size in enumerate(sizes) for _ in range(size)]


def batches(sampling, source, batch_size, steps, seed=3):
    """The indices of each batch of one process."""
    stream = GroupedStream(Mixture([source], seed=seed), sampling, batch_size, 1)
    positions = range(steps * batch_size)
    found = [stream.index(stream.draw(position)) for position in positions]
    return [found[first : first + batch_size] for first in range(0, len(found), batch_size)]


def loader(sampling, source, batch_size, rank=0, ranks=1, **options):
    stream = GroupedStream(Mixture([source], seed=3), sampling, batch_size, ranks)
    return TrainLoader(
        stream, TrainingPreparation({"number": Number()}), batch_size, 10, rank=rank, world_size=ranks, **options
    )


def take(stream, steps):
    return [next(stream)["number"].tolist() for _ in range(steps)]


# P x K ------------------------------------------------------------------------------------------------------------


def test_each_batch_has_p_labels_with_k_samples():
    known = labels([4, 9, 2, 7, 1, 30])
    source = Labelled(known)
    for batch in batches(PerLabel(samples=2), source, 8, 60):
        counts = Counter(known[index] for index in batch)
        assert set(counts.values()) == {2}
        assert len(counts) == 4
        assert [known[index] for index in batch[::2]] == [known[index] for index in batch[1::2]]  # side by side
        assert all(len({*batch[i : i + 2]}) == 2 for i in range(0, 8, 2) if known[batch[i]] != 4)


def test_labels_come_equally_often_and_their_samples_in_turn():
    known = labels([6, 12])
    seen = [index for batch in batches(PerLabel(samples=3), Labelled(known), 6, 20) for index in batch]
    assert Counter(known[index] for index in seen) == {0: 60, 1: 60}
    assert set(Counter(index for index in seen if known[index] == 0).values()) == {10}
    assert set(Counter(index for index in seen if known[index] == 1).values()) == {5}


def test_samples_without_a_label_are_left_out():
    source = Labelled([None, "a", "a", None, "b", "b"])
    assert labels_in(source).tolist() == [-1, 0, 0, -1, 1, 1]
    seen = {index for batch in batches(PerLabel(samples=2), source, 4, 10) for index in batch}
    assert seen == {1, 2, 4, 5}


def test_too_few_labels_are_told():
    with pytest.raises(ValueError, match="3 labels, and a batch of 8 asks for 4"):
        batches(PerLabel(samples=2), Labelled(labels([5, 5, 5])), 8, 1)
    with pytest.raises(ValueError, match="no sample has a label"):
        batches(PerLabel(samples=2), Labelled([None] * 9), 4, 1)


def test_a_batch_that_groups_do_not_fill_is_told():
    with pytest.raises(ValueError, match="multiple of 3"):
        batches(PerLabel(samples=3), Labelled(labels([5, 5, 5])), 8, 1)
    with pytest.raises(ValueError, match="one source"):
        GroupedStream(Mixture([Labelled([0]), Labelled([1])]), PerLabel(1), 1, 1)


# No label twice -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(1, 12), min_size=5, max_size=25), st.integers(1, 5), st.integers(0, 99))
def test_no_label_stands_twice_in_a_batch(sizes, batch_size, seed):
    known = labels(sizes)
    source = Labelled(known)
    epoch = GroupedStream(Mixture([source], seed=seed), DistinctLabels(), batch_size, 1).groups.batches
    found = batches(DistinctLabels(), source, batch_size, 2 * epoch, seed)
    assert all(len({known[index] for index in batch}) == batch_size for batch in found)
    for half in (found[:epoch], found[epoch:]):
        seen = [index for batch in half for index in batch]
        assert len(set(seen)) == len(seen), "a sample stands twice in an epoch"


def test_an_epoch_leaves_out_only_what_it_must():
    source = Labelled(labels([4] * 10))
    stream = GroupedStream(Mixture([source]), DistinctLabels(), 8, 1)
    assert stream.groups.batches == 5
    assert sorted(index for batch in batches(DistinctLabels(), source, 8, 5) for index in batch) == list(range(40))
    frequent = Labelled(labels([100, *[1] * 20]))
    assert GroupedStream(Mixture([frequent]), DistinctLabels(), 5, 1).groups.batches == 5  # 20 + 5 of the frequent one
    epochs = batches(DistinctLabels(), source, 8, 10)
    assert epochs[:5] != epochs[5:]


def test_too_few_identities_are_told():
    with pytest.raises(ValueError, match="3 labels, too few"):
        batches(DistinctLabels(), Labelled(labels([9, 9, 9])), 4, 1)


# Neighbours -----------------------------------------------------------------------------------------------------


def table(tmp_path, rows):
    np.save(tmp_path / "near.npy", np.array(rows))
    return tmp_path / "near.npy"


def test_samples_come_with_their_neighbours(tmp_path):
    rows = [[(i + 1) % 12, (i + 2) % 12, (i + 3) % 12] for i in range(12)]
    sampling = WithNeighbours(table(tmp_path, rows), neighbours=2)
    found = batches(sampling, Labelled([0] * 12), 6, 40)
    groups = [batch[first : first + 3] for batch in found for first in (0, 3)]
    assert all(len(set(group)) == 3 and {*group[1:]} <= {*rows[group[0]]} for group in groups)
    assert Counter(group[0] for group in groups[:12]) == dict.fromkeys(range(12), 1)
    assert len({tuple(group[1:]) for group in groups if group[0] == 0}) > 1, "neighbours are drawn anew"


def test_missing_neighbours_are_filled_up(tmp_path):
    rows = [[(i + 1) % 6, -1] for i in range(6)]
    found = batches(WithNeighbours(table(tmp_path, rows), neighbours=2), Labelled([0] * 6), 3, 12)
    assert all(batch[1] == (batch[0] + 1) % 6 and 0 <= batch[2] < 6 for batch in found)


@pytest.mark.parametrize(
    ("rows", "message"), [([[1], [0]], "for the 3 samples"), ([[1], [0], [7]], "names the sample 7")]
)
def test_a_table_of_other_data_is_told(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        batches(WithNeighbours(table(tmp_path, rows)), Labelled([0] * 3), 2, 1)


# Streams --------------------------------------------------------------------------------------------------------

KNOWN = labels([5] * 12)
SAMPLINGS = [PerLabel(samples=2), DistinctLabels()]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: type(s).__name__)
def test_any_ranks_share_the_same_batches_in_whole_groups(sampling):
    alone = take(loader(sampling, Labelled(KNOWN), 8), 20)
    ranks = [take(loader(sampling, Labelled(KNOWN), 4, rank, 2), 20) for rank in range(2)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert sorted(first + second) == sorted(whole)
        if sampling.size == 2:
            assert all(KNOWN[part[i]] == KNOWN[part[i + 1]] for part in (first, second) for i in (0, 2))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: type(s).__name__)
def test_a_run_goes_on_exactly_where_it_was(sampling):
    whole = loader(sampling, Labelled(KNOWN), 8)
    expected = take(whole, 30)
    for step in (1, 7, 19):
        again = loader(sampling, Labelled(KNOWN), 8)
        again.load_state_dict({"consumed": step * 8})
        assert take(again, 30 - step) == expected[step:]
    assert whole.counts == {"labelled": 240}


def test_workers_change_nothing():
    expected = take(loader(PerLabel(samples=2), Labelled(KNOWN), 8), 6)
    several = loader(PerLabel(samples=2), Labelled(KNOWN), 8, num_workers=2)
    assert take(several, 6) == expected
    several.close()


def test_a_corrupt_sample_is_replaced_by_one_of_its_label():
    plain = take(loader(PerLabel(samples=2), Labelled(KNOWN), 8), 12)
    damaged = take(loader(PerLabel(samples=2), Labelled(KNOWN, corrupt=[7, 23]), 8, max_corrupt_rate=1.0), 12)
    for before, after in zip(plain, damaged, strict=True):
        assert [KNOWN[index] for index in before] == [KNOWN[index] for index in after]
        assert all(old == new for old, new in zip(before, after, strict=True) if old not in (7, 23))
    assert not {7, 23} & {index for batch in damaged for index in batch}


def test_a_label_of_which_nothing_can_be_read_is_filled_up():
    source = Labelled(labels([2] * 6), corrupt=[0, 1])
    found = take(loader(PerLabel(samples=2), source, 4, max_corrupt_rate=1.0), 12)
    assert not {0, 1} & {index for batch in found for index in batch}


def test_groups_go_with_no_other_order():
    with pytest.raises(ValueError, match="not both"):
        DataModule("x", balanced=True, sampling=PerLabel())
