"""Probes: the optimum, the choice of penalty, few shots, neighbours, and the whole way from a source."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from collimate.data import Source
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.evaluation.probes import (
    PENALTIES,
    LinearProbe,
    evaluate_probe,
    few_shot,
    held_out,
    knn_scores,
    randomized,
)
from collimate.processing import Processor


def clusters(count, classes=4, width=8, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def accuracy(scores, labels):
    return (scores.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("scaling", ["standardize", "normalize", "none"])
def test_the_fit_is_the_optimum_of_what_it_says_it_minimises(classes, scaling):
    features, labels = clusters(200, classes)
    penalty = 0.05
    probe = LinearProbe.fit(features, labels, classes, penalty, scaling)
    weights, bias = probe.weights.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    moved = LinearProbe(weights, bias, probe.shift, probe.scale, probe.normalized, penalty)
    (cross_entropy(moved.scores(features), labels) + penalty / 2 * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 2e-3
    assert bias.grad.abs().max() < 2e-3


def test_a_fit_that_starts_from_another_penalty_ends_at_the_same_place():
    features, labels = clusters(200)
    start = LinearProbe.fit(features, labels, 4, 10.0)
    warm, cold = LinearProbe.fit(features, labels, 4, 0.1, start=start), LinearProbe.fit(features, labels, 4, 0.1)
    torch.testing.assert_close(warm.weights, cold.weights, atol=5e-3, rtol=0)


def test_the_penalty_is_chosen_for_samples_that_were_not_fitted():
    features, labels = clusters(160, width=60, spread=2.5)
    unseen, unseen_labels = clusters(2000, width=60, spread=2.5, seed=1)
    found = [
        accuracy(LinearProbe.fit(features, labels, 4, float(p)).scores(unseen), unseen_labels) for p in PENALTIES[::16]
    ]
    best = LinearProbe.fit_best(features, labels, 4)
    assert accuracy(best.scores(unseen), unseen_labels) >= max(found) - 0.05
    assert best.penalty > PENALTIES[16]  # next to no penalty is not the choice where noise abounds


def test_classes_without_samples_are_never_chosen_and_a_constant_feature_does_no_harm():
    features, labels = clusters(60, classes=3)
    features[:, 0] = 5.0
    scores = LinearProbe.fit(features, labels + 1, 6, 0.01).scores(features)
    assert scores.shape == (60, 6)
    assert scores.isfinite().all()
    assert set(scores.argmax(1).tolist()) <= {1, 2, 3}


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes"):
        LinearProbe.fit(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), 2, 1.0)


def test_held_out_takes_its_share_of_each_class_and_never_the_last_sample():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    mask = held_out(labels, 0.2, seed=3)
    assert labels[mask].bincount(minlength=3).tolist() == [10, 2, 0]
    assert not torch.equal(mask, held_out(labels, 0.2, seed=4))


def test_more_shots_are_better_and_too_many_are_refused():
    features, labels = clusters(200, spread=1.5)
    unseen = clusters(400, spread=1.5, seed=1)
    found = few_shot(features, labels, *unseen, 4, shots=(1, 16), draws=3)
    assert found["few_shot@16/acc1"] > found["few_shot@1/acc1"] > 0.25
    assert found == few_shot(features, labels, *unseen, 4, shots=(1, 16), draws=3)
    with pytest.raises(ValueError, match="50 shots"):
        few_shot(features, labels, *unseen, 4, shots=(50,))


def test_neighbours_vote_as_the_definition_says():
    features, labels = clusters(50)
    unseen, _ = clusters(10, seed=1)
    cosines = torch.cosine_similarity(unseen[:, None], features[None], dim=-1).double().numpy()
    wanted = np.zeros((10, 4))
    for row in range(10):
        for neighbour in np.argsort(-cosines[row])[:7]:
            wanted[row, labels[neighbour]] += np.exp(cosines[row, neighbour] / 0.07)
    found = knn_scores(features, labels, unseen, 4, k=7).double()
    np.testing.assert_allclose(found / found.sum(1, True), wanted / wanted.sum(1, keepdims=True), atol=1e-5)
    assert knn_scores(features, labels, unseen, 4, k=1000).shape == (10, 4)


class VectorProcessor(Processor):
    def __call__(self, raw):
        return torch.as_tensor(raw)


class Half(Encoder):
    """Sees the first `width` numbers of a vector, after a random matrix if it was not trained."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.matrix = nn.Linear(8, width)

    def forward(self, inputs, mask=None):
        return Encoding(self.matrix(inputs))


class Vectors(Source):
    def __init__(self, count, seed):
        self.features, self.labels = clusters(count, seed=seed)
        self.name, self.class_names = f"vectors {seed}", ["a", "b", "c", "d"]

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        return {"__key__": str(index), "vector": self.features[index], "cls": int(self.labels[index])}


@pytest.fixture
def trained():
    encoder = Half()
    with torch.no_grad():
        encoder.matrix.weight.copy_(torch.eye(8))
    encoder.processor = VectorProcessor()
    return encoder


def test_probes_of_an_encoder(trained):
    result = evaluate_probe(
        trained, Vectors(120, 0), Vectors(80, 1), "vector", shots=(2,), batch_size=32, resamples=100
    )
    assert result.metrics["linear/acc1"] > 0.75
    assert result.metrics["knn/acc1"] > 0.75
    assert {"random/linear/acc1", "random/knn/mean_per_class_recall", "few_shot@2/acc1"} <= result.metrics.keys()
    low, high = result.intervals["linear/acc1"]
    assert low <= result.metrics["linear/acc1"] <= high
    assert "120 samples" in result.protocol["train data"]
    alone = evaluate_probe(
        trained, Vectors(120, 0), Vectors(80, 1), "vector", ["linear"], random_encoder=False, batch_size=7, resamples=10
    )
    assert alone.metrics["linear/acc1"] == result.metrics["linear/acc1"]  # whatever the batch size


def test_random_weights_are_fresh_repeatable_and_leave_the_model_alone(trained):
    before = trained.matrix.weight.clone()
    first, again, other = (randomized(trained, seed).matrix.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(trained.matrix.weight, before)
