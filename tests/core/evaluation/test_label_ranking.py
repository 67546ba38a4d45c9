"""Rankings of labels against scikit-learn: ties, unknown labels, resamples as weights, groups."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.label_ranking import LabelRanking, label_statistic

seeds = st.integers(0, 2**31)


def drawn(seed, size=60, levels=1000, positive=0.3):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (size,), generator=generator).float() / 7
    labels = (torch.rand(size, generator=generator) < positive).double()
    labels[:2] = torch.tensor([0.0, 1.0])
    return scores, labels, torch.randint(0, 4, (80, size), generator=generator).float()


@settings(max_examples=30, deadline=None)
@given(seed=seeds, levels=st.sampled_from([1, 2, 5, 1000]), positive=st.sampled_from([0.02, 0.3, 0.97]))
def test_every_resample_is_scikit_learns(seed, levels, positive):
    scores, labels, weights = drawn(seed, 40, levels, positive)
    found = LabelRanking(scores, labels)(weights)
    for row in range(0, len(weights), 7):
        drawn_rows = torch.arange(40).repeat_interleave(weights[row].long())
        chosen = labels[drawn_rows]
        if 0 < chosen.sum() < len(chosen):
            area = roc_auc_score(chosen, scores[drawn_rows])
            precision = average_precision_score(chosen, scores[drawn_rows])
            assert found.auroc[row].item() == pytest.approx(area, abs=1e-12)
            assert found.average_precision[row].item() == pytest.approx(precision, abs=1e-12)
        else:
            assert found.auroc[row].isnan()


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_what_is_not_known_takes_no_part(seed):
    scores, labels, weights = drawn(seed)
    hidden = torch.rand(60, generator=torch.Generator().manual_seed(seed)) < 0.3
    hidden[:2] = False
    spoiled = scores.clone()
    spoiled[hidden] = torch.nan  # nobody looks at it
    found = LabelRanking(spoiled, torch.where(hidden, torch.nan, labels))(weights)
    wanted = LabelRanking(scores[~hidden], labels[~hidden])(weights[:, ~hidden])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12, equal_nan=True)


def test_sure_scores_chance_and_their_reverse():
    labels = torch.tensor([1, 1, 0, 0])
    once = torch.ones(1, 4)
    assert LabelRanking(torch.tensor([4.0, 3, 2, 1]), labels)(once).auroc.item() == 1
    assert LabelRanking(torch.zeros(4), labels)(once).auroc.item() == 0.5
    assert LabelRanking(torch.tensor([1.0, 2, 3, 4]), labels)(once).auroc.item() == 0
    infinite = torch.tensor([torch.inf, 1.0, -torch.inf, 0.0])
    assert LabelRanking(infinite, labels)(once).auroc.item() == 1


def test_means_run_over_labels_of_both_kinds():
    """One has no negative, one nothing that is known, one was not scored: they are NaN, and in no mean."""
    scores, labels = torch.rand(8, 5), torch.tensor([[0.0, 1, 1, 0, 1]] * 4 + [[1.0, 0, 1, 1, 0]] * 4)
    labels[:, 3] = torch.nan
    scores[:, 4] = torch.nan
    found = evaluate(label_statistic(scores, labels, ["a", "b", "sure", "unknown", "unscored"]), 8)
    for metric in ("auroc", "average_precision"):
        assert all(math.isnan(found[f"{metric}/{name}"]) for name in ("sure", "unknown", "unscored"))
        assert found[metric] == pytest.approx((found[f"{metric}/a"] + found[f"{metric}/b"]) / 2)
    none = evaluate(label_statistic(scores[:, 3:], labels[:, 3:]), 8)
    assert all(math.isnan(value) for value in none.values())


def test_patients_are_drawn_whole():
    """Studies that repeat their patient add nothing: the interval is that of one study a patient."""
    scores, labels, _ = drawn(3, 50)
    once = label_statistic(scores[:, None], labels[:, None])
    several = label_statistic(scores[:, None].repeat_interleave(6, 0), labels[:, None].repeat_interleave(6, 0))
    groups = torch.arange(50).repeat_interleave(6)
    wanted = confidence_intervals(once, 50)["auroc"]
    assert confidence_intervals(several, 300, groups)["auroc"] == pytest.approx(wanted, abs=1e-6)
    low, high = confidence_intervals(several, 300)["auroc"]
    assert high - low < 0.6 * (wanted[1] - wanted[0])


def test_the_interval_is_the_loops():
    """Against drawing rows and calling scikit-learn, whose draws are others: quantiles agree within their spread."""
    scores, labels, _ = drawn(5, 200)
    generator = torch.Generator().manual_seed(1)
    areas = []
    for _ in range(600):
        rows = torch.randint(200, (200,), generator=generator)
        areas.append(roc_auc_score(labels[rows], scores[rows]))
    wanted = torch.tensor(areas).float().quantile(torch.tensor([0.025, 0.975])).tolist()
    found = confidence_intervals(label_statistic(scores[:, None], labels[:, None]), 200)["auroc"]
    assert found == pytest.approx(wanted, abs=0.015)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"0, 1, or NaN"):
        LabelRanking(torch.zeros(3), torch.tensor([0, 1, -1]))
    with pytest.raises(ValueError, match="not finite"):
        LabelRanking(torch.tensor([0.0, torch.nan]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        label_statistic(torch.zeros(3, 2), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="names 1"):
        label_statistic(torch.zeros(3, 2), torch.zeros(3, 2), ["one"])
