"""Box geometry: corners, points inside, angles; and what is refused."""

import math

import pytest
import torch

from collimate_3d.boxes import (
    box_corners,
    check_boxes,
    footprints,
    heading_difference,
    in_range,
    into_boxes,
    limit_angle,
    point_counts,
    points_in_boxes,
)

BOXES = torch.tensor([[10.0, 5.0, -1.0, 4.0, 2.0, 1.5, math.pi / 2], [0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0]])


def test_corners_lie_where_the_heading_says():
    front = box_corners(BOXES)[0, [0, 1, 4, 5]]
    assert front[:, 1] == pytest.approx(torch.full((4,), 7.0))
    assert sorted(front[:, 0].tolist()) == pytest.approx([9, 9, 11, 11])
    assert box_corners(BOXES)[0, :4, 2] == pytest.approx(torch.full((4,), -1.75))
    x, y = footprints(BOXES).unbind(-1)
    areas = (x * y.roll(-1, 1) - y * x.roll(-1, 1)).sum(1) / 2
    assert areas == pytest.approx(torch.tensor([8.0, 4.0]))  # counter-clockwise


def test_points_in_boxes():
    points = torch.tensor([[10.0, 6.9, -1.0], [11.9, 5.0, -1.0], [1.0, 1.0, 1.0], [0.5, 0.0, 0.0]])
    assert points_in_boxes(points, BOXES).tolist() == [0, -1, 1, 1]
    assert points_in_boxes(points, BOXES, margin=1.0).tolist() == [0, 0, 1, 1]
    assert point_counts(points, BOXES).tolist() == [1, 2]
    assert points_in_boxes(points, BOXES[:0]).tolist() == [-1] * 4
    assert points_in_boxes(points[:0], BOXES).shape == (0,)
    corners = box_corners(BOXES)
    torch.testing.assert_close(into_boxes(corners[0], BOXES)[:, 0].abs(), (BOXES[0, 3:6] / 2).expand(8, 3))


def test_angles():
    angles = torch.linspace(-20, 20, 101, dtype=torch.float64)
    limited = limit_angle(angles)
    assert limited.min() >= -math.pi
    assert limited.max() < math.pi
    torch.testing.assert_close(limited.sin(), angles.sin())
    assert heading_difference(torch.tensor(3.1), torch.tensor(-3.1)) == pytest.approx(2 * math.pi - 6.2, abs=1e-6)


def test_range_is_half_open():
    points = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert in_range(points, (0, 0, 0, 1, 1, 1)).tolist() == [True, False]


def test_what_is_no_box():
    with pytest.raises(ValueError, match=r"found are \(number, 7\).*\(2, 6\)"):
        check_boxes(BOXES[:, :6], "found")
    with pytest.raises(ValueError, match="box 1 has values that are not finite"):
        check_boxes(torch.where(torch.tensor([[False], [True]]), torch.nan, BOXES))
    with pytest.raises(ValueError, match="box 0 has a negative side"):
        check_boxes(BOXES * torch.tensor([1, 1, 1, -1, 1, 1, 1]))
