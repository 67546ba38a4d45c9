"""Multigrid's claims at small scale: which way an object moves, told by a small network of 3-D convolutions.

Clips of one shape (synthetic), 16 frames of side 32 in seven classes, are drawn once and held in memory; training cuts
random squares out of them. The arms share clips and first weights:

- plain: E epochs of the full shape;
- multigrid: its schedule of long and short cycles, stretched to 1.5 E epochs.

Measured: the share of new clips told right; optimizer steps; and the processor's seconds of one thread, which do not
depend on what else runs, for all of the training and for reading alone, which workers take over where there are cores.
"""

import time
from functools import cache, partial
from typing import Any

import pytest
from torch import Tensor

from collimate.data import Augmentation, Source
from collimate.evaluation.answers import answer, judge
from collimate.processing import ClassLabels, ImageProcessor
from collimate.training import Classifier, MultigridSchedule
from collimate_video import Convolutions3d, DenseClips, VideoProcessor
from collimate_world import MOTIONS, ClipSource

from .experiment import compare, train

FRAMES, SIDE, CLIPS, BATCH, EPOCHS, DECAY = 16, 32, 1200, 24, 24, 14
LR = 3e-3
SEEDS = range(3)

PLAIN, MULTIGRID = "plain", "multigrid"


class Held(Source):
    """Clips that are drawn once."""

    def __init__(self, split: str, length: int) -> None:
        world = ClipSource(split, length=length, frames=FRAMES, size=SIDE)
        self.class_names = list(MOTIONS)
        self.name, self.samples = world.name, [world.read(place) for place in range(length)]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> dict:
        return self.samples[index]


held = cache(Held)


def schedule(multigrid: bool) -> MultigridSchedule:
    return MultigridSchedule(
        FRAMES,
        SIDE,
        [0, DECAY],
        EPOCHS,
        1.5 if multigrid else 1.0,
        long=multigrid,
        short=multigrid,
        warmup=1.0,
        sides=(SIDE, SIDE),
    )


class Timed(Augmentation):
    """Clips as `DenseClips` cuts them, and the processor's seconds that this takes."""

    def __init__(self) -> None:
        self.clips, self.seconds = DenseClips(1, (SIDE, SIDE)), 0.0

    def __call__(self, raw: Any, processor: Any) -> Tensor:
        began = time.process_time()
        clip = self.clips(raw, processor)
        self.seconds += time.process_time() - began
        return clip


def build() -> Classifier:
    labels = ClassLabels(list(MOTIONS), exclusive=True)
    return Classifier(Convolutions3d(), labels, VideoProcessor(FRAMES, ImageProcessor(SIDE)), "video")


def arm(seed: int, multigrid: bool) -> dict:
    plan = schedule(multigrid)
    clips, reading = held("train", CLIPS), Timed()
    began = time.process_time()
    model = train(build, clips, seed, None, BATCH, LR, augmentations={"video": reading}, schedule=plan)
    seconds = time.process_time() - began
    answers = answer(model, held("test", 1400))
    return {
        "accuracy": judge(answers, model, resamples=0).metrics["acc1"],
        "steps": plan.plan(CLIPS, BATCH, 1).steps,
        "seconds": seconds,
        "of these, reading": reading.seconds,
    }


ARMS = {PLAIN: partial(arm, multigrid=False), MULTIGRID: partial(arm, multigrid=True)}

pytestmark = pytest.mark.timeout(3600)  # some minutes on two quiet cores, all in the fixture


@pytest.fixture(scope="module")
def outcome():
    return compare("multigrid", ARMS, SEEDS)


@pytest.mark.slow
def test_a_third_of_the_steps(outcome):
    assert outcome.mean(MULTIGRID, "steps") <= outcome.mean(PLAIN, "steps") / 3


@pytest.mark.slow
def test_half_of_the_time(outcome):
    assert outcome.mean(MULTIGRID, "seconds") <= outcome.mean(PLAIN, "seconds") / 2


@pytest.mark.slow
def test_within_a_point_of_plain_training(outcome):
    assert outcome.mean(PLAIN, "accuracy") > 0.95
    assert outcome.mean(MULTIGRID, "accuracy") > outcome.mean(PLAIN, "accuracy") - 0.01
