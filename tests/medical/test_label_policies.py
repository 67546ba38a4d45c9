"""Uncertain and blank findings, by every policy."""

import pytest
import torch

from collimate.evaluation.bootstrap import evaluate
from collimate.evaluation.label_ranking import label_statistic
from collimate_medical.label_policies import (
    GLORIA_POLICIES,
    RANGES,
    check_targets,
    label_targets,
    presence_of_three,
)
from collimate_medical.prompts import COMPETITION

NAMES = ["Edema", "Fracture"]
STUDIES = [{"Edema": 1, "Fracture": 0.0}, {"Edema": -1.0}, {"Edema": "-1", "Fracture": ""}, {"Fracture": None}]


def same(found, wanted):
    torch.testing.assert_close(found, torch.tensor(wanted), equal_nan=True)


def test_blank_and_uncertain():
    nan = torch.nan
    same(label_targets(STUDIES, NAMES), [[1.0, 0], [nan, 0], [nan, 0], [0, 0]])
    same(label_targets(STUDIES, NAMES, blank="ignore"), [[1.0, 0], [nan, nan], [nan, nan], [nan, nan]])
    same(label_targets(STUDIES, NAMES, "ones"), [[1.0, 0], [1, 0], [1, 0], [0, 0]])
    same(label_targets(STUDIES, NAMES, "zeros"), [[1.0, 0], [0, 0], [0, 0], [0, 0]])
    same(label_targets(STUDIES, NAMES, "multiclass")[:, 0], [1.0, 2, 2, 0])


def test_policies_of_findings_do_not_mix():
    uncertain = [dict.fromkeys(COMPETITION, -1)] * 3
    found = label_targets(uncertain, COMPETITION, GLORIA_POLICIES)
    assert found.tolist() == [[1, 0, 0, 1, 1]] * 3
    partly = label_targets(uncertain, COMPETITION, {"Edema": "ones"})
    assert partly[:, 3].tolist() == [1] * 3
    assert partly[:, [0, 1, 2, 4]].isnan().all()


@pytest.mark.parametrize("policy", RANGES)
def test_soft_labels_are_drawn_from_their_range(policy):
    uncertain = [{"Edema": -1}] * 400
    found = label_targets(uncertain, ["Edema"], policy)
    low, high = RANGES[policy]
    assert low <= found.min() < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < found.max() <= high
    assert torch.equal(found, label_targets(uncertain, ["Edema"], policy))
    assert not torch.equal(found, label_targets(uncertain, ["Edema"], policy, seed=1))
    assert label_targets([{"Edema": 1}, {"Edema": 0}], ["Edema"], policy).tolist() == [[1], [0]]


def test_a_model_says_what_is_uncertain():
    predictions = torch.rand(4, 2)
    found = label_targets(STUDIES, NAMES, "self", predictions=predictions)
    assert torch.equal(found[1:3, 0], predictions[1:3, 0])
    assert found[[0, 3], 0].tolist() == [1, 0]  # what is known stays
    for wrong in (None, torch.rand(4, 3)):
        with pytest.raises(ValueError, match=r"needs predictions of shape \(4, 2\)"):
            label_targets(STUDIES, NAMES, "self", predictions=wrong)


def test_three_classes_are_read_as_two():
    logits = torch.randn(5, 2, 3)
    found = presence_of_three(logits)
    assert torch.allclose(found, logits.softmax(-1)[..., 1] / logits.softmax(-1)[..., :2].sum(-1))
    logits[..., 2] += 100  # however uncertain
    assert torch.allclose(presence_of_three(logits), found)


def test_nothing_known_is_an_error_to_learn_from_and_nan_to_judge_by():
    targets = label_targets([{"Edema": -1, "Fracture": 1}, {"Edema": -1, "Fracture": 0}], NAMES)
    with pytest.raises(ValueError, match="Nothing is known of 'Edema' in 2 studies"):
        check_targets(targets, NAMES)
    check_targets(targets[:, 1:], NAMES[1:])
    with pytest.raises(ValueError, match="'Fracture' is 1 in all 1 studies"):
        check_targets(targets[:1, 1:], NAMES[1:])
    found = evaluate(label_statistic(torch.rand(2, 2), targets, NAMES), 2)
    assert torch.tensor(found["auroc/Edema"]).isnan()
    assert not torch.tensor(found["auroc"]).isnan()


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"Study 1: 'Edema' is 2, where 1, 0, -1 or nothing"):
        label_targets([{"Edema": 1}, {"Edema": 2}], ["Edema"])
    with pytest.raises(ValueError, match="'yes'"):
        label_targets([{"Edema": "yes"}], ["Edema"])
    with pytest.raises(ValueError, match="policy for 'Oedema', which is none of Edema"):
        label_targets([{}], NAMES, {"Oedema": "ones"})
    with pytest.raises(ValueError, match="got 'maybe'"):
        label_targets([{}], NAMES, "maybe")
    with pytest.raises(ValueError, match="blank is zeros or ignore"):
        label_targets([{}], NAMES, blank="ones")


def test_no_study_is_no_row():
    assert label_targets([], NAMES).shape == (0, 2)
