"""Calibration against torchmetrics and scikit-learn, and what a report of several labels holds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve as their_curve
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

from collimate.evaluation.bootstrap import evaluate
from collimate.evaluation.calibration import calibration_curve, calibration_statistic
from collimate.evaluation.label_result import judge_labels
from collimate.evaluation.report import Report


def drawn(seed, size=80, labels=3):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(size, labels, generator=generator)
    return probabilities, (torch.rand(size, labels, generator=generator) < probabilities**2).double()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), bins=st.sampled_from([4, 10, 15]))
def test_errors_are_torchmetrics_and_scikit_learns(seed, bins):
    probabilities, labels = drawn(seed)
    found = evaluate(calibration_statistic(probabilities, labels, bins), len(labels))
    wanted = [
        binary_calibration_error(p, y.long(), n_bins=bins).item()
        for p, y in zip(probabilities.T, labels.T, strict=True)
    ]
    assert found["ece"] == pytest.approx(sum(wanted) / 3, abs=1e-6)
    briers = [brier_score_loss(y, p) for p, y in zip(probabilities.T, labels.T, strict=True)]
    assert found["brier"] == pytest.approx(sum(briers) / 3, abs=1e-6)
    observed, predicted = their_curve(labels[:, 0], probabilities[:, 0], n_bins=bins)
    curve = calibration_curve(probabilities[:, 0], labels[:, 0], bins)
    held = curve.counts > 0
    assert curve.observed[held].tolist() == pytest.approx(observed.tolist())
    assert curve.predicted[held].tolist() == pytest.approx(predicted.tolist(), abs=1e-6)


def test_weights_are_repetitions_and_unknown_labels_take_no_part():
    probabilities, labels = drawn(0)
    labels[5:25, 1] = torch.nan
    weights = torch.randint(0, 3, (1, 80), generator=torch.Generator().manual_seed(1)).float()
    rows = torch.arange(80).repeat_interleave(weights[0].long())
    repeated = evaluate(calibration_statistic(probabilities[rows], labels[rows]), len(rows))
    weighed = {name: each.item() for name, each in calibration_statistic(probabilities, labels)(weights).items()}
    assert weighed == pytest.approx(repeated)
    alone = evaluate(calibration_statistic(probabilities[25:, 1:2], labels[25:, 1:2]), 55)
    apart = labels[:, 1:2].clone()
    apart[:25] = torch.nan
    assert evaluate(calibration_statistic(probabilities[:, 1:2], apart), 80) == pytest.approx(alone)


def test_sure_and_right_is_calibrated_sure_and_wrong_is_not():
    labels = torch.tensor([[1.0], [0.0], [1.0]])
    assert evaluate(calibration_statistic(labels, labels), 3) == {"ece": 0, "brier": 0}
    assert evaluate(calibration_statistic(1 - labels, labels), 3) == {"ece": 1, "brier": 1}
    with pytest.raises(ValueError, match="no probabilities"):
        calibration_statistic(torch.tensor([[1.2]]), torch.tensor([[1.0]]))
    with pytest.raises(ValueError, match="no probabilities"):
        calibration_curve(torch.tensor([torch.nan]), torch.tensor([1.0]))


def test_a_report_of_labels(tmp_path):
    probabilities, labels = drawn(4)
    labels[:, 2] = 0  # a label of one class
    groups = torch.arange(80) // 4
    found = judge_labels("Findings", probabilities, labels, ["A", "B", "C"], {"data": "toy"}, groups, 50, True)
    assert set(found.metrics) == {"auroc", "average_precision", "ece", "brier"} == set(found.intervals)
    low, high = found.intervals["auroc"]
    assert low < found.metrics["auroc"] < high
    rows = found.details["per_label"]
    assert [row["label"] for row in rows] == ["A", "B", "C"]
    assert rows[0]["positives"] == int(labels[:, 0].sum())
    assert math.isnan(rows[2]["auroc"])
    assert found.metrics["auroc"] == pytest.approx((rows[0]["auroc"] + rows[1]["auroc"]) / 2)
    assert found.protocol["labels"].startswith("2 of 3")
    assert "20 patients" in found.protocol["intervals"]
    report = Report("Findings")
    found.add_to(report)
    page = report.save(tmp_path).read_text()
    assert "Per label" in page
    assert page.count("<svg") == 1  # the reliability of probabilities
    assert "null" in (tmp_path / "report.json").read_text()  # what is not defined
