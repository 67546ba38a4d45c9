"""Grades in an order, such as the severity of an edema from 0 to 3: how well they are ranked, and how far off they are.

With the K grades 0 ... K-1, a model that says P(grade >= k) is judged at each threshold k = 1 ... K-1 as a detector of
"k or more" (AUROC, average precision; their means over the thresholds), and its likeliest grades by Cohen's kappa with
quadratic weights (Cohen 1968),

    kappa = 1 - sum_ij (i - j)^2 O_ij / sum_ij (i - j)^2 E_ij,

O the shares of samples of grade i that were called j, E those of independent i and j with the same margins.

Shape legend: N samples, K grades, R resamples.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from collimate.evaluation.bootstrap import Statistic
from collimate.evaluation.label_ranking import label_statistic


def ordinal_statistic(logits: Float[Tensor, "N K"], grades: Int64[Tensor, " N"]) -> Statistic:
    """Metrics of grades as a function of sample weights.

    Args:
        logits: of each grade, as of a softmax over them.
        grades: the true ones, 0 to K - 1.

    Returns:
        `auroc` and `average_precision`, the means over thresholds that have samples on both sides, `auroc/>=k` and
        `average_precision/>=k` of each, `quadratic_kappa`, NaN where there is but one grade on both sides, and
        `mean_absolute_error` in grades.

    Raises:
        ValueError: a grade is none, or there are fewer than two.
    """
    count = logits.shape[1]
    if count < 2 or not len(grades) or grades.min() < 0 or grades.max() >= count:
        found = f"{grades.min()} to {grades.max()}" if len(grades) else "none"
        raise ValueError(f"Grades are two or more, from 0 to {count - 1}; there are {found}.")
    reached = logits.double().softmax(1).flip(1).cumsum(1).flip(1)[:, 1:]  # P(grade >= k)
    thresholds = torch.arange(1, count)
    areas = label_statistic(reached, (grades[:, None] >= thresholds).double(), [f">={k}" for k in thresholds.tolist()])
    called = logits.argmax(1)
    cells = grades * count + called
    distance = (torch.arange(count)[:, None] - torch.arange(count)).double()

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        weighed = weights.double()
        observed = weighed.new_zeros(len(weights), count**2).index_add_(1, cells, weighed).unflatten(1, (count, count))
        observed = observed / observed.sum((1, 2), keepdim=True)
        expected = observed.sum(2, keepdim=True) * observed.sum(1, keepdim=True)
        squares = distance.square()
        return {
            **areas(weights),
            "quadratic_kappa": 1 - (squares * observed).sum((1, 2)) / (squares * expected).sum((1, 2)),
            "mean_absolute_error": (distance.abs() * observed).sum((1, 2)),
        }

    return statistic
