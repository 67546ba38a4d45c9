"""What hand-made features reach in the probes: the floor below which a trained encoder has learnt nothing of use.

    uv run python -m tools.bench.feature_floor TRAIN TEST

TRAIN and TEST are labelled data, named as in `collimate data inspect`. Several pairs may follow one another.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, normalize, one_hot, unfold

from collimate.data import Source, open_source
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.evaluation import LinearProbe, classification_metrics, extract, knn_scores
from collimate.processing import ImageProcessor
from tools.bench import _harness

SIDE, CELL, ANGLES, LEVELS = 64, 8, 9, 4


class HandMade(Encoder):
    """Colour histograms of each quarter of a picture, and histograms of its gradients' directions.

    Dalal and Triggs 2005: unsigned directions in 8 x 8 cells, blocks of 2 x 2 cells brought to length 1.
    """

    width = 4 * LEVELS**3 + 4 * ANGLES * (SIDE // CELL - 1) ** 2

    def __init__(self) -> None:
        super().__init__()
        self.processor = ImageProcessor(SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="squash")
        self.place = torch.nn.Parameter(torch.empty(0))  # encoders tell their device by their parameters

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return Encoding(torch.cat([colours(inputs), directions(inputs)], 1))


def colours(images: Tensor) -> Tensor:
    """(B, 3, S, S) in [0, 1] -> (B, 4 * LEVELS^3), square roots of shares."""
    level = (images * LEVELS).long().clamp_max(LEVELS - 1)
    bins = one_hot((level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2], LEVELS**3).permute(0, 3, 1, 2)
    return avg_pool2d(bins.float(), SIDE // 2).sqrt().flatten(1)


def directions(images: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, 4 * ANGLES * (S / CELL - 1)^2)."""
    grey = images.mean(1, keepdim=True)
    row = torch.tensor([[-1.0, 0, 1]]).view(1, 1, 1, 3)
    across, down = conv2d(grey, row, padding=(0, 1)), conv2d(grey, row.transpose(2, 3), padding=(1, 0))
    strength = torch.hypot(across, down)
    angle = (torch.atan2(down, across) % torch.pi) / torch.pi * ANGLES
    lower = angle.floor()
    share = angle - lower
    votes = sum(
        one_hot(((lower + step) % ANGLES).long()[:, 0], ANGLES).permute(0, 3, 1, 2) * weight * strength
        for step, weight in ((0, 1 - share), (1, share))
    )
    blocks = unfold(avg_pool2d(votes, CELL), 2)  # (B, 4 * ANGLES, blocks)
    return normalize(normalize(blocks, dim=1).clamp_max(0.2), dim=1).flatten(1)


def floor(train: Source, test: Source) -> list[dict[str, object]]:
    """A row for each probe."""
    features = [extract(HandMade(), source, ["image"], ["label"], device="cpu") for source in (train, test)]
    (fitted, labels), (tested, truth) = ((each.encodings["image"].pooled, each.extras["label"]) for each in features)
    classes = int(labels.max()) + 1
    probe = LinearProbe.fit_best(fitted, labels, classes)
    answers = {"linear": probe.scores(tested), "knn": knn_scores(fitted, labels, tested, classes)}
    return [
        {"data": test.name, "probe": kind, "penalty": probe.penalty if kind == "linear" else None}
        | classification_metrics(scores, truth)
        for kind, scores in answers.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="TRAIN TEST, in pairs")
    names = parser.parse_args().data
    rows = []
    for train, test in zip(names[::2], names[1::2], strict=True):
        rows += floor(open_source(train), open_source(test))
    for row in rows:  # what the data are called elsewhere says nothing here
        row["data"] = "/".join(str(row["data"]).split("/")[-2:])
    _harness.report("feature_floor", rows, side=SIDE, cell=CELL, angles=ANGLES, levels=LEVELS)


if __name__ == "__main__":
    main()
