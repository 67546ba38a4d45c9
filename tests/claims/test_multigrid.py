"""Multigrid's claims at small scale: which way an object moves, told by a small network of 3-D convolutions.

Clips of one shape (synthetic), 16 frames of side 32 in seven classes, are drawn once and held in memory; training cuts
random squares out of them. The arms share clips and first weights:

- plain: E epochs of the full shape;
- multigrid: its schedule of long and short cycles, stretched to 1.5 E epochs;
- long cycles alone, and short cycles alone, of 1.5 E epochs as well.

Measured: the share of new clips told right; optimizer steps; and the processor's seconds for all of the training, one
thread, reading included, which do not depend on what else runs.
"""

import time
from functools import cache, partial

import pytest
from torch import Tensor, nn

from collimate.data import Source
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.evaluation.answers import answer, judge
from collimate.processing import ClassLabels, ImageProcessor
from collimate.training import Classifier, MultigridSchedule
from collimate_video import DenseClips, VideoProcessor
from collimate_world import MOTIONS, ClipSource

from .experiment import compare, train

FRAMES, SIDE, CLIPS, BATCH, EPOCHS, DECAY = 16, 32, 2400, 24, 30, 18
LR = 1e-3
SEEDS = range(3)

PLAIN, BOTH, LONG_ONLY, SHORT_ONLY = "plain", "multigrid", "long cycles", "short cycles"


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


def schedule(long: bool, short: bool, epochs: int = EPOCHS, factor: float = 1.5) -> MultigridSchedule:
    return MultigridSchedule(
        FRAMES,
        SIDE,
        [0, round(epochs * DECAY / EPOCHS)],
        epochs,
        factor,
        long=long,
        short=short,
        warmup=1.0,
        sides=(SIDE, SIDE),
    )


class Convolutions(Encoder):
    """Four 3-D convolutions, and the mean over time and place."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 64)) -> None:
        super().__init__()
        self.width = widths[-1]
        strides, kernels = [2, 2, 2, 1], [5, 3, 3, 3]
        layers: list[nn.Module] = []
        for before, after, kernel, stride in zip((3, *widths), widths, kernels, strides, strict=False):
            convolution = nn.Conv3d(before, after, kernel, stride, kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm3d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return Encoding(self.layers(inputs.transpose(1, 2)).mean((2, 3, 4)))


def build() -> Classifier:
    labels = ClassLabels(list(MOTIONS), exclusive=True)
    return Classifier(Convolutions(), labels, VideoProcessor(FRAMES, ImageProcessor(SIDE)), "video")


def arm(seed: int, long: bool = False, short: bool = False, epochs: int = EPOCHS, factor: float = 1.5) -> dict:
    plan = schedule(long, short, epochs, factor)
    clips = held("train", CLIPS)
    began = time.process_time()
    model = train(
        build,
        clips,
        seed,
        None,
        BATCH,
        LR,
        augmentations={"video": DenseClips(1, (SIDE, SIDE))},
        schedule=plan,
    )
    seconds = time.process_time() - began
    answers = answer(model, held("test", 1400))
    return {
        "accuracy": judge(answers, model, resamples=0).metrics["acc1"],
        "steps": plan.plan(CLIPS, BATCH, 1).steps,
        "seconds": seconds,
    }


ARMS = {
    PLAIN: partial(arm, factor=1.0),
    BOTH: partial(arm, long=True, short=True),
    LONG_ONLY: partial(arm, long=True),
    SHORT_ONLY: partial(arm, short=True),
}

pytestmark = pytest.mark.timeout(7200)  # a quarter of an hour on two quiet cores, all in the fixture


@pytest.fixture(scope="module")
def outcome():
    return compare("multigrid", ARMS, SEEDS)


@pytest.mark.slow
def test_a_third_of_the_steps(outcome):
    assert outcome.mean(BOTH, "steps") <= outcome.mean(PLAIN, "steps") / 3


@pytest.mark.slow
def test_less_time_than_either_cycle_alone(outcome):
    for alone in (PLAIN, SHORT_ONLY):
        assert outcome.difference(alone, BOTH, "seconds").low > 0


@pytest.mark.slow
def test_it_learns_the_motions(outcome):
    """That it is within a point of plain training does not show here; see the guide."""
    assert outcome.mean(BOTH, "accuracy") > 0.9
