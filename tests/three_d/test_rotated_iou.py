"""Rotated IoU against clipping by half planes, one pair at a time; its symmetries, borders and gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collimate_3d.boxes import footprints
from collimate_3d.rotated_iou import bev_iou, iou_3d, near_pairs, paired_ious, shared_areas

BOX = [0.3, -2.0, 1.0, 4.0, 2.0, 1.5, 0.4]


def clipped_area(one, other):
    """Sutherland and Hodgman in plain lists."""
    polygon, clip = footprints(one[None])[0].tolist(), footprints(other[None])[0].tolist()
    for (x0, y0), (x1, y1) in zip(clip, clip[1:] + clip[:1], strict=True):
        sides = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in polygon]
        kept = []
        for at, (x, y) in enumerate(polygon):
            (before_x, before_y), side, before = polygon[at - 1], sides[at], sides[at - 1]
            if (side >= 0) != (before >= 0):
                share = before / (before - side)
                kept.append((before_x + share * (x - before_x), before_y + share * (y - before_y)))
            if side >= 0:
                kept.append((x, y))
        polygon = kept
        if not polygon:
            return 0.0
    return sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True)) / 2


def boxes(count, spread, seed=0):
    draw = torch.Generator().manual_seed(seed)
    unit = torch.rand(count, 7, dtype=torch.float64, generator=draw)
    return unit * torch.tensor([spread, spread, 2, 4, 3, 2, 6.3]) + torch.tensor([0, 0, 0, 0.2, 0.2, 0.5, 0])


def test_it_is_clipping():
    one, other = boxes(40, 6), boxes(40, 6, seed=1)
    shared = torch.tensor([[clipped_area(a, b) for b in other] for a in one], dtype=torch.float64)
    union = one[:, None, 3:5].prod(-1) + other[:, 3:5].prod(-1) - shared
    assert (shared > 0.1).sum() > 200
    assert (shared == 0).any()
    torch.testing.assert_close(bev_iou(one, other), shared / union, rtol=0, atol=1e-12)
    assert bev_iou(one.float(), other.float()).dtype == torch.float32


def test_it_is_shapely_where_that_is_installed():
    geometry = pytest.importorskip("shapely.geometry")
    one, other = boxes(30, 6), boxes(30, 6, seed=1)
    first, second = ([geometry.Polygon(each) for each in footprints(side).tolist()] for side in (one, other))
    wanted = [[a.intersection(b).area / a.union(b).area for b in second] for a in first]
    torch.testing.assert_close(bev_iou(one, other), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-9)


def test_many_pairs_are_those_of_few():
    """Blocks share the processor's threads where no gradient is wanted; values are the same."""
    one, other = boxes(150, 2), boxes(150, 2, seed=1)
    found = bev_iou(one, other)
    rows = torch.cat([bev_iou(one[at : at + 1], other) for at in range(0, 150, 10)])
    torch.testing.assert_close(found[::10], rows, rtol=0, atol=1e-12)
    torch.testing.assert_close(bev_iou(one.requires_grad_(), other).detach(), found, rtol=0, atol=1e-12)


side = st.floats(0.05, 10)
angle = st.sampled_from([0.0, math.pi / 2, math.pi, 1e-9, math.pi / 4]) | st.floats(-7, 7)
place = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-3, 3)


@settings(deadline=None)
@given(st.lists(st.tuples(place, place, place, side, side, side, angle), min_size=2, max_size=2), st.floats(-4, 4))
def test_symmetry_borders_and_frames(pair, turn):
    one, other = (torch.tensor([box], dtype=torch.float64) for box in pair)
    shared = shared_areas(one, other)
    assert -1e-12 <= float(shared) <= float(torch.minimum(one[:, 3:5].prod(1), other[:, 3:5].prod(1))) * (1 + 1e-12)
    torch.testing.assert_close(shared[0].item(), clipped_area(one[0], other[0]), rtol=1e-9, atol=1e-9)
    for iou in (bev_iou, iou_3d):
        found = iou(one, other)
        torch.testing.assert_close(found, iou(other, one).T, rtol=0, atol=1e-10)
        torch.testing.assert_close(iou(one, one), torch.ones(1, 1, dtype=torch.float64), rtol=0, atol=1e-12)
        moved = [_moved(each, turn) for each in (one, other)]
        torch.testing.assert_close(iou(*moved), found, rtol=0, atol=1e-9)


def _moved(box, turn):
    x, y, *rest, heading = box[0].tolist()
    cosine, sine = math.cos(turn), math.sin(turn)
    moved = [x * cosine - y * sine + 1e3, x * sine + y * cosine - 2e3, *rest, heading + turn]
    return torch.tensor([moved], dtype=torch.float64)


def test_special_pairs():
    box = torch.tensor([BOX], dtype=torch.float64)
    turned = box.clone()
    turned[:, 6] += math.pi
    assert bev_iou(box, turned) == pytest.approx(1, abs=1e-12)
    inside = box.clone()
    inside[:, 3:5] /= 2
    assert bev_iou(box, inside) == pytest.approx(0.25, abs=1e-12)
    above = box.clone()
    above[:, 2] += 1.5
    assert bev_iou(box, above) == pytest.approx(1, abs=1e-12)
    assert iou_3d(box, above) == pytest.approx(0, abs=1e-12)
    half = box.clone()
    half[:, 2] += 0.75
    assert iou_3d(box, half) == pytest.approx(1 / 3, abs=1e-12)
    flat = box.clone()
    flat[:, 3] = 0
    assert bev_iou(flat, flat) == 0


def test_pairs_and_matrices_agree():
    one, other = boxes(50, 10), boxes(50, 10, seed=1)
    area, volume = paired_ious(one, other)
    torch.testing.assert_close(area, bev_iou(one, other).diagonal())
    torch.testing.assert_close(volume, iou_3d(one, other).diagonal())
    assert (area == 0).any()
    assert len(near_pairs(one, other)[0]) < 50 * 50
    assert bev_iou(one[:0], other).shape == (0, 50)
    assert iou_3d(one, other[:0]).shape == (50, 0)


def test_gradients():
    one = torch.tensor([BOX, [1.1, -1.7, 1.25, 3.0, 2.5, 1.2, -0.7]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[0.0, -2.2, 1.1, 3.8, 1.9, 1.4, 0.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bev_iou, (one, other))
    assert torch.autograd.gradcheck(iou_3d, (one, other))
    same = torch.tensor([BOX], requires_grad=True)
    gradient = torch.autograd.grad(iou_3d(same, same.detach()).sum(), same)[0]
    assert gradient.isfinite().all()
