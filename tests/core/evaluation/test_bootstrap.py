"""Bootstrap intervals: coverage, seeds, groups."""

import math

import pytest
import torch

from collimate.evaluation.bootstrap import confidence_intervals, evaluate


def mean_of(values):
    return lambda weights: {"mean": weights @ values / weights.sum(1)}


def test_the_interval_of_a_mean_is_the_normal_one():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = confidence_intervals(mean_of(values), 400, resamples=4000)["mean"]
    half = 1.96 * values.std().item() / math.sqrt(400)
    assert evaluate(mean_of(values), 400)["mean"] == pytest.approx(values.mean().item(), abs=1e-6)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert (high + low) / 2 == pytest.approx(values.mean().item(), abs=half / 5)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        values = (torch.rand(100, generator=torch.Generator().manual_seed(seed)) < 0.7).float()
        low, high = confidence_intervals(mean_of(values), 100, resamples=300, level=0.9, seed=seed)["mean"]
        covered += low <= 0.7 <= high
    assert 0.82 <= covered / 200 <= 0.97  # 0.9 within four binomial deviations, less what the percentile method loses


def test_a_seed_gives_the_same_interval_and_another_seed_another(monkeypatch):
    values = torch.rand(50, generator=torch.Generator().manual_seed(1))
    first = confidence_intervals(mean_of(values), 50)
    assert confidence_intervals(mean_of(values), 50) == first
    assert confidence_intervals(mean_of(values), 50, seed=1) != first
    assert confidence_intervals(mean_of(values), 50, resamples=100) != first


def test_groups_are_drawn_whole():
    """Samples that only repeat their patient add nothing to what is known."""
    patients = (torch.rand(40, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    groups = torch.arange(40).repeat_interleave(10) * 7  # any numbers will do
    low, high = confidence_intervals(mean_of(patients), 40)["mean"]
    grouped = confidence_intervals(mean_of(patients.repeat_interleave(10)), 400, groups=groups)["mean"]
    naive = confidence_intervals(mean_of(patients.repeat_interleave(10)), 400)["mean"]
    assert grouped == pytest.approx((low, high), abs=1e-6)
    assert naive[1] - naive[0] < 0.5 * (high - low)


def test_what_is_never_defined_has_an_interval_of_nan():
    intervals = confidence_intervals(lambda weights: {"never": torch.full((len(weights),), torch.nan)}, 10)
    assert all(math.isnan(end) for end in intervals["never"])
