"""Sampling, groups, neighbours and interpolation: equal to their plain forms in every path, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate_3d.operators import ball_query, farthest_points, gathered, interpolated, nearest, neighbours, sampling


def cloud(count: int, clouds: int = 2, seed: int = 0, copies: bool = True) -> torch.Tensor:
    """Points on a coarse lattice: many distances are equal, and some points are copies."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(clouds, count, 3, generator=generator)
    if copies:
        xyz = (xyz * 4).round() / 4
    return xyz


def plain_sampling(xyz, samples, start=0, dead_zone=None):
    """One point after the other, in the order of the formula."""
    found = []
    for points in xyz:
        allowed = torch.ones(len(points), dtype=torch.bool)
        if dead_zone is not None:
            x, y, z = points.unbind(1)
            allowed = x * x + y * y + z * z > dead_zone
        nearest_chosen = torch.full((len(points),), torch.inf)
        chosen = [start]
        for _ in range(samples - 1):
            x, y, z = (points - points[chosen[-1]]).unbind(1)
            nearest_chosen = torch.minimum(nearest_chosen, x * x + y * y + z * z)
            best = torch.where(allowed, nearest_chosen, -1.0)
            chosen.append(int((best == best.max()).nonzero()[0]))
        found.append(torch.tensor(chosen))
    return torch.stack(found)


def plain_ball(xyz, centres, radius, count, inclusive):
    distance = (centres[:, :, None] - xyz[:, None]).square().sum(-1)
    within = distance <= radius**2 if inclusive else distance < radius**2
    index = torch.zeros(*centres.shape[:2], count, dtype=torch.int64)
    for b, m in torch.cartesian_prod(torch.arange(len(xyz)), torch.arange(centres.shape[1])).tolist():
        found = within[b, m].nonzero().flatten()[:count]
        if len(found):
            index[b, m] = found[0]
            index[b, m, : len(found)] = found
    return index, within.sum(-1).clamp_max(count)


# Farthest points ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucketed", [False, True])
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 3), st.sampled_from([None, 1e-3, 0.5]))
@settings(max_examples=25, deadline=None)
def test_farthest_points_are_those_of_the_formula(bucketed, count, samples, seed, dead_zone):
    xyz = cloud(count, seed=seed)
    start = count // 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BUCKETED_FROM", 0 if bucketed else 10**9)
        found = farthest_points(xyz, samples, start, dead_zone)
    assert torch.equal(found, plain_sampling(xyz, samples, start, dead_zone))


def test_both_ways_of_sampling_choose_alike_in_a_large_cloud():
    xyz = cloud(6000, clouds=1, copies=False) * torch.tensor([5.0, 4.0, 0.01])
    assert xyz.shape[1] >= sampling.BUCKETED_FROM
    nothing, first = torch.zeros(1, 6000, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    expected = sampling._side_by_side(xyz, nothing, first, 300)
    assert torch.equal(farthest_points(xyz.requires_grad_(), 300), expected)


def test_samples_are_spread():
    """Each is at least as far from the others as every point is from its nearest sample."""
    xyz = cloud(500, clouds=1, copies=False)
    chosen = gathered(xyz, farthest_points(xyz, 30))[0]
    apart = torch.cdist(chosen, chosen).fill_diagonal_(torch.inf).min()
    assert float(torch.cdist(xyz[0], chosen).min(1).values.max()) <= float(apart) + 1e-5


def test_the_order_of_points_changes_only_their_names():
    xyz = cloud(100, copies=False)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    start = int(order.argsort()[0])
    again = farthest_points(xyz[:, order], 20, start)
    assert torch.equal(order[again], farthest_points(xyz, 20, 0))


def test_more_samples_than_points_repeat_the_first():
    xyz = torch.tensor([[[1.0, 0, 0], [2.0, 0, 0]]])
    assert farthest_points(xyz, 4).tolist() == [[0, 1, 0, 0]]
    assert farthest_points(xyz[:, :1], 3).tolist() == [[0, 0, 0]]
    assert farthest_points(torch.zeros(1, 5, 3), 3, dead_zone=1e-3).tolist() == [[0, 0, 0]]


def test_each_cloud_may_begin_elsewhere():
    xyz = cloud(50, copies=False)
    found = farthest_points(xyz, 5, torch.tensor([3, 7]))
    assert found[:, 0].tolist() == [3, 7]
    assert torch.equal(found[1:], farthest_points(xyz[1:], 5, 7))


@pytest.mark.parametrize(
    ("xyz", "samples", "message"),
    [
        (torch.zeros(2, 0, 3), 4, "Sampling needs points"),
        (torch.zeros(2, 4, 2), 4, "Sampling needs points"),
        (torch.zeros(2, 4, 3), 0, "Sampling needs points"),
        (torch.full((2, 4, 3), torch.nan), 2, "NaN or infinite"),
    ],
)
def test_sampling_refuses(xyz, samples, message):
    with pytest.raises(ValueError, match=message):
        farthest_points(xyz, samples)


# Within a radius ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inclusive", [False, True])
@given(st.integers(1, 120), st.integers(0, 20), st.sampled_from([0.25, 0.75, 1.0, 4.0]), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_groups_are_those_of_comparing_all(inclusive, count, centres, radius, wanted):
    """On a lattice of quarters many points lie at exactly the radius."""
    xyz = cloud(count)
    seeds = torch.cat([xyz[:, : min(count, centres)], cloud(2, seed=1) * 3], 1)
    found = ball_query(xyz, seeds, radius, wanted, inclusive)
    index, counts = plain_ball(xyz, seeds, radius, wanted, inclusive)
    assert torch.equal(found.index, index)
    assert torch.equal(found.count, counts)


@pytest.mark.parametrize("at_once", [1, 50, 2**22])
@pytest.mark.parametrize("radius", [0.5, 3.0])
def test_pieces_do_not_matter(monkeypatch, at_once, radius):
    xyz, seeds = cloud(300), cloud(20, seed=1)
    expected = ball_query(xyz, seeds, radius, 8)
    monkeypatch.setattr(neighbours, "AT_ONCE", at_once)
    found = ball_query(xyz, seeds, radius, 8)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.count, expected.count)


def test_scanning_and_searching_find_alike(monkeypatch):
    xyz, seeds = cloud(400), cloud(30, seed=1)
    paths = {"_scan": 0, "_search": 0}
    for name in paths:
        original = getattr(neighbours, name)

        def counted(*given, name=name, original=original):
            paths[name] += 1
            return original(*given)

        monkeypatch.setattr(neighbours, name, counted)
    for radius in (0.5, 5.0):
        found = ball_query(xyz, seeds, radius, 6)
        index, counts = plain_ball(xyz, seeds, radius, 6, False)
        assert torch.equal(found.index, index)
        assert torch.equal(found.count, counts)
    assert paths == {"_scan": 1, "_search": 1}


def test_far_coordinates_and_wide_clouds():
    xyz = cloud(50) + torch.tensor([1000.0, -2000.0, 50.0])
    xyz[0, 0] = torch.tensor([1e6, 1e6, 1e6])
    index, _ = plain_ball(xyz, xyz, 0.75, 5, True)
    assert torch.equal(ball_query(xyz, xyz, 0.75, 5, True).index, index)


def test_no_centres_and_no_neighbours():
    xyz = cloud(5)
    none = ball_query(xyz, xyz[:, :0], 1.0, 3)
    assert none.index.shape == (2, 0, 3)
    alone = ball_query(xyz, torch.full((2, 1, 3), 100.0), 1.0, 3)
    assert alone.count.tolist() == [[0], [0]]
    assert not bool(alone.index.any())


@pytest.mark.parametrize(("count", "radius", "wanted"), [(0, 1.0, 3), (4, 0.0, 3), (4, 1.0, 0)])
def test_groups_refuse(count, radius, wanted):
    with pytest.raises(ValueError, match="Neighbours need points"):
        ball_query(torch.zeros(1, count, 3), torch.zeros(1, 2, 3), radius, wanted)


# Nearest points and interpolation -------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_nearest_points_have_the_least_distances(count, queries, wanted):
    points, seeds, wanted = cloud(count), cloud(queries, seed=1), min(wanted, count)
    distance = (seeds[:, :, None] - points[:, None]).square().sum(-1)
    found = distance.gather(2, nearest(points, seeds, wanted))
    torch.testing.assert_close(found, distance.sort(-1).values[..., :wanted])


def test_nearest_in_pieces(monkeypatch):
    points, seeds = cloud(60, copies=False), cloud(20, seed=1, copies=False)
    expected = nearest(points, seeds, 3)
    monkeypatch.setattr(neighbours, "AT_ONCE", 1)
    assert torch.equal(nearest(points, seeds, 3), expected)
    with pytest.raises(ValueError, match="60 points, of which 61"):
        nearest(points, seeds, 61)


@pytest.mark.parametrize("power", [1, 2])
def test_interpolation_is_its_formula(power):
    points, seeds = cloud(20, copies=False), cloud(6, seed=1, copies=False)
    values = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(2))
    distance = torch.cdist(seeds, points)
    near, index = distance.topk(3, largest=False)
    weights = 1 / (near**power + 1e-8)
    expected = (weights[..., None] * gathered(values, index)).sum(2) / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(interpolated(values, points, seeds, power), expected, rtol=1e-3, atol=1e-4)


def test_interpolation_at_a_point_is_its_value():
    points = cloud(20, copies=False)
    values = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(2))
    for power in (1, 2):
        torch.testing.assert_close(interpolated(values, points, points, power), values, rtol=0, atol=1e-4)
    assert interpolated(values[:, :2], points[:, :2], points).shape == values.shape  # fewer points than three
    with pytest.raises(ValueError, match="power of 1 or 2"):
        interpolated(values, points, points, 3)


def test_weights_carry_gradients_in_one_family_alone():
    values = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(2))
    for power, carries in ((1, False), (2, True)):
        points = cloud(20, copies=False).requires_grad_()
        found = interpolated(values.requires_grad_(), points, cloud(6, seed=1, copies=False), power)
        found.sum().backward()
        assert (points.grad is not None) is carries
    points, seeds = (cloud(6, seed=seed, copies=False).double() for seed in (0, 1))
    torch.autograd.gradcheck(
        lambda p, q: interpolated(values[:, :6].double(), p, q), (points.requires_grad_(), seeds.requires_grad_())
    )
