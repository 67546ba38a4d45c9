"""The losses of the medical package: exact over ranks, masks that do what they say, gaps in the data."""

import functools
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from collimate.testing import assert_same_on_ranks
from collimate_medical.anchored import anchored_losses
from collimate_medical.convirt import convirt_loss
from collimate_medical.gloria import gloria_losses, local_scores
from collimate_medical.medclip import medclip_loss
from collimate_medical.merl import DropoutViews, merl_losses


def rows(count=9, width=6, seed=0, **others):
    torch.manual_seed(seed)
    return {name: torch.randn(count, width) for name in ("text", "xray", "ecg")} | others


def more(text, xray, ecg, temperature=None, given=None, other=None, patient=None, words=None):
    scale = 50.0 if temperature is None else 1 / temperature
    terms = anchored_losses(
        text,
        xray,
        ecg,
        scale,
        xray_given=given,
        ecg_given=other,
        patient_ids=patient,
        text_ids=words,
        xray_ecg=True,
    )
    return torch.stack([term for term in terms if term is not None]).sum()


def contrast(query, key, kept):
    """The formula in float64: half of both directions, over the pairs that are kept."""
    scores = 50 * normalize(query.double(), dim=1) @ normalize(key.double(), dim=1).T
    scores = scores.masked_fill(~(kept | torch.eye(len(scores), dtype=torch.bool)), -math.inf)
    target = torch.arange(len(scores))
    return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2


# MoRE -------------------------------------------------------------------------------------------------------------


def test_masks_and_gaps_are_those_of_the_formula():
    inputs = rows()
    patient, words = torch.tensor([1, 1, 2, 3, 4, 4, 5, 6, 7]), torch.tensor([9, 8, 8, 8, 7, 6, 5, 5, 4])
    xray_given = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 0]).bool()
    ecg_given = torch.tensor([1, 0, 1, 1, 1, 1, 0, 1, 1]).bool()
    found = anchored_losses(
        **inputs, xray_given=xray_given, ecg_given=ecg_given, patient_ids=patient, text_ids=words, xray_ecg=True
    )
    kept = (patient[:, None] != patient) & (words[:, None] != words)
    for term, (query, key, given) in {
        "text_xray": ("text", "xray", xray_given),
        "text_ecg": ("text", "ecg", ecg_given),
        "xray_ecg": ("xray", "ecg", xray_given & ecg_given),
    }.items():
        expected = contrast(inputs[query][given], inputs[key][given], kept[given][:, given])
        torch.testing.assert_close(getattr(found, term).double(), expected, rtol=1e-5, atol=1e-6)


def test_more_on_ranks():
    there = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 0]).bool()
    assert_same_on_ranks(
        more,
        rows(given=there, other=there.flip(0), patient=torch.arange(9) // 2, words=torch.arange(9) % 7),
        shared={"temperature": torch.tensor(0.05)},
    )


def test_a_modality_that_is_nowhere_costs_nothing():
    inputs = {name: value.requires_grad_() for name, value in rows().items()}
    nowhere = torch.zeros(9, dtype=torch.bool)
    found = anchored_losses(**inputs, ecg_given=nowhere)
    assert found.text_ecg.item() == 0
    found.text_ecg.backward()
    assert inputs["ecg"].grad is not None
    assert not inputs["ecg"].grad.any()
    one = anchored_losses(**inputs, ecg_given=torch.arange(9) == 4)
    assert one.text_ecg.item() == pytest.approx(0, abs=1e-6)


def test_what_stands_in_for_the_missing_is_not_looked_at():
    inputs, there = rows(), torch.arange(9) < 6
    first = anchored_losses(**inputs, xray_given=there)
    inputs["xray"] = inputs["xray"].masked_fill(~there[:, None], math.nan)
    assert torch.equal(anchored_losses(**inputs, xray_given=there).text_xray, first.text_xray)


def test_one_patient_alone_has_no_negatives():
    same = torch.zeros(9, dtype=torch.long)
    assert anchored_losses(**rows(), patient_ids=same).text_xray.item() == pytest.approx(0, abs=1e-5)


def test_half_precision_features_give_a_finite_float32_loss():
    found = anchored_losses(**{name: value.bfloat16() for name, value in rows().items()})
    assert found.text_xray.dtype == torch.float32
    assert found.text_xray.isfinite()


# The others -------------------------------------------------------------------------------------------------------


def medclip(image, text, image_labels, text_labels):
    return medclip_loss(image, text, image_labels, text_labels, 10.0)


def merl(ecg, report, view, other):
    terms = merl_losses(ecg, report, view, other)
    return terms.cross_modal + terms.uni_modal


def gloria(image, text, regions, words, mask):
    terms = gloria_losses(image, text, regions, words, mask)
    return terms.local + terms.pooled


def test_all_of_them_on_ranks():
    torch.manual_seed(1)
    some = functools.partial(torch.randn, 7)
    assert_same_on_ranks(convirt_loss, {"image": some(5), "text": some(5)})
    labels = {"image_labels": torch.randint(-1, 2, (7, 4)), "text_labels": torch.randint(-1, 2, (7, 4))}
    assert_same_on_ranks(medclip, {"image": some(5), "text": some(5), **labels})
    assert_same_on_ranks(merl, {"ecg": some(5), "report": some(5), "view": some(6), "other": some(6)})
    mask = torch.arange(4) < torch.randint(1, 5, (7, 1))
    assert_same_on_ranks(
        gloria, {"image": some(5), "text": some(5), "regions": some(6, 5), "words": some(4, 5), "mask": mask}
    )


def test_convirt_takes_a_share():
    image, text = torch.randn(4, 3), torch.randn(4, 3)
    both = convirt_loss(image, text, image_share=1.0) + convirt_loss(image, text, image_share=0.0)
    torch.testing.assert_close(convirt_loss(image, text, image_share=0.5), both / 2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        convirt_loss(image, text, image_share=1.5)


def test_medclip_needs_the_same_findings():
    with pytest.raises(ValueError, match="4 labels and texts 3"):
        medclip_loss(torch.randn(2, 3), torch.randn(2, 3), torch.zeros(2, 4), torch.zeros(2, 3), 1.0)


def test_gloria_knows_no_padding():
    torch.manual_seed(2)
    regions, words = torch.randn(3, 5, 4), torch.randn(2, 6, 4)
    mask = torch.arange(6) < torch.tensor([[4], [2]])
    found = local_scores(regions, words, mask)
    padded = local_scores(regions, words.masked_fill(~mask[..., None], 100.0), mask)
    assert torch.equal(found, padded)
    alone = local_scores(regions, words[1:, :2], mask[1:, :2])
    torch.testing.assert_close(found[:, 1:], alone)
    with pytest.raises(ValueError, match="Text 1 has no word"):
        local_scores(regions, words, mask & torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match="of one width"):
        local_scores(regions[..., :3], words, mask)


def test_two_views_differ_in_training_alone():
    views = DropoutViews(8, 0.5)
    pooled = torch.randn(3, 8)
    first, second = views(pooled)
    assert first.shape == second.shape == (3, 8)
    assert not torch.equal(views(pooled)[0], first)
    views.eval()
    assert torch.equal(views(pooled)[0], views(pooled)[0])
