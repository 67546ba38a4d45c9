"""Probes of several labels on shares of the groups, grades in an order, and an encoder taught from the start."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, roc_auc_score
from torch import nn

from collimate.data import Source
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.evaluation.bootstrap import evaluate
from collimate.evaluation.label_probes import judge_shares, label_probe, rows_of_share, shares_statistic
from collimate.evaluation.ordinal import ordinal_statistic
from collimate.evaluation.report import Report
from collimate.evaluation.supervised import supervised_scores
from collimate.processing import Processor


def toy(count, seed=0, labels=3, width=10, noise=1.0):
    """Labels that are read off directions of the features; two samples a group."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator)
    directions = torch.randn(labels, width, generator=torch.Generator().manual_seed(99))
    scores = features @ directions.T + noise * torch.randn(count, labels, generator=generator)
    return features, (scores > 0).double(), torch.arange(count) // 2


def areas(scores, labels):
    return [roc_auc_score(labels[:, column], scores[:, column]) for column in range(labels.shape[1])]


def test_more_labels_are_better_and_enough_find_the_directions():
    features, labels, groups = toy(800)
    unseen, unseen_labels, _ = toy(600, seed=1)
    found = []
    for share in (0.01, 0.1, 1.0):
        rows = rows_of_share(groups, share)
        found.append(areas(label_probe(features[rows], labels[rows], unseen, groups[rows]).scores, unseen_labels))
    means = [sum(each) / 3 for each in found]
    assert means[0] < means[1] < means[2]
    directions = torch.randn(3, 10, generator=torch.Generator().manual_seed(99))
    best = areas(unseen @ directions.T, unseen_labels)
    assert all(one > other - 0.01 for one, other in zip(found[2], best, strict=True))


def test_shares_are_of_groups_whole_and_inside_each_other():
    groups = torch.arange(300) // 3
    small, large = rows_of_share(groups, 0.05, 4), rows_of_share(groups, 0.5, 4)
    assert (len(small), len(large)) == (15, 150)
    assert set(small.tolist()) <= set(large.tolist())
    assert groups[large].bincount(minlength=100).unique().tolist() == [0, 3]
    assert not torch.equal(small, rows_of_share(groups, 0.05, 5))
    assert len(rows_of_share(groups, 1.0)) == 300
    assert len(rows_of_share(groups, 0.0001)) == 3  # one group is the least
    for wrong in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match="A share lies above 0"):
            rows_of_share(groups, wrong)


def test_unknown_labels_do_not_count_and_one_sided_ones_are_chance():
    features, labels, groups = toy(300)
    unseen, _, _ = toy(50, seed=1)
    spoiled = labels.clone()
    hidden = torch.rand(300, generator=torch.Generator().manual_seed(2)) < 0.4
    spoiled[hidden, 0] = torch.nan
    spoiled[:, 1] = 1.0
    spoiled[:, 2] = torch.nan
    found = label_probe(features, spoiled, unseen, groups)
    assert found.fitted.tolist() == [True, False, False]
    assert (found.scores[:, 1:] == 0).all()
    flipped = labels.clone()
    flipped[hidden, 0] = torch.nan
    again = label_probe(features, torch.stack([flipped[:, 0]], 1), unseen, groups)
    assert torch.equal(found.scores[:, 0], again.scores[:, 0])


def test_rows_are_compared_on_the_same_resamples(tmp_path):
    _, labels, groups = toy(120)
    good, bad = labels + torch.randn(labels.shape), torch.randn(labels.shape)
    found = evaluate(shares_statistic({"": good, "random": bad}, labels), 120)
    assert found["above random/auroc"] == pytest.approx(found["auroc"] - found["random/auroc"])
    scores = {0.1: {"": good, "random": bad}, 1.0: {"": good * 2, "random": good}}
    result = judge_shares("Shares", scores, labels, groups, {"data": "toy"}, 60)
    assert set(result.metrics) == {
        f"{name}@{share}"
        for name in ("auroc", "average_precision", "random/auroc", "random/average_precision", "above random/auroc")
        for share in ("10%", "100%")
    }
    assert result.metrics["above random/auroc@100%"] == 0
    assert result.intervals["above random/auroc@100%"] == (0, 0)  # the same scores on the same draws
    low, high = result.intervals["above random/auroc@10%"]
    assert 0 < low < high
    report = Report("Shares")
    result.add_to(report)
    assert "<svg" in report.save(tmp_path).read_text()


# Grades -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_grades_are_judged_as_scikit_learn_does(seed):
    generator = torch.Generator().manual_seed(seed)
    grades = torch.cat([torch.arange(4), torch.randint(4, (56,), generator=generator)])
    logits = torch.randn(60, 4, generator=generator) + nn.functional.one_hot(grades, 4)
    found = evaluate(ordinal_statistic(logits, grades), 60)
    called, reached = logits.argmax(1), logits.softmax(1)
    assert found["quadratic_kappa"] == pytest.approx(cohen_kappa_score(grades, called, weights="quadratic"))
    assert found["mean_absolute_error"] == pytest.approx(mean_absolute_error(grades, called))
    each = [roc_auc_score(grades >= k, reached[:, k:].sum(1)) for k in (1, 2, 3)]
    assert [found[f"auroc/>={k}"] for k in (1, 2, 3)] == pytest.approx(each, abs=1e-5)
    assert found["auroc"] == pytest.approx(sum(each) / 3, abs=1e-5)
    weights = torch.randint(0, 3, (1, 60), generator=generator).float()
    rows = torch.arange(60).repeat_interleave(weights[0].long())
    kappa = ordinal_statistic(logits, grades)(weights)["quadratic_kappa"].item()
    assert kappa == pytest.approx(cohen_kappa_score(grades[rows], called[rows], weights="quadratic"))


def test_odd_grades():
    sure = 50 * nn.functional.one_hot(torch.tensor([0, 1, 1]), 4).float()
    found = evaluate(ordinal_statistic(sure, torch.tensor([0, 1, 1])), 3)
    assert (found["quadratic_kappa"], found["auroc"], found["mean_absolute_error"]) == (1, 1, 0)
    assert math.isnan(found["auroc/>=2"])  # nobody is so ill
    assert math.isnan(evaluate(ordinal_statistic(sure[:1], torch.tensor([0])), 1)["quadratic_kappa"])
    for wrong in (torch.tensor([0, 4, 1]), torch.tensor([-1, 0, 1])):
        with pytest.raises(ValueError, match="from 0 to 3"):
            ordinal_statistic(sure, wrong)


# Supervised -------------------------------------------------------------------------------------------------------


class Vectors(Source):
    def __init__(self, features):
        self.name, self.features = "vectors", features

    def __len__(self):
        return len(self.features)

    def read(self, index):
        return {"__key__": str(index), "__source__": self.name, "vector": self.features[index]}


class AsItIs(Processor):
    modality = "vector"

    def __call__(self, raw):
        return raw


class Layers(Encoder):
    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, inputs, mask=None):
        return Encoding(self.layers(inputs))


def test_an_encoder_is_taught_from_the_start_and_the_given_one_stays():
    features, labels, _ = toy(400, noise=0.1)
    unseen, unseen_labels, _ = toy(200, seed=1, noise=0.1)
    encoder = Layers()
    encoder.processor = AsItIs()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    labels[::5, 1] = torch.nan
    rows = torch.arange(400).flip(0)  # labels belong to rows, wherever these lie
    arguments = (Vectors(features), rows, labels[rows], Vectors(unseen), "vector")
    found = supervised_scores(encoder, *arguments, steps=300, batch_size=32, device="cpu")
    assert min(areas(found, unseen_labels)) > 0.9
    assert torch.equal(found, supervised_scores(encoder, *arguments, steps=300, batch_size=32, device="cpu"))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    untaught = supervised_scores(encoder, *arguments, steps=0, batch_size=32, device="cpu")
    assert min(areas(untaught, unseen_labels)) < 0.8
