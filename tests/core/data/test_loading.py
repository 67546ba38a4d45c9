"""The training stream resumes exactly; evaluation sees each sample once, on any number of ranks."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.data import (
    EvalLoader,
    ImageAugmentation,
    Mixture,
    ShardSource,
    TooManyCorruptSamples,
    TrainingPreparation,
    TrainLoader,
)
from collimate.processing import Processor


class Number(Processor):
    """The text as a number."""

    def __call__(self, raw: str) -> torch.Tensor:
        return torch.tensor(int(raw))


NUMBERS = {"text": Number()}


def stream(source, consumed=0, steps=None, **options) -> TrainLoader:
    loader = TrainLoader(Mixture([source], seed=5), TrainingPreparation(NUMBERS), **{"batch_size": 4, **options})
    loader.load_state_dict({"consumed": consumed})
    return loader


def taken(loader: TrainLoader, steps: int) -> list[int]:
    return [number for _ in range(steps) for number in next(loader)["text"].tolist()]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def pictures(shards, processors):
    """A loader of augmented pictures and drawn captions, by its number of workers and where it starts."""
    mixture = Mixture([ShardSource(shards(15, 10, 12), shuffle_window=8)], seed=3)
    augmentation = ImageAugmentation(scale=(0.3, 1.0), horizontal_flip=0.5, color_jitter=(0.3, 0.3, 0.3, 0.1))

    def make(num_workers=0, consumed=0, **options) -> TrainLoader:
        preparation = TrainingPreparation(processors, augmentations={"image": augmentation})
        loader = TrainLoader(mixture, preparation, batch_size=4, num_workers=num_workers, **options)
        loader.load_state_dict({"consumed": consumed})
        return loader

    return make


# The training stream --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "method"), [(1, "fork"), (3, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_batches_do_not_depend_on_the_workers(pictures, workers, method):
    alone, helped = pictures(), pictures(workers, start_method=method)
    for _ in range(12):  # beyond one epoch of 37 samples
        assert equal(next(alone), next(helped))
    helped.close()


@pytest.mark.parametrize("step", [1, 5, 9, 11])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_is_bit_equal(pictures, step, workers):
    whole = pictures()
    batches = [next(whole) for _ in range(12)]
    interrupted = pictures(workers)
    for _ in range(step):
        next(interrupted)
    state = interrupted.state_dict()
    resumed = pictures()
    resumed.load_state_dict(state)
    assert state == {"consumed": 4 * step}
    assert all(equal(next(resumed), expected) for expected in batches[step:])


def test_loading_a_state_drops_what_workers_had_prepared(pictures):
    loader = pictures(2)
    first = next(loader)
    next(loader)
    loader.load_state_dict({"consumed": 0})
    assert equal(next(loader), first)
    loader.close()


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(30, 90),
    before=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    after=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    steps=st.integers(0, 4),
)
def test_another_number_of_ranks_loses_and_repeats_nothing(size, before, after, steps, numbers):
    source, seen, consumed = numbers(size), [], 0
    for (ranks, batch), count in ((before, steps), (after, size)):
        loaders = [stream(source, consumed, rank=rank, world_size=ranks, batch_size=batch) for rank in range(ranks)]
        for _ in range(count):
            rows = [next(loader)["text"].tolist() for loader in loaders]
            seen += [rows[place % ranks][place // ranks] for place in range(ranks * batch)]
        assert len({loader.consumed for loader in loaders}) == 1
        consumed = loaders[0].consumed
    order = source.order(5, 0)
    assert seen[:size] == [order[place] for place in range(size)]
    assert sorted(seen[:size]) == list(range(size))


def test_ranks_share_out_each_step(numbers):
    whole = stream(numbers(40), batch_size=6, world_size=1)
    ranks = [stream(numbers(40), batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(10):
        batch = next(whole)
        parts = [next(loader) for loader in ranks]
        for rank, part in enumerate(parts):
            assert torch.equal(part["text"], batch["text"][rank::3])
            assert torch.equal(part["position"], batch["position"][rank::3])


def test_epochs_cover_all_and_differ(numbers):
    loader = stream(numbers(40))
    first, second = taken(loader, 10), taken(loader, 10)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_the_stream_goes_on_over_virtual_epochs(numbers):
    loader = stream(numbers(40))
    loader.steps = 3
    assert len(loader) == 3
    numbers_seen = [number for _ in range(3) for batch in loader for number in batch["text"].tolist()]
    assert numbers_seen == taken(stream(numbers(40)), 9)
    assert loader.consumed == 36


def test_more_ranks_and_workers_than_shards(shards):
    source = ShardSource(shards(3, 2), lanes=4)
    labels = {"label": Number()}
    seen = []
    for rank in range(4):
        loader = TrainLoader(
            Mixture([source]),
            TrainingPreparation(labels, fields={"label": ("cls",)}),
            batch_size=5,
            num_workers=3,
            rank=rank,
            world_size=4,
        )
        batches = [next(loader) for _ in range(2)]
        seen += [place for batch in batches for place in batch["position"].tolist()]
        loader.close()
    assert sorted(seen) == list(range(40))


def test_mixtures_are_counted(numbers):
    mixture = Mixture([numbers(20, "a"), numbers(20, "b")], [3, 1])
    loader = TrainLoader(mixture, TrainingPreparation(NUMBERS), batch_size=10, rank=1, world_size=2)
    for _ in range(100):
        next(loader)
    assert loader.counts == {"a": 1500, "b": 500}


def test_loading_here_leaves_the_generators_alone(pictures):
    loader = pictures()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    next(loader)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected  # noqa: NPY002


def test_corrupt_samples_are_replaced_and_counted(numbers, caplog):
    source = numbers(100, bad=[3, 50])
    loaders = [stream(source, rank=rank, world_size=2, batch_size=5, max_corrupt_rate=0.1) for rank in range(2)]
    seen = [number for loader in loaders for number in taken(loader, 10)]
    assert len(seen) == 100
    assert set(seen) == set(range(100)) - {3, 50}
    assert sum((loader.corrupt for loader in loaders), start=loaders[0].corrupt.__class__()) == {
        ("numbers", "spoilt"): 2
    }
    again = [
        number
        for loader in [stream(source, rank=r, world_size=2, batch_size=5) for r in range(2)]
        for number in taken(loader, 10)
    ]
    assert again == seen
    assert "numbers: " in caplog.text
    assert caplog.text.count("Corrupt sample") == 2  # one for each loader that met one


def test_workers_report_what_was_corrupt_and_how_long_they_took(numbers):
    loader = stream(numbers(100, bad=range(0, 100, 20)), num_workers=2)
    taken(loader, 25)
    loader.close()
    assert loader.corrupt == {("numbers", "spoilt"): 5}
    assert loader.worker_seconds > 0


def test_too_many_corrupt_samples_stop_the_run(numbers):
    loader = stream(numbers(100, bad=range(0, 100, 5)))
    with pytest.raises(
        TooManyCorruptSamples, match=r"(?s)11 of \d+ samples.*max_corrupt_rate=0.01.*11 x spoilt, numbers"
    ):
        taken(loader, 100)


def test_nothing_usable_ends_with_an_error(numbers):
    with pytest.raises(TooManyCorruptSamples, match="no usable sample"):
        next(stream(numbers(50, bad=range(50))))


# Evaluation -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 40), ranks=st.integers(1, 5), batch=st.integers(1, 7))
def test_evaluation_sees_each_sample_once_on_any_number_of_ranks(size, ranks, batch, numbers):
    loaders = [EvalLoader(numbers(size), NUMBERS, batch, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert len({len(loader) for loader in loaders}) == 1
    seen = []
    for loader in loaders:
        batches = list(loader)
        assert len(batches) == len(loader)
        for found in batches:
            assert found["text"].shape == (batch,)
            assert found["text"].tolist() == found["index"].tolist() == [int(key) for key in found["key"]]
            seen += found["index"][found["valid"]].tolist()
    assert sorted(seen) == list(range(size))


def test_evaluation_in_order_with_workers(shards, processors):
    source = ShardSource(shards(5, 6))
    batches = list(EvalLoader(source, processors, 4, num_workers=2, also=("label", "captions")))
    assert [place for batch in batches for place in batch["index"].tolist()] == [*range(11), 10]
    assert batches[2]["valid"].tolist() == [True, True, True, False]
    assert batches[1]["label"].tolist() == [1, 2, 0, 1]
    assert batches[1]["captions"][0] == ["caption 4"]
    assert torch.equal(batches[0]["image"][1], processors["image"](source.read(1)["jpg"]))


def test_corrupt_samples_are_not_valid_in_evaluation(numbers):
    loader = EvalLoader(numbers(9, bad=[0, 1, 2, 7]), NUMBERS, 3, max_corrupt_rate=0.5)
    batches = list(loader)
    valid = [place for batch in batches for place in batch["index"][batch["valid"]].tolist()]
    assert valid == [3, 4, 5, 6, 8]
    assert loader.corrupt == {("numbers", "spoilt"): 4}


def test_a_limit_spreads_over_the_source(numbers):
    loader = EvalLoader(numbers(100), NUMBERS, 5, limit=10)
    assert [place for batch in loader for place in batch["index"].tolist()] == list(range(0, 100, 10))


def test_nothing_to_evaluate(numbers):
    assert list(EvalLoader(numbers(0), NUMBERS, 5)) == []
