"""Matches of features and the motion they tell: by hand, among many wrong ones, and of a sweep with itself."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from collimate.data.decoding import value_of
from collimate_3d.evaluation.registration import evaluate_registration
from collimate_3d.lidar.matching import agreed_motion, mutual_matches, rigid_motion
from collimate_3d.lidar.poses import apply_pose, check_pose
from collimate_3d.lidar.transforms import Transform
from collimate_3d.pretraining import PointContrast

from .sweep_toys import Streets, encoder, processor

MOTION = Transform(angle=0.8, shift=(1.0, -2.0, 0.3)).matrix.numpy()


def points(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-20, 20, (count, 3))


def test_matches_are_mutual():
    first, second = torch.randn(70, 4), torch.randn(50, 4)
    cosines = normalize(first, dim=1) @ normalize(second, dim=1).T
    wanted = [[i, j] for i in range(70) for j in range(50) if cosines[i].argmax() == j and cosines[:, j].argmax() == i]
    for rows in (7, 1000):
        assert mutual_matches(first, second, rows).tolist() == wanted
    assert mutual_matches(first, first).tolist() == [[i, i] for i in range(70)]
    assert mutual_matches(first[:0], second).shape == (0, 2)


def test_motions_are_found_by_least_squares():
    given = points(5)
    found = rigid_motion(given, apply_pose(MOTION, given))
    np.testing.assert_allclose(found, MOTION, atol=1e-9)
    mirrored = rigid_motion(given, given * np.array([1, -1, 1]))
    check_pose(mirrored)  # the best that is no mirror image
    many = rigid_motion(np.stack([given, given]), np.stack([given, apply_pose(MOTION, given)]))
    np.testing.assert_allclose(many, np.stack([np.eye(4), MOTION]), atol=1e-9)


def test_the_motion_of_most_is_found_among_wrong_pairs():
    source = points(300)
    target = apply_pose(MOTION, source) + np.random.default_rng(1).normal(0, 0.05, (300, 3))
    target[90:] = np.random.default_rng(2).uniform(-20, 20, (210, 3))
    found = agreed_motion(source, target)
    assert np.linalg.norm(apply_pose(found, source) - apply_pose(MOTION, source), axis=1).max() < 0.1
    np.testing.assert_array_equal(found, agreed_motion(source, target))
    with pytest.raises(ValueError, match="at least three"):
        agreed_motion(source[:2], target[:2])


def test_a_sweep_lies_over_itself():
    sweep = value_of(Streets().read(0), ("sweep.npz",))
    found = evaluate_registration(PointContrast(encoder(), processor(), 8, 16), sweep, sweep, np.eye(4), device="cpu")
    assert found.metrics["matches"] > 50
    assert found.metrics["right matches"] > 0.98  # a few voxels have the same features
    assert found.metrics["rotation error"] < 0.1
    assert found.metrics["translation error"] < 1e-2
    wrong = evaluate_registration(PointContrast(encoder(), processor(), 8, 16), sweep, sweep, MOTION, device="cpu")
    assert wrong.metrics["right matches"] < 0.2
    assert wrong.metrics["rotation error"] == pytest.approx(np.degrees(0.8), abs=0.1)
