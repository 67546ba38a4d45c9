"""Metrics: their properties, against scikit-learn, and the odd cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score, top_k_accuracy_score
from torch.nn.functional import normalize

from collimate.evaluation.metrics import (
    auroc,
    average_precision,
    classification_metrics,
    classification_statistic,
    confusion,
    multilabel_metrics,
    paired_accuracy,
    per_class_recall,
    ranks,
    retrieval_metrics,
    winoground_metrics,
)

seeds = st.integers(0, 2**31)


def random_retrieval(seed, images=12, width=6):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 5, (images,), generator=generator)
    owner = torch.arange(images).repeat_interleave(counts)
    features = torch.randn(images, width, generator=generator)
    return features, features[owner] + torch.randn(len(owner), width, generator=generator), owner


@settings(max_examples=25, deadline=None)
@given(seed=seeds, classes=st.integers(5, 9))
def test_classification_is_scikit_learns(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(60, classes, generator=generator)
    labels = torch.randint(classes, (60,), generator=generator)
    found = classification_metrics(scores, labels)
    assert found["acc1"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1, labels=range(classes)))
    if classes > 5:
        assert found["acc5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(classes)))
    if len(set(labels.tolist())) == classes:
        assert found["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert confusion(scores, labels).sum() == 60
    assert per_class_recall(scores, labels).nanmean() == pytest.approx(found["mean_per_class_recall"], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_order_of_samples_and_classes_changes_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    scores, labels = torch.randn(40, 7, generator=generator), torch.randint(7, (40,), generator=generator)
    rows, columns = torch.randperm(40, generator=generator), torch.randperm(7, generator=generator)
    shuffled = classification_metrics(scores[rows][:, columns], columns.argsort()[labels[rows]])
    assert shuffled == pytest.approx(classification_metrics(scores, labels))


def test_a_class_that_does_not_occur_takes_no_part_and_one_sample_is_a_class():
    scores = torch.eye(4)[[0, 0, 1, 3]]
    found = classification_metrics(scores, torch.tensor([0, 0, 1, 0]))  # classes 2 and 3 are absent
    assert found["acc1"] == 0.75
    assert found["mean_per_class_recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(found["acc5"])


def test_labels_that_are_no_class_and_scores_that_are_nan_are_refused():
    with pytest.raises(ValueError, match="between 0 and 2"):
        classification_metrics(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="NaN"):
        classification_metrics(torch.full((2, 3), torch.nan), torch.tensor([0, 2]))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, levels=st.sampled_from([3, 1000]))
def test_multilabel_is_scikit_learns(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    tied = torch.randint(levels, (50, 4), generator=generator).float()
    labels = torch.rand(50, 4, generator=generator) < 0.4
    assert auroc(tied, labels).tolist() == pytest.approx([roc_auc_score(labels[:, c], tied[:, c]) for c in range(4)])
    wanted = [average_precision_score(labels[:, c], tied[:, c]) for c in range(4)]
    assert average_precision(tied, labels).tolist() == pytest.approx(wanted)


def test_multilabel_without_positives_or_negatives():
    scores, labels = torch.rand(6, 3), torch.tensor([[1, 0, 1], [0, 0, 1]] * 3)
    areas, found = auroc(scores, labels), multilabel_metrics(scores, labels)
    assert areas.isnan().tolist() == [False, True, True]
    assert found["auroc"] == pytest.approx(areas[0].item())
    assert found["mean_average_precision"] == pytest.approx(found["mean_average_precision_of_present"] * 2 / 3)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_retrieval_is_the_definition(seed):
    images, texts, owner = random_retrieval(seed)
    found = retrieval_metrics(images, texts, owner)
    scores = (normalize(texts, dim=-1) @ normalize(images, dim=-1).T).numpy()
    for k in (1, 5, 10):
        best_images = np.argsort(-scores, axis=1)[:, :k]
        best_texts = np.argsort(-scores.T, axis=1)[:, :k]
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(
            (best_images == owner[:, None].numpy()).any(1).mean()
        )
        hits = owner.numpy()[best_texts] == np.arange(len(images))[:, None]
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(hits.any(1).mean())
    assert found["rsum"] == pytest.approx(sum(value for name, value in found.items() if "recall" in name))


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_order_of_images_and_texts_changes_nothing(seed):
    images, texts, owner = random_retrieval(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(len(images), generator=generator), torch.randperm(len(texts), generator=generator)
    shuffled = retrieval_metrics(images[rows], texts[columns], rows.argsort()[owner[columns]])
    assert shuffled == pytest.approx(retrieval_metrics(images, texts, owner))


def test_a_perfect_model_and_recalls_beyond_the_candidates():
    features = torch.eye(3)
    found = retrieval_metrics(features, features, torch.arange(3), recalls=(1, 100))
    assert {value for name, value in found.items() if "recall" in name} == {1.0}
    assert found["image_retrieval_median_rank"] == found["text_retrieval_median_rank"] == 1


def test_random_features_are_at_chance():
    generator = torch.Generator().manual_seed(0)
    size = 2000
    first, second = torch.randn(2, size, 16, generator=generator)
    found = retrieval_metrics(first, second, torch.arange(size))
    assert found["image_retrieval_recall@10"] == pytest.approx(10 / size, abs=4 * math.sqrt(10) / size)
    assert found["image_retrieval_median_rank"] == pytest.approx(size / 2, rel=0.1)
    labels = torch.randint(10, (size,), generator=generator)
    accuracy = classification_metrics(torch.randn(size, 10, generator=generator), labels)["acc1"]
    assert accuracy == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / size))


def test_of_two_identical_images_the_first_is_found():
    images = torch.eye(3)[[0, 0, 1]]
    found = retrieval_metrics(images, images, torch.arange(3), recalls=(1, 2))
    assert found["image_retrieval_recall@1"] == pytest.approx(2 / 3)
    assert found["image_retrieval_recall@2"] == 1


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_ranks_do_not_depend_on_the_block(block):
    scores = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    queries, keys = torch.arange(40) % 10, torch.arange(30) % 10
    order = scores.argsort(dim=1, descending=True, stable=True)
    wanted = (keys[order] == queries[:, None]).int().argmax(1)
    assert ranks(lambda rows, columns: scores[rows, columns], queries, keys, block).tolist() == wanted.tolist()


def test_ranks_hold_few_scores_at_a_time():
    largest = 0

    def scorer(rows, columns):
        nonlocal largest
        largest = max(largest, (rows.stop - rows.start) * (columns.stop - columns.start))
        return torch.zeros(rows.stop - rows.start, columns.stop - columns.start)

    ranks(scorer, torch.zeros(30_000, dtype=torch.int64), torch.zeros(2_000, dtype=torch.int64))
    assert largest <= 2**24


def test_an_image_without_text_and_a_text_without_image_are_named():
    with pytest.raises(ValueError, match="image 1"):
        retrieval_metrics(torch.eye(3), torch.eye(3)[:2], torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        retrieval_metrics(torch.eye(2), torch.eye(2), torch.tensor([0, 2]))


def test_medians_of_weighted_ranks_are_those_of_repeated_samples():
    from collimate.evaluation.metrics import _median

    values, weights = torch.tensor([5, 1, 9, 3]), torch.tensor([[1.0, 1, 1, 1], [2, 0, 1, 0], [0, 1, 0, 1]])
    wanted = [np.median(values.repeat_interleave(row.long())) for row in weights]
    assert _median(values, weights).tolist() == wanted


def test_weights_are_repetitions():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(30, 6, generator=generator), torch.randint(6, (30,), generator=generator)
    weights = torch.randint(3, (30,), generator=generator)
    rows = torch.arange(30).repeat_interleave(weights)
    weighted = {
        name: value.item() for name, value in classification_statistic(scores, labels)(weights[None].float()).items()
    }
    assert weighted == pytest.approx(classification_metrics(scores[rows], labels[rows]))


def test_paired_choice():
    assert paired_accuracy(torch.tensor([1.0, 0.5, 0.2]), torch.tensor([0.0, 0.5, 0.3])) == {"paired_accuracy": 1 / 3}
    right = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    captions_only = torch.tensor([[0.9, 0.8], [0.3, 0.4]])  # each image prefers its caption; caption 1 prefers image 0
    found = winoground_metrics(torch.stack([right, captions_only]))
    assert found == {"text_score": 1.0, "image_score": 0.5, "group_score": 0.5}
