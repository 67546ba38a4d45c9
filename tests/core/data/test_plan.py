"""Plans of batches: exact lengths, places in the stream, and where a run goes on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate.data import (
    BatchPlan,
    ImageAugmentation,
    Leg,
    Mixture,
    ShardSource,
    Slot,
    TrainingPreparation,
    TrainLoader,
)
from collimate.processing import Processor
from collimate.testing import run_on_ranks

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
LEGS = st.lists(st.tuples(SIZES, st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=3)


def plan_of(legs, ranks):
    """Legs of (sizes, rounds, samples beyond those of one cycle)."""
    return BatchPlan(
        [
            Leg.epochs([Slot(n) for n in sizes], rounds, ranks * sum(sizes) + more, ranks)
            for sizes, rounds, more in legs
        ],
        ranks,
    )


def walked(legs, ranks):
    """The same by walking through every round: (first, size, leg) of each batch, and where the stream is then."""
    found, start = [], 0
    for number, (sizes, rounds, more) in enumerate(legs):
        for _ in range(rounds):
            first, end, turn = start, start + ranks * sum(sizes) + more, 0
            while first + ranks * sizes[turn % len(sizes)] <= end:
                found.append((first, sizes[turn % len(sizes)], number))
                first, turn = first + ranks * sizes[turn % len(sizes)], turn + 1
            start = end
    return found, start


@settings(deadline=None, max_examples=150, derandomize=True)
@given(LEGS, st.integers(1, 4))
def test_a_plan_is_what_walking_through_its_rounds_gives(legs, ranks):
    plan, (wanted, end) = plan_of(legs, ranks), walked(legs, ranks)
    assert plan.steps == len(wanted)
    assert [(batch.first, batch.size, batch.leg) for batch in map(plan.__getitem__, range(plan.steps))] == wanted
    assert plan[plan.steps].first == end  # the last leg goes on
    assert plan[plan.steps].leg == len(legs) - 1


@settings(deadline=None, max_examples=150, derandomize=True)
@given(LEGS, st.integers(1, 3))
def test_every_place_of_the_stream_has_its_step(legs, ranks):
    plan = plan_of(legs, ranks)
    firsts = [plan[step].first for step in range(plan.steps + 5)]
    for step, first in enumerate(firsts):
        assert plan.step_at(first) == step
    for position in range(firsts[-1]):
        assert plan.step_at(position) == next(step for step, first in enumerate(firsts) if first >= position)


def test_legs_of_steps_leave_out_nothing():
    plan = BatchPlan([Leg.of_steps([Slot(2), Slot(1)], 5, 2), Leg.of_steps([Slot(3)], 2, 2)], 2)
    assert [(plan[step].first, plan[step].size) for step in range(7)] == [
        (0, 2), (4, 1), (6, 2), (10, 1), (12, 2), (16, 3), (22, 3),
    ]  # fmt: skip
    assert plan.steps == 7


def test_rounds_are_counted_over_legs():
    plan = BatchPlan([Leg.epochs([Slot(2)], 2, 9, 1), Leg.epochs([Slot(3)], 1, 9, 1)], 1, rate=lambda at: 10 * at)
    assert [plan.round_at(step) for step in (0, 2, 4, 9, 11)] == [0, 0.5, 1, 2 + 1 / 3, 3]
    assert plan.lr_factor(2) == 5


def test_an_epoch_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="An epoch of 7 samples does not fill one batch of 2 x 4"):
        Leg.epochs([Slot(4), Slot(1)], 1, 7, 2)


# The loader -----------------------------------------------------------------------------------------------------


class Number(Processor):
    """A number to so many copies of it."""

    def __init__(self, length: int = 1) -> None:
        self.length = length

    def __call__(self, raw: str) -> torch.Tensor:
        return torch.full((self.length,), int(raw))

    def shaped(self, shape: int) -> "Number":
        return self.changed(length=shape)


def shaped_plan(ranks=1):
    """Two legs with cycles of unequal batches; the first drops one sample of 13 in each of two rounds."""
    long, short = (("text", 4),), (("text", 2),)
    legs = [
        Leg.epochs([Slot(4, short), Slot(2, long)], 2, 13 * ranks, ranks),
        Leg.epochs([Slot(3, (("text", 5),))], 2, 9 * ranks, ranks),
    ]
    return BatchPlan(legs, ranks)


def loader(source, plan, **given):
    return TrainLoader(
        Mixture([source], seed=5), TrainingPreparation({"text": Number()}), 1, plan.steps, plan=plan, **given
    )


def seen(batches):
    return [(tuple(batch["text"].shape), batch["position"].tolist(), batch["text"][:, 0].tolist()) for batch in batches]


def test_batches_have_the_planned_sizes_and_shapes(numbers):
    batches = list(loader(numbers(30), shaped_plan()))
    assert [tuple(batch["text"].shape) for batch in batches] == 2 * [(4, 2), (2, 4), (4, 2), (2, 4)] + 6 * [(3, 5)]
    positions = [place for batch in batches for place in batch["position"].tolist()]
    assert positions == [*range(12), *range(13, 25), *range(26, 44)]
    order = numbers(30).order(5, 0)
    assert batches[0]["text"][:, 0].tolist() == [order[place] for place in range(4)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3, 4, 7, 9, 13])
def test_a_run_goes_on_exactly_in_any_leg_and_in_the_middle_of_a_cycle(numbers, step, workers):
    wanted = seen(list(loader(numbers(30), shaped_plan())))
    first = loader(numbers(30), shaped_plan(), num_workers=workers)
    assert seen([next(first) for _ in range(step)]) == wanted[:step]
    again = loader(numbers(30), shaped_plan())
    again.load_state_dict(first.state_dict())
    first.close()
    assert seen([next(again) for _ in range(len(wanted) - step)]) == wanted[step:]


def test_workers_live_through_all_legs(numbers):
    plan = shaped_plan()
    helped = loader(numbers(30), plan, num_workers=2)
    first = next(helped)
    workers = helped._batches._workers  # type: ignore[union-attr]
    batches = [first, *(next(helped) for _ in range(plan.steps - 1))]
    assert helped._batches._workers is workers
    assert all(worker.is_alive() for worker in workers)
    helped.close()
    assert seen(batches) == seen(list(loader(numbers(30), plan)))


def shapes_of(source, plan):
    mine = loader(source, plan)
    return [(tuple(batch["text"].shape), batch["position"].tolist()) for batch in mine]


def test_ranks_take_the_same_shapes_and_share_out_the_samples(numbers):
    plan = shaped_plan(2)
    found = run_on_ranks(shapes_of, [(numbers(60), plan)] * 2)
    for (one, own), (other, others), step in zip(*found, range(plan.steps), strict=True):
        assert one == other
        batch = plan[step]
        assert sorted(own + others) == list(range(batch.first, batch.first + 2 * batch.size))


def test_pictures_come_at_the_size_of_their_batch(shards, processors):
    mixture = Mixture([ShardSource(shards(15, 10))], seed=3)
    shapes = [(("image", 8), ("text", 5)), (("image", 24),)]
    plan = BatchPlan([Leg.epochs([Slot(3, shapes[0]), Slot(2, shapes[1])], 1, 20, 1)], 1)
    for augmentations in ({"image": ImageAugmentation()}, {}):
        preparation = TrainingPreparation(processors, augmentations=augmentations)
        batches = list(TrainLoader(mixture, preparation, 1, plan.steps, plan=plan))
        assert [tuple(batch["image"].shape[-2:]) for batch in batches] == 4 * [(8, 8), (24, 24)]
        assert [batch["text"].shape[1] for batch in batches] == 4 * [5, 12]
    assert processors["image"].size == 16


def test_what_is_no_modality_or_has_one_shape_cannot_be_shaped(processors):
    class Plain(Processor):
        pass

    preparation = TrainingPreparation({**processors, "sound": Plain()})
    with pytest.raises(ValueError, match="no 'video' to shape: the modalities are image, text, sound"):
        preparation.shaped((("video", 3),))
    with pytest.raises(TypeError, match="Plain makes inputs of one shape only"):
        preparation.shaped((("sound", 3),))
