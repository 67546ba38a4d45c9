"""Plans: how many samples a batch holds, and of which shape, at each step of a run.

A plan is laid before training begins, so that every length is exact, and it is a pure function of the step: workers
live through all of it, and a run goes on anywhere, in the middle of a cycle too. A shape travels with the positions of
its batch, so that what is read is decoded at that shape at once, from shards as from folders.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

from collimate.configurable import Configurable

Shape: TypeAlias = tuple[tuple[str, Any], ...]
"""Modality -> what its processor's `shaped` takes, as pairs; a modality that is not named keeps its own shape."""


@dataclass(frozen=True)
class ClipShape:
    """How a processor of videos cuts a clip out of each.

    Attributes:
        frames: of the clip.
        crop: its side in pixels, after resizing and cropping.
        stride_low, stride_high: frames of the video from one of the clip to the next; drawn between them, with both.
        min_side, max_side: the shorter side of the video in pixels before cropping; drawn between them.
    """

    frames: int
    crop: int
    stride_low: int
    stride_high: int
    min_side: int
    max_side: int


class Slot(NamedTuple):
    """One kind of batch.

    Attributes:
        size: samples of each rank.
        shape: of its samples.
    """

    size: int
    shape: Shape = ()


class Planned(NamedTuple):
    """The batch of one step: it takes the `size` x ranks positions of the stream from `first` on."""

    first: int
    size: int
    shape: Shape
    leg: int


@dataclass(frozen=True)
class Leg:
    """A part of a run in which the same batches come in turn.

    Attributes:
        slots: the batches of a cycle; each round begins with the first.
        steps: of a round.
        rounds: how many.
        positions: of the stream that a round takes, of all ranks; what its steps leave of them is passed over.
    """

    slots: tuple[Slot, ...]
    steps: int
    rounds: int
    positions: int

    @staticmethod
    def epochs(slots: Sequence[Slot], rounds: int, samples: int, ranks: int) -> Leg:
        """Rounds of `samples` positions; the end of each, which does not fill a batch, is dropped.

        Raises:
            ValueError: not one batch fits.
        """
        steps = _steps_in(slots, samples, ranks)
        if not steps:
            raise ValueError(
                f"An epoch of {samples} samples does not fill one batch of {ranks} x {slots[0].size}: set a larger "
                "data.epoch_samples, or a smaller batch."
            )
        return Leg(tuple(slots), steps, rounds, samples)

    @staticmethod
    def of_steps(slots: Sequence[Slot], steps: int, ranks: int) -> Leg:
        """One round of so many steps, which leaves out nothing."""
        cycles, rest = divmod(steps, len(slots))
        sizes = [slot.size for slot in slots]
        return Leg(tuple(slots), steps, 1, ranks * (cycles * sum(sizes) + sum(sizes[:rest])))


class BatchPlan:
    """The batches of a run, leg after leg; after the last, its rounds are repeated.

    Args:
        legs: at least one.
        ranks: that share each batch.
        rate: what the learning rate is multiplied by, as a function of the round, counted over all legs; 2.5 is the
            middle of the third.

    Attributes:
        steps: of all legs.
    """

    def __init__(self, legs: Sequence[Leg], ranks: int, rate: Callable[[float], float] = lambda _: 1.0) -> None:
        self.legs, self.ranks, self.rate = list(legs), ranks, rate
        self._steps = [0, *accumulate(leg.steps * leg.rounds for leg in legs)]
        self._rounds = [0, *accumulate(leg.rounds for leg in legs)]
        self._positions = [0, *accumulate(leg.positions * leg.rounds for leg in legs)]
        self.steps = self._steps[-1]

    def __getitem__(self, step: int) -> Planned:
        number, turn, within = self._locate(step)
        leg = self.legs[number]
        cycle, place = divmod(within, len(leg.slots))
        sizes = [slot.size for slot in leg.slots]
        before = self.ranks * (cycle * sum(sizes) + sum(sizes[:place]))
        first = self._positions[number] + turn * leg.positions + before
        return Planned(first, *leg.slots[place], number)

    def round_at(self, step: int) -> float:
        """The round of a step, counted over all legs, with how much of it is over."""
        number, turn, within = self._locate(step)
        return self._rounds[number] + turn + within / self.legs[number].steps

    def lr_factor(self, step: int) -> float:
        """What the learning rate of a step is multiplied by."""
        return self.rate(self.round_at(step))

    def step_at(self, position: int) -> int:
        """The first step that takes nothing of the stream before a position."""
        number = min(bisect_right(self._positions, position), len(self.legs)) - 1
        leg = self.legs[number]
        turn, offset = divmod(position - self._positions[number], leg.positions)
        cycle, rest = divmod(offset, self.ranks * sum(slot.size for slot in leg.slots))
        firsts = accumulate((self.ranks * slot.size for slot in leg.slots), initial=0)
        within = cycle * len(leg.slots) + sum(first < rest for first in firsts)
        return self._steps[number] + turn * leg.steps + min(within, leg.steps)

    def _locate(self, step: int) -> tuple[int, int, int]:
        """The leg of a step, the round within it, the step within that."""
        number = min(bisect_right(self._steps, step), len(self.legs)) - 1
        return number, *divmod(step - self._steps[number], self.legs[number].steps)


class BatchSchedule(Configurable):
    """What changes the size and shape of batches in the course of a run. A recipe names one as `data.schedule`."""

    def plan(self, samples: int, batch_size: int, ranks: int, steps: int | None = None) -> BatchPlan:
        """The batches of a run.

        Args:
            samples: of an epoch.
            batch_size: samples of each rank in a step, in batches of the full shape.
            ranks: how many share the stream.
            steps: of the run, where its `trainer.max_steps` says so.
        """
        raise NotImplementedError


def _steps_in(slots: Sequence[Slot], positions: int, ranks: int) -> int:
    """How many batches, taken in turn, fit into so many positions."""
    ends = list(accumulate(ranks * slot.size for slot in slots))
    cycles, rest = divmod(positions, ends[-1])
    return cycles * len(slots) + sum(end <= rest for end in ends)
