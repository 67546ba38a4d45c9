"""Transforms and their warps: inverses, exactness on the grid, what follows what; flow from its sources."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate_3d.boxes import into_boxes
from collimate_3d.grid import BEVGrid
from collimate_3d.lidar.bev import cell_centres, collapse_to_map, occupied, sample_map, warp_map
from collimate_3d.lidar.flow import (
    check_flow,
    flow_of_poses,
    flow_of_tracks,
    read_flow,
    with_ego,
    without_ego,
    write_flow,
)
from collimate_3d.lidar.objects import Objects
from collimate_3d.lidar.poses import apply_pose, inverse_pose, motion_between, move_boxes
from collimate_3d.lidar.registration import estimated_flow, registered
from collimate_3d.lidar.transforms import Transform, TransformChoice, two_views

GRID = BEVGrid((8, 8), (0.5, 0.5), (-2.0, -2.0))

metres = st.floats(-30, 30)
transforms = st.builds(
    Transform, st.booleans(), st.floats(-3.2, 3.2), st.floats(0.5, 2), st.tuples(metres, metres, metres)
)
point_sets = st.lists(st.tuples(metres, metres, metres, st.floats(0, 1)), min_size=1, max_size=5)


def close(one, other, atol=1e-5):
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


@settings(deadline=None)
@given(transforms, transforms, point_sets)
def test_inverse_and_composition(one, other, rows):
    points = torch.tensor(rows, dtype=torch.float64)
    boxes = torch.cat([points[:, :3], points[:, :3].abs() + 0.1, points[:, 3:]], 1)
    close(one.inverse_points(one.points(points)), points)
    close(one.inverse_boxes(one.boxes(boxes)), boxes)
    close(one.inverse().points(one.points(points)), points)
    close(one.inverse().boxes(one.boxes(boxes)), boxes)
    close(one.then(other).points(points), other.points(one.points(points)))
    close(one.then(other).boxes(boxes), other.boxes(one.boxes(boxes)))
    close(one.then(other).matrix, other.matrix @ one.matrix)
    close(one.vectors(points[:, :3]), one.points(points)[:, :3] - one.points(0 * points)[:, :3])
    assert torch.equal(one.points(points)[:, 3:], points[:, 3:])


@settings(deadline=None)
@given(transforms, point_sets)
def test_boxes_turn_with_the_points_in_them(transform, rows):
    points = torch.tensor(rows, dtype=torch.float64)
    box = torch.tensor([[1.0, -2.0, 0.5, 4.0, 2.0, 1.5, 0.4]], dtype=torch.float64)
    before = into_boxes(points[:, :3], box)
    after = into_boxes(transform.points(points)[:, :3], transform.boxes(box))
    mirrored = torch.tensor([1.0, -1.0 if transform.flip else 1.0, 1.0], dtype=torch.float64)
    close(after, before * mirrored * transform.scale)


@settings(deadline=None, max_examples=30)
@given(transforms, transforms, point_sets, st.tuples(metres, metres, metres))
def test_poses_motions_and_flow(one, other, rows, flow):
    points = torch.tensor(rows, dtype=torch.float64)[:, :3]
    pose = Transform(False, 0.3, 1.0, (5.0, -1.0, 0.2)).matrix
    seen = one.points(points)
    close(_applied(one.pose(pose), seen), _applied(pose, points))
    motion = Transform(False, -0.1, 1.0, (1.0, 0.5, 0.0)).matrix
    close(_applied(one.motion(motion, other), seen), other.points(_applied(motion, points)))
    moved = torch.tensor([flow], dtype=torch.float64).expand_as(points)
    close(seen + one.flow(moved, points, other), other.points(points + moved))


def _applied(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.mark.parametrize(
    ("transform", "wanted"),
    [
        (Transform(), lambda each: each),
        (Transform(flip=True), lambda each: each.flip(2)),
        (Transform(angle=math.pi / 2), lambda each: each.transpose(2, 3).flip(3)),
        (Transform(angle=-math.pi), lambda each: each.flip(2, 3)),
        (Transform(shift=(1.0, -0.5, 3.0)), lambda each: torch.nn.functional.pad(each, (2, -2, -1, 1))),
        (Transform(True, math.pi / 2), lambda each: each.flip(2).transpose(2, 3).flip(3)),
    ],
)
def test_warps_of_maps_are_exact_on_the_grid(transform, wanted):
    features = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transform.map(features, GRID), wanted(features))


def test_warps_of_maps_follow_points():
    """A smooth function of place, seen before and after any transform."""
    transform = Transform(True, 0.7, 1.3, (0.4, -0.3, 0.0))
    grid = BEVGrid((40, 60), (0.1, 0.1), (-3.0, -2.0))
    to = BEVGrid((10, 10), (0.1, 0.1), (-0.5, -0.5))

    def field(xy):
        return torch.sin(xy[:, 0]) + 0.3 * xy[:, 1]

    features = field(cell_centres(grid)).reshape(1, 1, 40, 60)
    centres = torch.cat([cell_centres(to), torch.zeros(100, 1)], 1)
    found = transform.map(features, grid, to)
    close(found.flatten(), field(transform.inverse_points(centres)[:, :2]), atol=2e-3)


def test_sampling():
    features = torch.arange(6.0).reshape(1, 1, 2, 3)
    places = torch.tensor([[[0.0, 0.0], [2.0, 1.0], [0.5, 0.5], [2.5, 1.0], [-1.0, 0.0], [40.0, 7.0]]])
    assert sample_map(features, places).tolist() == [[[0, 5, 2, 2.5, 0, 0]]]
    assert sample_map(features, places, inside_only=True).tolist() == [[[0, 5, 2, 0, 0, 0]]]
    grid = torch.nn.functional.grid_sample(
        features, ((places + 0.5) / torch.tensor([3, 2]) * 2 - 1)[:, None], align_corners=False
    )
    close(sample_map(features, places), grid[:, :, 0])


def test_maps_of_voxels_are_means():
    features = torch.tensor([[1.0], [3.0], [5.0]])
    cells = torch.tensor([[0, 1, 2], [0, 1, 2], [1, 0, 0]])
    found = collapse_to_map(features, cells, 3, (2, 3))
    assert found.shape == (3, 1, 2, 3)
    assert found[0, 0, 1, 2] == 2
    assert found[1, 0, 0, 0] == 5
    assert occupied(found).sum() == 2
    with pytest.raises(ValueError, match=r"over cells \[0, 0, 0\] to \[1, 1, 2\]; the maps have \[1, 2, 3\]"):
        collapse_to_map(features, cells, 1, (2, 3))


def test_maps_are_warped_by_the_sensors_motion():
    features = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    motion = torch.eye(4).repeat(2, 1, 1)
    motion[1, 0, 3] = 0.5
    found = warp_map(features, motion, GRID)
    assert torch.equal(found[0], features[0])
    assert torch.equal(found[1, :, :, :-1], features[1, :, :, 1:])


def test_draws_lie_in_their_ranges():
    drawn = [TransformChoice()() for _ in range(200)]
    flips, angles, scales, shifts = zip(*map(astuple, drawn), strict=True)
    assert 60 < sum(flips) < 140
    assert 1.2 < max(angles) <= math.pi / 2
    assert -math.pi / 2 <= min(angles) < -1.2
    assert 0.95 <= min(scales) < 0.96 < 1.04 < max(scales) <= 1.05
    assert 0 <= np.min(shifts) < 0.01 < 0.19 < np.max(shifts) <= 0.2


def test_two_views_know_which_points_are_one():
    points = torch.rand(200, 4, dtype=torch.float64) * torch.tensor([20, 20, 2, 1]) - torch.tensor([0, 10, 1, 0])
    one, other = Transform(angle=0.5, shift=(1.0, 0.0, 0.0)), Transform(True, -0.4, 1.1)
    views = two_views(points, one, other, (0, -8, -1, 16, 8, 1))
    assert 20 < len(views.pairs) <= min(len(views.first), len(views.second)) < 200
    assert len(views.pairs) < max(len(views.first), len(views.second)), "some points are seen once"
    for view in views[:2]:
        assert (view[:, 0] >= 0).all()
        assert (view[:, 0] < 16).all()
    first, second = (view[rows] for view, rows in zip(views[:2], views.pairs.T, strict=True))
    close(one.inverse_points(first), other.inverse_points(second))
    assert len(two_views(points, one, other).pairs) == 200
    assert two_views(points, one, other, (0, 0, 50, 1, 1, 51)).pairs.shape == (0, 2)


# Flow -----------------------------------------------------------------------------------------------------------


def pose(angle, x, y=0.0):
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:2, 3] = x, y
    return matrix


def surface(count=4000, seed=0):
    """Points on a ground, two walls and a pole."""
    draw = np.random.default_rng(seed)
    flat = draw.uniform(-20, 20, (count, 3))
    flat[: count // 2, 2] = -1.7
    flat[count // 2 : 3 * count // 4, 1] = 8 + 0.2 * flat[count // 2 : 3 * count // 4, 0]
    flat[3 * count // 4 :, 0] = 15
    flat[:, 2] = np.clip(flat[:, 2], -1.7, 3)
    return flat


def test_flow_of_poses():
    xyz, start, stop = surface(50), pose(0.1, 2.0), pose(0.15, 3.0, 0.1)
    flow = flow_of_poses(xyz, motion_between(start, stop))
    np.testing.assert_allclose(apply_pose(stop, xyz + flow), apply_pose(start, xyz), atol=1e-5)
    np.testing.assert_allclose(without_ego(flow, xyz, motion_between(start, stop)), np.zeros((50, 3)), atol=1e-5)
    np.testing.assert_allclose(inverse_pose(start) @ start, np.eye(4), atol=1e-12)


def test_flow_of_tracked_boxes():
    box = np.array([[10.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3], [-10.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3]])
    later = np.array([[11.0, 2.5, 0.0, 4.0, 2.0, 1.5, 0.5]])
    motion = motion_between(pose(0, 0), pose(0, 1.0))
    before = Objects(("Car", "Car"), box, tracks=np.array([4, 9]))
    after = Objects(("Car",), move_boxes(motion, later), tracks=np.array([4]))
    draw = np.random.default_rng(0)
    own = into_boxes_inverse(draw.uniform(-0.5, 0.5, (30, 3)) * box[0, 3:6], box[0])
    rest = draw.uniform([-30, 10, -1], [30, 20, 1], (30, 3))
    xyz = np.concatenate([own, rest, box[1:, :3]])
    flow = flow_of_tracks(xyz, before, after, motion)
    seen = into_boxes(torch.from_numpy(xyz + flow)[:30], torch.from_numpy(after.boxes))
    close(seen[:, 0], into_boxes(torch.from_numpy(xyz)[:30], torch.from_numpy(box[:1]))[:, 0])
    np.testing.assert_allclose(flow[30:], np.tile([-1.0, 0, 0], (31, 1)), atol=1e-6)
    world = without_ego(flow, xyz, motion)
    assert np.abs(world[30:]).max() < 1e-6
    assert np.linalg.norm(world[:30], axis=1).min() > 0.5
    np.testing.assert_allclose(with_ego(world, xyz, motion), flow, atol=1e-5)
    with pytest.raises(ValueError, match="tracks"):
        flow_of_tracks(xyz, before, Objects(("Car",), later), motion)


def into_boxes_inverse(points, box):
    return apply_pose(pose(box[6], *box[:2]), points) + np.array([0, 0, box[2]])


def test_flow_files(tmp_path):
    flow = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    write_flow(tmp_path / "flow.npz", flow, True)
    found, includes_ego = read_flow(tmp_path / "flow.npz", 5)
    np.testing.assert_array_equal(found, flow)
    assert includes_ego
    with pytest.raises(ValueError, match="for 6 points"):
        read_flow(tmp_path / "flow.npz", 6)
    np.savez(tmp_path / "bare.npz", flow=flow)
    with pytest.raises(ValueError, match="no flow_includes_ego"):
        read_flow(tmp_path / "bare.npz", 5)


def test_flows_in_other_units_are_refused():
    with pytest.raises(ValueError, match=r"moves 12 m .* less than 10 m"):
        check_flow(np.array([[0.0, 12, 0]]), 1)
    with pytest.raises(ValueError, match="flow of 1 points is not finite"):
        check_flow(np.array([[0.0, np.nan, 0]]), 1)
    assert check_flow(np.zeros((0, 3)), 0).dtype == np.float32


def test_registration_and_the_flow_of_what_moves():
    motion = motion_between(pose(0, 0), pose(0.02, 0.8, 0.1))
    first, second = surface(seed=0), apply_pose(motion, surface(seed=1))  # other points of the same surfaces
    found = registered(first, second)
    assert np.abs(found - motion).max() < 0.05
    walker = np.random.default_rng(2).uniform([2, -0.1, -1.5], [2.2, 0.1, 0], (200, 3))
    walked = apply_pose(motion, walker + np.array([0.6, 0, 0]))
    everything = np.concatenate([first, walker])
    moving = without_ego(estimated_flow(everything, np.concatenate([second, walked]), motion), everything, motion)
    assert np.median(np.linalg.norm(moving[:4000], axis=1)) < 0.3
    assert 0.4 < np.median(moving[4000:, 0]) < 0.7
    with pytest.raises(ValueError, match="too few"):
        registered(first[:5], second)
