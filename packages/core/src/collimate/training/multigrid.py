"""Multigrid training: coarse, large batches first, fine, small ones last, at much the same cost a step.

Wu et al. 2020, arXiv 1912.00998; facebookresearch/SlowFast, slowfast/utils/multigrid.py and
datasets/multigrid_helper.py. With T frames of side S, long-cycle factors (t, s) and short-cycle factors f,

    long cycle    T_l = round(t T), S_l = round(s S)                   one shape for a stage of the run
    short cycle   (T_l, f_0 S), (T_l, f_1 S), (T_l, S_l)               in turn, from step to step
    batch         b = round(T S^2 / (T_l side^2)) times the full shape's

An epoch budget is shared out so that the stages of a learning-rate step take equally many steps; the last step,
fine-tuning, sees the finest shape only; all is stretched to `epoch_factor` times the baseline's epochs, and rounded.
The learning rate of a stage is gamma^k b_l (`lr_scaling: linear`); short cycles leave it alone.

Departures from the released code, each where that fails: without short cycles the last shape is the only one; a batch
never rounds down to 0; lengths are those of the batches that come; stages of no epoch are passed over. Ours is
`lr_scaling: sqrt`, the default, for AdamW and transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from collimate.data.plan import BatchPlan, BatchSchedule, ClipShape, Leg, Slot

LONG_FACTORS = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1.0), (1.0, 1.0))  # SlowFast, config/defaults.py
SHORT_FACTORS = (0.5, 0.5**0.5)  # SlowFast, config/defaults.py

LrScaling = Literal["sqrt", "linear", "none"]


class Stage(NamedTuple):
    """Epochs `start` to `end` (exclusive), in which the long cycle stays at one shape.

    Attributes:
        start, end: epochs.
        lr_index: the learning-rate step k.
        batch: b_l, what the batch of the full shape is multiplied by.
        frames, crop: T_l and S_l.
    """

    start: int
    end: int
    lr_index: int
    batch: int
    frames: int
    crop: int


class Norm(NamedTuple):
    """How batch statistics are taken: in so many splits of each rank's batch, and over so many ranks together."""

    splits: int
    ranks: int


class MultigridSchedule(BatchSchedule):
    """The stages of a multigrid run. It drives the loader, the learning rate and the batch norms.

    Args:
        frames: T; 1 for pictures, whose shape is then their side alone.
        crop: S, in pixels.
        lr_steps: epochs of the baseline at which its learning rate falls by gamma, from 0 on; the last begins the
            fine-tuning.
        epochs: of the baseline.
        epoch_factor: the run has so many times the baseline's epochs.
        long_factors: (t, s) of each stage, coarse to fine.
        short_factors: f of the short cycle, before the stage's own shape.
        gamma: what the learning rate falls by; 1 leaves its decay to `optimization.schedule`.
        long, short: go without long or short cycles.
        lr_scaling: how the learning rate follows the batch of a stage: b_l (as published), its square root, or not.
        warmup: epochs of linear warm-up, in the place of that of `optimization`.
        warmup_start: the share of the peak learning rate at which it begins.
        stride: frames of a video from one of a clip of the full shape to the next.
        sides: the least and the largest shorter side before cropping, of the full shape.
        norm_size: clips over which batch statistics are taken.
        modality: whose shape changes.

    Attributes:
        planned: all stages, empty ones too.

    Raises:
        ValueError: steps that do not rise from 0, epochs that end before the last of them, or factors for which a
            shape would have a batch of less than one.
    """

    def __init__(
        self,
        frames: int,
        crop: int,
        lr_steps: Sequence[int],
        epochs: int,
        epoch_factor: float = 1.5,
        long_factors: Sequence[tuple[float, float]] = LONG_FACTORS,
        short_factors: Sequence[float] = SHORT_FACTORS,
        gamma: float = 0.1,
        long: bool = True,
        short: bool = True,
        lr_scaling: LrScaling = "sqrt",
        warmup: float = 0.0,
        warmup_start: float = 0.0,
        stride: int = 1,
        sides: tuple[int, int] = (256, 320),
        norm_size: int = 8,
        modality: str = "video",
    ) -> None:
        steps = list(lr_steps)
        if len(steps) < (2 if long else 1) or steps[0] != 0 or any(a >= b for a, b in pairwise([*steps, epochs])):
            raise ValueError(f"lr_steps must rise from 0 to less than the {epochs} epochs, got {steps}.")
        if not (short_factors and min(short_factors) > 0 and long_factors and min(map(min, long_factors)) > 0):
            raise ValueError("long_factors and short_factors must be above 0, and at least one of each.")
        self.frames, self.crop, self.gamma, self.long, self.short = frames, crop, gamma, long, short
        self.lr_scaling, self.warmup, self.warmup_start = lr_scaling, warmup, warmup_start
        self.stride, self.sides, self.norm_size, self.modality = stride, tuple(sides), norm_size, modality
        self.short_factors = list(short_factors)
        if long:
            self.planned = self._long_stages(steps, epochs, epoch_factor, long_factors)
            ends = [0, *(stage.end for stage in self.planned)]
            powers = [(stage.lr_index, stage.batch) for stage in self.planned]
            middle = (ends[-2] + ends[-1]) // 2  # fine-tuning: half at the rate before it, half at its own
            self._rates = list(zip([*ends[:-1], middle], [*powers[:-1], powers[-2], powers[-1]], strict=True))
        else:
            total = int(epochs * epoch_factor)
            starts = [int(step * epoch_factor) for step in steps]
            self.planned = [Stage(*span, k, 1, frames, crop) for k, span in enumerate(pairwise([*starts, total]))]
            self._rates = [(start, (k, 1)) for k, start in enumerate(starts)]

    @property
    def stages(self) -> list[Stage]:
        """Those that have epochs."""
        return [stage for stage in self.planned if stage.end > stage.start]

    @property
    def total_epochs(self) -> int:
        return self.planned[-1].end

    def stage_at(self, epoch: float) -> Stage:
        """The stage of an epoch; the last beyond the end."""
        return next((stage for stage in self.stages if epoch < stage.end), self.stages[-1])

    # The learning rate ------------------------------------------------------------------------------------

    @property
    def rates(self) -> list[tuple[int, float]]:
        """(first epoch, share of the peak learning rate) of each step, without warm-up."""
        return [(start, self.gamma**k * self._scaled(batch)) for start, (k, batch) in self._rates]

    def rate(self, epoch: float) -> float:
        """The share of the peak learning rate at a point of an epoch, such as 2.25."""
        if epoch >= self.warmup:
            return self._settled(epoch)
        return self.warmup_start + (self._settled(self.warmup) - self.warmup_start) / self.warmup * epoch

    def _settled(self, epoch: float) -> float:
        return next(rate for start, rate in reversed(self.rates) if epoch >= start)

    def _scaled(self, batch: int) -> float:
        return {"linear": float(batch), "sqrt": math.sqrt(batch), "none": 1.0}[self.lr_scaling]

    # Batches ----------------------------------------------------------------------------------------------

    def plan(self, samples: int, batch_size: int, ranks: int, steps: int | None = None) -> BatchPlan:
        """The batches of the run; see `BatchSchedule.plan`. Its length is that of the schedule, whatever `steps`."""
        legs = [
            Leg.epochs(self._slots(stage, batch_size * stage.batch), stage.end - stage.start, samples, ranks)
            for stage in self.stages
        ]
        return BatchPlan(legs, ranks, self.rate)

    def shapes(self, stage: Stage) -> list[ClipShape]:
        """The shapes of a stage's short cycle, in turn."""
        full = self.frames // stage.frames if self.long else 1
        return [
            ClipShape(
                stage.frames,
                crop,
                self.stride,
                self.stride * full,
                round(self.sides[0] * crop / self.crop),
                self.sides[1],
            )
            for crop in (*self._short_crops, stage.crop)
        ]

    def sizes(self, stage: Stage, batch_size: int) -> list[int]:
        """Samples of each rank in the batches of a stage's short cycle.

        Args:
            batch_size: of each rank, in batches of the stage's own shape.
        """
        # Released: a factor whose crop is larger than the stage's makes an empty batch, and no further one.
        factors = self.short_factors if self.short else []
        return [
            *(batch_size * max(1, round((stage.crop / (factor * self.crop)) ** 2)) for factor in factors),
            batch_size,
        ]

    def norm(self, batch_size: int) -> Norm:
        """How batch norm takes its statistics over `norm_size` clips. In short cycles the number of splits stays.

        Args:
            batch_size: of each rank, in batches of the stage's own shape.
        """
        if not self.long:
            return Norm(1, 1)
        factor = batch_size / self.norm_size
        return Norm(max(1, int(factor)), max(1, int(1 / factor)))

    def _slots(self, stage: Stage, batch_size: int) -> list[Slot]:
        shapes = [shape if self.frames > 1 else shape.crop for shape in self.shapes(stage)]
        return [
            Slot(size, ((self.modality, shape),))
            for size, shape in zip(self.sizes(stage, batch_size), shapes, strict=True)
        ]

    @property
    def _short_crops(self) -> list[int]:
        return [round(factor * self.crop) for factor in self.short_factors] if self.short else []

    # Stages -----------------------------------------------------------------------------------------------

    def _long_stages(
        self, steps: list[int], epochs: int, epoch_factor: float, factors: Sequence[tuple[float, float]]
    ) -> list[Stage]:
        bases = [(max(1, round(t * self.frames)), round(s * self.crop)) for t, s in factors]
        multiples = [self._multiples(frames, crop) for frames, crop in bases]
        averages = [sum(each) / len(each) for each in multiples]
        budget = [  # (k, shape, epochs), before all of it is stretched
            (k, shape, (end - start) * average / sum(averages))
            for k, (start, end) in enumerate(pairwise(steps))
            for shape, average in enumerate(averages)
        ]
        saving = steps[-1] / sum(share / averages[shape] for _, shape, share in budget)
        budget.append((len(steps) - 1, len(bases) - 1, (epochs - steps[-1]) / saving * averages[-1]))
        stretch = epochs * epoch_factor / sum(share for *_, share in budget)
        stages, start, spent = [], 0, 0.0
        for k, shape, share in budget:
            spent += share * stretch
            stages.append(Stage(start, round(spent), k, multiples[shape][-1], *bases[shape]))
            start = stages[-1].end
        return stages

    def _multiples(self, frames: int, crop: int) -> list[int]:
        """b of each shape of a short cycle, from sides that are not rounded."""
        sides = [*(factor * self.crop for factor in (self.short_factors if self.short else [])), crop]
        found = [round(self.frames * self.crop**2 / (frames * side**2)) for side in sides]
        if min(found) < 1:
            side = sides[found.index(min(found))]
            raise ValueError(
                f"The factor {side / self.crop:.4g} makes a shape, {frames} frames of side {side:g}, so much larger "
                f"than the full one, {self.frames} of {self.crop}, that its batch would be empty."
            )
        return found

    # For people -------------------------------------------------------------------------------------------

    def eval_epochs(self, per_stage: int = 3, every: int = 10) -> list[int]:
        """The epochs after which the released code evaluates: the last of each stage, and some before it.

        Args:
            per_stage: about so many a stage.
            every: without long cycles, epochs between two.
        """
        if not self.long:
            return [epoch for epoch in range(self.total_epochs) if self._is_last(epoch) or (epoch + 1) % every == 0]
        found = []
        for start, end, *_ in self.stages:
            period = (end - start) // per_stage + 1
            found += [epoch for epoch in range(start, end) if self._is_last(epoch) or (end - 1 - epoch) % period == 0]
        return found

    def _is_last(self, epoch: int) -> bool:
        return epoch + 1 == self.total_epochs

    def to_dict(self) -> dict[str, Any]:
        """Stages with their shapes, and learning rates, as plain data."""
        return {
            "stages": [
                {**stage._asdict(), "shapes": [asdict(shape) for shape in self.shapes(stage)]} for stage in self.stages
            ],
            "rates": [list(each) for each in self.rates],
            "total_epochs": self.total_epochs,
        }
