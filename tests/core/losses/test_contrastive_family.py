"""The further contrasts: their dense equations, ranks, edge cases, and what they keep for the backward pass."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from collimate.kernels import tiles
from collimate.kernels.largest import row_argmax
from collimate.losses import (
    Paired,
    PairTemperature,
    SharedLabels,
    Smoothed,
    Subspaces,
    amcl_nt_xent_loss,
    balanced_assignments,
    clip_loss,
    cross_correlation_loss,
    cwcl_loss,
    info_nce,
    predictive_loss,
    similarity_weighted_loss,
    soft_label_loss,
    star_loss,
    supcon_loss,
    swapped_assignment_loss,
    tree_similarities,
    view_supcon_losses,
)
from collimate.losses.amcl import adaptive_losses
from collimate.losses.annotation_trees import combined_similarities, views_of
from collimate.losses.distance_weights import matrix_weights_by_distance, pair_weights_by_distance
from collimate.losses.redundancy import cross_correlation, standardized
from collimate.losses.star import star_loss_as_released
from collimate.testing import assert_same_on_ranks, assert_saved_memory_below, oracles, run_on_ranks

BATCH, WIDTH = 13, 6


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE", (3, 4))


# Label smoothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_smoothed_targets_are_torchs(smoothing, small_tiles):
    first, second = draw(7, WIDTH, dtype=torch.float64), draw(7, WIDTH, seed=1, dtype=torch.float64)
    logits, labels = 9.0 * oracles.cosines(first, second), torch.arange(7)
    expected = sum(cross_entropy(each, labels, label_smoothing=smoothing) for each in (logits, logits.T)) / 2
    loss = clip_loss(first, second, 9.0, targets=Smoothed(Paired(), smoothing))
    torch.testing.assert_close(loss, expected)


def test_a_query_without_positive_has_no_smoothed_target_either():
    targets = Smoothed(SharedLabels(torch.tensor([0, 5]), torch.tensor([0, 1])), 0.1)
    assert targets.blend(torch.eye(2), (2,))[1].tolist() == [1, 0]


# Weighted logits ------------------------------------------------------------------------------------------------


def test_factors_weigh_the_logits_of_the_sum(small_tiles):
    query, key = draw(7, WIDTH, dtype=torch.float64), draw(9, WIDTH, seed=1, dtype=torch.float64)
    weights = torch.rand(7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    labels, key_labels = torch.arange(7) % 3, torch.arange(9) % 3
    inputs = [query.requires_grad_(), key.requires_grad_(), torch.tensor(9.0, dtype=torch.float64).requires_grad_()]

    def dense():
        logits = inputs[2] * normalize(query, dim=1) @ normalize(key, dim=1).T
        positive = (labels[:, None] == key_labels).double()
        return ((weights * logits).logsumexp(1) - (positive * logits).sum(1) / positive.sum(1)).mean()

    tiled = info_nce(
        *inputs, targets=SharedLabels(labels, key_labels), factor=lambda rows, columns: weights[rows, columns]
    )
    expected = dense()
    torch.testing.assert_close(tiled, expected)
    torch.testing.assert_close(torch.autograd.grad(tiled, inputs), torch.autograd.grad(expected, inputs))


def hands(seed):
    return draw(BATCH, 4, 2, seed=seed)


def weighted(first, second, first_joints, second_joints, scale):
    joints = first_joints.detach(), second_joints.detach()
    return similarity_weighted_loss(
        first,
        second,
        1 / scale,
        pair_weights=pair_weights_by_distance(*joints),
        matrix_weights=matrix_weights_by_distance(*joints, "nonlinear", steepness=2.0),
    )


def test_equal_distances_weigh_all_alike():
    same = torch.zeros(5, 4, 2)
    assert pair_weights_by_distance(same, same).tolist() == [1.0] * 5
    first, second = draw(5, WIDTH), draw(5, WIDTH, seed=1)
    plain = similarity_weighted_loss(first, second)
    weights = matrix_weights_by_distance(same, same)
    torch.testing.assert_close(similarity_weighted_loss(first, second, matrix_weights=weights), plain)
    views = supcon_loss(torch.stack([first, second], 1), temperature=0.5)
    torch.testing.assert_close(plain, views)  # without weights it is NT-Xent


def test_the_most_distant_pair_weighs_nothing_and_the_nearest_most():
    weights = pair_weights_by_distance(
        torch.zeros(3, 4, 2), torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1).expand(3, 4, 2)
    )
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, 0.5]))


# Several heads with temperatures --------------------------------------------------------------------------------


def temperature(first, second):
    return 0.3 + 0.2 * torch.linalg.vecdot(first, second)


def adaptive(first, second, scale):
    features = normalize(torch.stack([first, second], 1).unflatten(2, (2, 3)), dim=-1)
    return amcl_nt_xent_loss(features, temperature, 0.1) * scale


def test_the_hardest_negative_of_each_head_takes_part(small_tiles):
    first, second = draw(5, WIDTH), draw(5, WIDTH, seed=1)
    features = normalize(torch.stack([first, second], 1).unflatten(2, (2, 3)), dim=-1)
    views = features.flatten(0, 1)
    expected = []
    for anchor in range(10):
        for head in range(2):
            x, partner = views[anchor, head], views[anchor ^ 1, head]
            others = [views[k, head] for k in range(10) if k // 2 != anchor // 2]
            worst = max(others, key=lambda y: float(x @ y))
            expected.append(
                adaptive_losses(x @ partner, x @ worst, temperature(x, partner), temperature(x, worst), width=3)
            )
    torch.testing.assert_close(adaptive(first, second, 1.0), torch.stack(expected).sum() / 10)


def test_one_sample_alone_has_no_negatives():
    with pytest.raises(ValueError, match="no negatives"):
        amcl_nt_xent_loss(draw(1, 2, 2, 3), temperature)


def test_temperatures_stay_within_their_bounds_and_are_symmetric():
    network = PairTemperature(4, low=0.1, high=0.7)
    first, second = draw(9, 4), draw(9, 4, seed=1) * 100
    found = network(first, second)
    assert found.min() >= 0.1
    assert found.max() <= 0.7 + 1e-6
    torch.testing.assert_close(found, network(second, first))


def test_the_largest_product_is_found_in_tiles(small_tiles):
    query, key = draw(8, WIDTH), draw(11, WIDTH, seed=1)
    kept = torch.rand(8, 11, generator=torch.Generator().manual_seed(3)) > 0.5
    expected = (query @ key.T).masked_fill(~kept, -torch.inf).argmax(1)
    assert torch.equal(row_argmax(query, key, lambda rows, columns: kept[rows, columns]), expected)


def test_no_matrix_of_pairs_is_kept():
    features = normalize(draw(512, 2, 2, 4), dim=-1).requires_grad_()
    matrix = 1024 * 1024 * 4
    assert_saved_memory_below(matrix // 4, lambda: amcl_nt_xent_loss(features, temperature), [features])
    joints = draw(512, 4, 2)
    weights = matrix_weights_by_distance(joints, joints + 1)
    first = draw(512, 8).requires_grad_()
    assert_saved_memory_below(
        matrix // 4, lambda: similarity_weighted_loss(first, first * 2, matrix_weights=weights), [first]
    )


# Terms without negatives ----------------------------------------------------------------------------------------


def decorrelated(first, second, scale):
    return cross_correlation_loss(standardized(first), second, 0.1) * scale


def predicted(first, second, scale):
    return predictive_loss(first, second) * scale


def assigned(first, second, scale):
    prototypes = normalize(draw(4, WIDTH, seed=7), dim=1).T
    return swapped_assignment_loss(first @ prototypes / 5, second @ prototypes / 5, scale, epsilon=0.3)


def test_equal_whitened_views_have_no_redundancy():
    whitened = torch.linalg.qr(draw(9, 4, dtype=torch.float64))[0] * 3
    assert float(cross_correlation_loss(whitened, whitened)) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(cross_correlation(whitened, whitened), torch.eye(4, dtype=torch.float64))


def test_targets_of_predictions_get_no_gradient():
    first, second = draw(5, WIDTH).requires_grad_(), draw(5, WIDTH, seed=1).requires_grad_()
    loss = predictive_loss(first, second)
    loss.backward()
    assert second.grad is None
    torch.testing.assert_close(predictive_loss(first, 3 * first), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_assignments_are_balanced():
    found = balanced_assignments(draw(12, 4, dtype=torch.float64), epsilon=0.5, iterations=100)
    torch.testing.assert_close(found.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(found.sum(0), torch.full((4,), 3.0, dtype=torch.float64))


def test_assignments_survive_scores_of_any_size():
    assert balanced_assignments(1000 * draw(6, 3), epsilon=0.01).isfinite().all()


def test_assignments_are_those_of_all_ranks():
    scores = draw(BATCH, 4)
    found = torch.cat(run_on_ranks(balanced_assignments, [(scores[:4],), (scores[4:],)]))
    torch.testing.assert_close(found, balanced_assignments(scores))


# Structured labels ----------------------------------------------------------------------------------------------

TREES = [
    {"hotel": {"inform": {"area": [{"value": "north"}]}, "request": {}}},
    {" Hotel ": {"INFORM": {"area": [{"value": "North "}]}, "request": {}}},
    {"default_domain": {"inform": {"stars": []}}, "taxi": {}},
    {},
]


def test_trees_are_as_alike_as_their_sets():
    found = tree_similarities(TREES)
    for view, matrix in zip(views_of({}), found, strict=True):
        for i, a in enumerate(TREES):
            for j, b in enumerate(TREES):
                left, right = views_of(a)[view], views_of(b)[view]
                expected = 1.0 if i == j else len(left & right) / max(len(left | right), 1)
                assert float(matrix[i, j]) == pytest.approx(expected), (view, i, j)
    assert combined_similarities(TREES)[0].tolist()[:2] == [1.0, 1.0]
    assert combined_similarities(TREES)[3].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_placeholders_are_left_out_where_they_stand():
    views = views_of(TREES[2])
    assert views["D"] == {("taxi",)}
    assert views["IS"] == {("inform", "stars")}
    assert not views["DI"] | views["DIS"]


def test_trees_of_all_ranks_are_compared():
    found = torch.cat(run_on_ranks(tree_similarities, [(TREES[:1],), (TREES[1:],)]), 1)
    assert torch.equal(found, tree_similarities(TREES))


def test_similarities_that_fit_no_space_are_told():
    with pytest.raises(ValueError, match="2 similarities for 3 spaces"):
        view_supcon_losses(draw(4, 2, 3, 5), torch.rand(2, 4, 4))


def test_subspaces_are_of_unit_length():
    found = Subspaces(6, spaces=3, dim=4)(draw(5, 6))
    assert found.shape == (5, 3, 4)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(5, 3))


# Targets of a frozen encoder --------------------------------------------------------------------------------------


def sharpened(first, second, scale):
    return cwcl_loss(first, second, scale, target_temperature=0.2)


def test_targets_of_a_frozen_encoder_may_be_sharper(small_tiles):
    frozen, trained = draw(7, WIDTH, dtype=torch.float64), draw(7, WIDTH, seed=1, dtype=torch.float64)
    logits, weights = 9 * oracles.cosines(frozen, trained), (oracles.cosines(frozen, frozen) / 0.2).softmax(1)
    expected = oracles.softmax_losses(logits, weights).mean() + oracles.softmax_losses(logits.T).mean()
    torch.testing.assert_close(cwcl_loss(frozen, trained, 9.0, target_temperature=0.2), expected)
    with pytest.raises(ValueError, match="one teacher embedding"):
        cwcl_loss(frozen, trained, 9.0, teacher=draw(7, 2, WIDTH), target_temperature=0.2)


# Across ranks ---------------------------------------------------------------------------------------------------


def smoothed(first, second, scale):
    return clip_loss(first, second, scale, targets=Smoothed(Paired(), 0.1))


def soft_labels(first, second, embeddings, scale):
    return soft_label_loss(first, second, embeddings.detach(), 1 / scale, 0.5)


def star(first, second, labels, scale):
    return star_loss(torch.stack([first, second], 1), labels, scale.log())


def star_released(first, second, labels, scale):
    return star_loss_as_released(torch.stack([first, second], 1), labels, scale.log())


def in_spaces(first, second, weights, scale):
    features = torch.stack([first, second], 1).unflatten(2, (2, 3))
    weights = torch.stack([weights, weights.square()]).detach()
    return view_supcon_losses(features, weights, 1 / scale).mean()


PAIRS = {"first": draw(BATCH, WIDTH), "second": draw(BATCH, WIDTH, seed=1) + draw(BATCH, WIDTH)}
LABELS = {"labels": torch.arange(BATCH) % 3}
CASES = {
    smoothed: PAIRS,
    sharpened: PAIRS,
    soft_labels: PAIRS | {"embeddings": draw(BATCH, 3, seed=2)},
    star: PAIRS | LABELS,
    star_released: PAIRS | LABELS,
    in_spaces: PAIRS | {"weights": torch.rand(BATCH, BATCH, generator=torch.Generator().manual_seed(5))},
    weighted: PAIRS | {"first_joints": hands(3), "second_joints": hands(4)},
    adaptive: PAIRS,
    decorrelated: PAIRS,
    predicted: PAIRS,
    assigned: PAIRS,
}


@pytest.mark.parametrize("loss", CASES, ids=lambda loss: loss.__name__)
def test_value_and_gradients_are_those_of_one_process(loss):
    assert_same_on_ranks(loss, CASES[loss], {"scale": torch.tensor(2.0)}, ranks=(2, 3), tolerance=2e-5)
