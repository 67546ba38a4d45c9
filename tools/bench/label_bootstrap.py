"""Intervals of AUROC and average precision by patient, against drawing rows and calling scikit-learn in a loop.

    uv run python -m tools.bench.label_bootstrap

The loop is timed on a few resamples of a few labels and multiplied up, as its cost is the same each time; "loop s" is
that product. "difference" is the largest one between the point values of both, of all labels.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.label_ranking import label_statistic
from tools.bench import _harness

LABELS, POSITIVE, STUDIES_A_PATIENT = 14, 0.15, 3.0
DRAWS, FEW = 5, 2  # resamples and labels that the loop is timed on


def drawn(studies: int, levels: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and patients; scores of so many levels have ties."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(studies, LABELS, generator=generator) < POSITIVE).double()
    scores = labels + 1.5 * torch.randn(studies, LABELS, generator=generator)
    if levels is not None:
        scores = (scores * levels / 8).round()
    return scores, labels, torch.randint(max(1, round(studies / STUDIES_A_PATIENT)), (studies,), generator=generator)


def loop(scores: Tensor, labels: Tensor, patients: Tensor) -> None:
    """`DRAWS` resamples of `FEW` labels, the rows of each patient together."""
    rng = np.random.default_rng(0)
    every, numbers = np.unique(patients.numpy(), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(numbers))[:-1])
    score, label = scores.numpy(), labels.numpy()
    for _ in range(DRAWS):
        rows = np.concatenate([rows_of[patient] for patient in rng.integers(len(every), size=len(every))])
        for column in range(FEW):
            roc_auc_score(label[rows, column], score[rows, column])
            average_precision_score(label[rows, column], score[rows, column])


def compare(studies: int, levels: int | None, resamples: int, repeats: int) -> dict:
    """Seconds of both, and how far their values are apart."""
    scores, labels, patients = drawn(studies, levels)
    names = [str(label) for label in range(LABELS)]
    statistic = label_statistic(scores, labels, names)
    found = evaluate(statistic, studies)
    wanted = {}
    for column, name in enumerate(names):
        wanted[f"auroc/{name}"] = roc_auc_score(labels[:, column], scores[:, column])
        wanted[f"average_precision/{name}"] = average_precision_score(labels[:, column], scores[:, column])
    contenders = {
        "ours": lambda: confidence_intervals(
            label_statistic(scores, labels, names), studies, patients, 0.95, resamples
        ),
        "loop": lambda: loop(scores, labels, patients),
    }
    taken = _harness.interleaved(contenders, repeats)
    whole = taken["loop"] * resamples / DRAWS * LABELS / FEW
    return {
        "studies": studies,
        "ties": levels is not None,
        "resamples": resamples,
        "ours s": taken["ours"],
        "loop s": whole,
        "times as fast": whole / taken["ours"],
        "difference": max(abs(found[name] - value) for name, value in wanted.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    cases = [(1_000, None), (10_000, None), (10_000, 100), (20_000, None)]
    rows = [compare(studies, levels, options.resamples, options.repeats) for studies, levels in cases]
    _harness.report("label_bootstrap", rows, labels=LABELS, positive=POSITIVE, timed_resamples=DRAWS, timed_labels=FEW)


if __name__ == "__main__":
    main()
