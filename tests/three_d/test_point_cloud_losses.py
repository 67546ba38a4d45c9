"""Losses on point clouds: against plain formulas, over ranks, with nothing to compare, and how pairs are drawn."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from collimate.testing import assert_same_on_ranks
from collimate_3d.grid import BEVGrid
from collimate_3d.losses import (
    bev_contrast_loss,
    depth_contrast_losses,
    draw_pairs,
    flow_equivariance_loss,
    flow_warped,
    hardest_contrastive_losses,
    matched_cells,
    one_pair_a_cell,
    point_info_nce,
    proposal_cluster_loss,
    proposal_instance_loss,
    rotation_class,
    rotation_classification_loss,
)

UNEVEN = [[7, 5]]
GRID = BEVGrid((6, 6), (1.0, 1.0), (-3.0, -3.0))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def maps(count=5, empty=0.4):
    return torch.randn(count, 4, 6, 6) * (torch.rand(count, 1, 6, 6) > empty)


def motions(count=5):
    found = torch.eye(4).repeat(count, 1, 1)
    found[:, :2, 3] = torch.rand(count, 2)
    return found


# Points ---------------------------------------------------------------------------------------------------------


def test_point_info_nce_is_a_cross_entropy():
    first, second = torch.randn(9, 8), torch.randn(7, 8)
    pairs = torch.tensor([[0, 3], [4, 1], [8, 6], [2, 3]])
    query, key = (normalize(each[rows]) for each, rows in zip((first, second), pairs.T, strict=True))
    wanted = torch.nn.functional.cross_entropy(query @ key.T / 0.1, torch.arange(4))
    found = point_info_nce(first, second, pairs, 0.1)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(point_info_nce(first, second, pairs, 0.1, reduction="sum"), 4 * wanted)


def test_losses_over_ranks():
    rows = {"first": torch.randn(12, 8), "second": torch.randn(12, 8)}

    def contrast(first, second):
        places = torch.arange(len(first))
        return point_info_nce(first, second, torch.stack([places, places], 1), group=None)

    assert_same_on_ranks(contrast, rows, splits=UNEVEN)
    assert_same_on_ranks(
        lambda first, second: proposal_instance_loss(torch.stack([first, second], 1)), rows, splits=UNEVEN
    )
    assert_same_on_ranks(lambda first, second: proposal_cluster_loss(first, second), rows, splits=UNEVEN)
    shared = {"point_queue": torch.randn(10, 8), "voxel_queue": torch.randn(10, 8)}

    def formats(first, second, point_queue, voxel_queue):
        losses = depth_contrast_losses(
            first, second, second.detach(), first.detach(), point_queue.detach(), voxel_queue.detach()
        )
        return sum(losses)

    assert_same_on_ranks(formats, rows, shared, splits=UNEVEN)


def test_maps_over_ranks():
    rows = {"moved": maps(), "other": maps(), "motion": motions()}

    def contrast(moved, other, motion):
        return bev_contrast_loss(moved, other, motion.detach(), GRID, max_cells=10**6, group=None)

    assert_same_on_ranks(contrast, rows, splits=[[2, 3]], tolerance=1e-4)
    for normalise in ("grid", "occupied"):

        def equivariance(moved, other, normalise=normalise):
            return flow_equivariance_loss(moved, other, normalise)

        assert_same_on_ranks(equivariance, {"moved": rows["moved"], "other": rows["other"]}, splits=[[2, 3]])


def test_nothing_to_compare_is_zero_with_a_graph():
    first, second = torch.randn(5, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    none = torch.zeros(0, 2, dtype=torch.int64)
    for loss in (
        point_info_nce(first, second, none),
        point_info_nce(first, second, none, reduction="sum"),
        sum(hardest_contrastive_losses(first, second, none, torch.arange(5), torch.arange(6))),
    ):
        assert loss == 0
        assert all((grad == 0).all() for grad in torch.autograd.grad(loss, (first, second)))
    moved, other = maps().requires_grad_(), torch.zeros(5, 4, 6, 6, requires_grad=True)
    loss = bev_contrast_loss(moved, other, motions(), GRID)
    assert loss == 0
    loss.backward()
    for normalise in ("grid", "occupied"):
        loss = flow_equivariance_loss(maps(), other, normalise)
        assert loss == 0
        loss.backward()
        assert (other.grad == 0).all()


def test_anchors_whose_hardest_candidate_is_their_match_are_left_out():
    first = normalize(torch.tensor([[1.0, 0], [0, 1]]))
    pairs = torch.tensor([[0, 0], [1, 1]])
    losses = hardest_contrastive_losses(first, first, pairs, torch.arange(2), torch.arange(2))
    assert losses.positive == losses.negative == 0
    far = torch.tensor([1])  # the only candidate for point 0 is at a right angle to it, and for point 1 its match
    losses = hardest_contrastive_losses(first, first, pairs, far, far)
    assert losses.negative == 0  # sqrt(2) lies beyond the margin of 1.4
    losses = hardest_contrastive_losses(first, first, pairs, far, far, negative_margin=2.0)
    assert losses.negative == pytest.approx((2 - math.sqrt(2)) ** 2, abs=1e-6)


def test_drawn_pairs():
    pairs = torch.tensor([[0, 5], [0, 6], [1, 5], [2, 7], [2, 8], [2, 9]])
    seen = set()
    for _ in range(60):
        drawn = draw_pairs(pairs)
        assert sorted(drawn[:, 0].tolist()) == [0, 1, 2]
        seen |= {tuple(pair) for pair in drawn.tolist()}
    assert seen == {tuple(pair) for pair in pairs.tolist()}
    assert len(draw_pairs(pairs, 2)) == 2
    assert draw_pairs(pairs[:0]).shape == (0, 2)


def test_one_pair_a_cell():
    pairs = torch.tensor([[0, 0], [1, 1], [2, 2], [3, 3], [4, 4]])
    first, second = torch.tensor([7, 7, 8, 9, -1]), torch.tensor([1, 2, 3, 3, 5])
    assert one_pair_a_cell(pairs, first, second).tolist() == [[0, 0], [2, 2]]
    assert one_pair_a_cell(pairs[:0], first, second).shape == (0, 2)


# Formats --------------------------------------------------------------------------------------------------------


def test_queue_contrast_knows_no_other_keys_of_the_batch():
    points, voxels, keys = (normalize(torch.randn(3, 8)) for _ in range(3))
    queue = normalize(torch.randn(6, 8))
    found = depth_contrast_losses(points, voxels, keys, keys, queue, queue, 0.2)
    logits = torch.cat([(points * keys).sum(1, keepdim=True), points @ queue.T], 1) / 0.2
    wanted = torch.nn.functional.cross_entropy(logits, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(found.points, wanted)
    torch.testing.assert_close(found.points_to_voxels, wanted)
    one = depth_contrast_losses(points[:1], voxels[:1], keys[:1], keys[:1], queue, queue)
    assert all(term.isfinite() for term in one)
    assert keys.grad is None


# Maps -----------------------------------------------------------------------------------------------------------


def test_a_world_that_stands_still_is_matched_with_itself():
    moved = maps(1, 0.2)
    motion = torch.eye(4)[None]
    motion[0, 0, 3] = 2.0  # the other sweep was taken 2 m further on
    other = torch.nn.functional.pad(moved, (-2, 2, 0, 0))
    cells = matched_cells(moved, other, motion, GRID)
    assert len(cells.moved) > 10
    torch.testing.assert_close(cells.moved, cells.other)
    shuffled = other[:, :, torch.randperm(6)]
    assert bev_contrast_loss(moved, other, motion, GRID) < bev_contrast_loss(moved, shuffled, motion, GRID)


def test_flow_equivariance():
    one = maps(2)
    assert flow_equivariance_loss(one, 3 * one) == pytest.approx(0, abs=1e-6)
    both = one.ne(0).any(1).sum((1, 2))
    assert flow_equivariance_loss(one, -one) == pytest.approx(4 * both.float().mean().item() / 36)
    assert flow_equivariance_loss(one, -one, "occupied") == pytest.approx(4)
    given = one.clone().requires_grad_()
    assert torch.autograd.grad(flow_equivariance_loss(given, maps(2).requires_grad_()), given, allow_unused=True) == (
        None,
    )


def test_features_carried_by_flow():
    features = torch.tensor([[1.0], [3.0], [7.0]])
    voxels = torch.tensor([0, 0, 1, 2, -1, 2])
    targets = torch.tensor([5, 9, 5, -1, 9, 9])
    cells, carried = flow_warped(features, voxels, targets)
    assert cells.tolist() == [5, 9]
    assert carried.flatten().tolist() == [2, 4]
    cells, carried = flow_warped(features, voxels[:0], targets[:0])
    assert (cells.shape, carried.shape) == ((0,), (0, 1))


# Rotation -------------------------------------------------------------------------------------------------------


def test_bins_of_angles():
    degrees = torch.tensor([-90.0, -72.1, -71.9, -0.1, 0.1, 89.9, 90.0])
    assert rotation_class(torch.deg2rad(degrees)).tolist() == [0, 0, 1, 4, 5, 9, 9]
    assert rotation_class(torch.tensor([-math.pi, 0, math.pi]), 4, math.pi).tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="Angles go up to 2"):
        rotation_class(torch.tensor([2.0]))


def test_rotation_classification():
    angles = torch.tensor([-1.5, 0.1, 1.5])
    right = torch.nn.functional.one_hot(rotation_class(angles), 10) * 20.0
    assert rotation_classification_loss(right, angles) < 1e-6
    assert rotation_classification_loss(torch.zeros(3, 10), angles) == pytest.approx(math.log(10))
    rows = {"logits": torch.randn(7, 10)}
    assert_same_on_ranks(
        lambda logits: rotation_classification_loss(logits, logits[:, 0].detach().clamp(-1.5, 1.5)),
        rows,
        splits=[[3, 4]],
    )
