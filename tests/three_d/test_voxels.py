"""Voxels: the same as counting one point after the other, any order, limits, borders, empty clouds; segments; grids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate_3d.grid import BEVGrid, VoxelGrid
from collimate_3d.operators import (
    grouped,
    padded_voxels,
    segment_max,
    segment_mean,
    segment_sum,
    voxelise,
    voxelise_limited,
    voxelise_unbounded,
)

GRID = VoxelGrid((0, -2, -1), (4, 2, 1), (0.5, 0.5, 1.0))


def points(count: int, clouds: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Some of them outside of the grid, one in ten twice."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(count, 3, generator=generator) * torch.tensor([5.0, 5.0, 3.0]) - torch.tensor([0.5, 2.5, 1.5])
    xyz[::10] = xyz[:1].clone() if count else xyz[::10]
    return xyz, torch.randint(0, clouds, (count,), generator=generator).sort().values


def one_by_one(xyz, cloud, max_points, max_voxels):
    """As spconv counts: coordinates and points of each voxel, in the order of first points, cloud by cloud."""
    found, shape = {}, GRID.shape
    seen = dict.fromkeys(range(2), 0)
    for row, (point, owner) in enumerate(zip(xyz.tolist(), cloud.tolist(), strict=True)):
        cell = [int((point[axis] - GRID.low[axis]) // GRID.cell[axis]) for axis in (2, 1, 0)]
        if any(place < 0 or place >= extent for place, extent in zip(cell, shape, strict=True)):
            continue
        key = (owner, *cell)
        if key not in found:
            if seen[owner] >= max_voxels:
                continue
            seen[owner] += 1
            found[key] = []
        if len(found[key]) < max_points:
            found[key].append(row)
    return found


@given(st.integers(0, 200), st.integers(1, 4), st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_limited_voxels_are_those_of_counting_one_by_one(count, max_points, max_voxels, seed):
    xyz, cloud = points(count, seed=seed)
    expected = one_by_one(xyz, cloud, max_points, max_voxels)
    found = voxelise_limited(xyz, cloud, GRID, max_points, max_voxels)
    assert [tuple(row) for row in found.coords.tolist()] == list(expected)
    assert found.points.tolist() == [len(rows) for rows in expected.values()]
    for voxel, rows in enumerate(expected.values()):
        assert (found.voxel == voxel).nonzero().flatten().tolist() == rows
        assert found.slot[rows].tolist() == list(range(len(rows)))
    assert found.left_out == count - sum(len(rows) for rows in expected.values())


@given(st.integers(0, 100), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_without_limits_voxels_are_sorted_and_the_order_of_points_does_not_matter(count, seed):
    xyz, cloud = points(count, seed=seed)
    found = voxelise(xyz, cloud, GRID)
    assert [tuple(row) for row in found.coords.tolist()] == sorted(one_by_one(xyz, cloud, 1000, 1000))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    again = voxelise(xyz[order], cloud[order], GRID)
    assert torch.equal(again.coords, found.coords)
    assert torch.equal(again.voxel, found.voxel[order])
    means = segment_mean(xyz, found.voxel, len(found.coords))
    torch.testing.assert_close(segment_mean(xyz[order], again.voxel, len(again.coords)), means)


def test_borders_belong_to_the_upper_cell_and_the_far_one_to_none():
    xyz = torch.tensor([[0.0, -2.0, -1.0], [0.5, -2.0, -1.0], [4.0, 0.0, 0.0], [3.999, 1.999, 0.999]])
    found = voxelise(xyz, torch.zeros(4, dtype=torch.int64), GRID)
    assert found.voxel.tolist() == [0, 1, -1, 2]
    assert found.coords.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 7, 7]]


def test_points_that_are_not_finite_are_in_no_voxel():
    xyz = torch.tensor([[1.0, 0.0, 0.0], [torch.nan, 0.0, 0.0], [1.0, torch.inf, 0.0]])
    found = voxelise(xyz, torch.zeros(3, dtype=torch.int64), GRID)
    assert found.voxel.tolist() == [0, -1, -1]
    assert found.left_out == 2


def test_padding_of_voxels():
    xyz, cloud = points(60)
    found = voxelise_limited(xyz, cloud, GRID, 3, 1000)
    padded = padded_voxels(found, xyz, 3)
    filled = torch.arange(3) < found.points[:, None]
    assert torch.equal(padded.any(-1) | filled, filled)
    torch.testing.assert_close(padded.sum(1) / found.points[:, None], segment_mean(xyz, found.voxel, len(found.coords)))


def test_limits_are_positive():
    with pytest.raises(ValueError, match="at least 1"):
        voxelise_limited(*points(3), GRID, 0, 5)


@given(st.integers(0, 60), st.tuples(*[st.integers(-20, 20)] * 3))
@settings(max_examples=20, deadline=None)
def test_unbounded_voxels_move_with_the_cloud(count, cells):
    xyz, cloud = points(count)
    xyz = (xyz * 64).round() / 64  # exact in float32 wherever it is moved
    found, shape = voxelise_unbounded(xyz, cloud, 2, 0.25)
    moved = xyz + torch.where(cloud[:, None] == 1, torch.tensor(cells) * 0.25, 0.0)
    again, extent = voxelise_unbounded(moved, cloud, 2, 0.25)
    assert shape == extent
    assert torch.equal(found.coords, again.coords)
    assert torch.equal(found.voxel, again.voxel)
    assert found.left_out == 0


def test_unbounded_voxels_refuse_what_has_no_end():
    cloud = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="NaN or infinite"):
        voxelise_unbounded(torch.full((1, 3), torch.nan), cloud, 1, 0.1)
    with pytest.raises(ValueError, match="more than"):
        voxelise_unbounded(torch.full((1, 3), 1e6), cloud, 1, 0.1)


@given(st.lists(st.integers(-1, 4), max_size=30))
@settings(max_examples=30, deadline=None)
def test_segments_are_those_of_a_loop(members):
    segment = torch.tensor(members, dtype=torch.int64)
    values = torch.randn(len(members), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for number in range(5):
        rows = values[segment == number]
        empty = torch.zeros(2, dtype=torch.float64)
        total, mean, most = (reduce(values, segment, 5)[number] for reduce in (segment_sum, segment_mean, segment_max))
        torch.testing.assert_close(total, rows.sum(0))
        torch.testing.assert_close(mean, rows.mean(0) if len(rows) else empty)
        torch.testing.assert_close(most, rows.amax(0) if len(rows) else empty)


def test_segment_gradients():
    segment = torch.tensor([0, 2, 0, -1, 2, 2])
    values = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for reduce in (segment_sum, segment_mean, segment_max):
        torch.autograd.gradcheck(lambda rows, reduce=reduce: reduce(rows, segment, 4), values)


@given(st.lists(st.integers(-3, 3), max_size=30))
@settings(max_examples=30, deadline=None)
def test_groups_are_those_of_a_loop(keys):
    found = grouped(torch.tensor(keys, dtype=torch.int64))
    assert found.keys.tolist() == sorted(set(keys))
    assert [found.keys[group] for group in found.group] == keys
    assert found.rank.tolist() == [keys[:row].count(key) for row, key in enumerate(keys)]
    assert found.first.tolist() == [keys.index(key) for key in sorted(set(keys))]


def test_cells_of_a_map_and_their_centres():
    bev = GRID.bev.coarser(2, (4, 4))
    assert bev == BEVGrid((4, 4), (1.0, 1.0), (0.0, -2.0))
    centres = bev.centres()
    assert centres[0, 0].tolist() == [0.5, -1.5]
    assert centres[3, 1].tolist() == [1.5, 1.5]
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    torch.testing.assert_close(bev.cells_of(centres), torch.stack([columns, rows], -1))


def test_centres_of_voxels():
    cells = torch.tensor([[0, 0, 0], [1, 7, 7]])
    assert GRID.centres_of(cells).tolist() == [[0.25, -1.75, -0.5], [3.75, 1.75, 0.5]]
    assert torch.equal(GRID.cells_of(GRID.centres_of(cells))[0], cells)


@pytest.mark.parametrize("wrong", [((0, 0), (1, 1, 1), (1, 1, 1)), ((0, 0, 0), (1, 0, 1), (1, 1, 1))])
def test_grids_that_are_no_box_are_refused(wrong):
    with pytest.raises(ValueError, match=r"give x, y, z|is empty"):
        VoxelGrid(*wrong)
