"""Pictures of sweeps: what is ahead is up, what is left is left; and heading errors."""

import numpy as np
import pytest
from PIL import Image

from collimate.data import open_source
from collimate.data.decoding import value_of
from collimate_3d.lidar.calibration import Calibration
from collimate_3d.lidar.heading_error import heading_errors
from collimate_3d.lidar.objects import Objects
from collimate_3d.lidar.pictures import (
    BACKGROUND,
    CLASSES,
    FLOW,
    TRUTH,
    picture_from_above,
    picture_through_camera,
)
from tests.three_d.lidar_files import calibration_text

BOUNDS = (0.0, -10.0, 20.0, 10.0)
CAR = Objects(("Car",), np.array([[10.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.0]]), np.ones(1))


def colours(picture, colour):
    """Rows and columns of the pixels of a colour."""
    return np.argwhere((np.asarray(picture) == colour).all(-1))


def test_ahead_is_up_and_left_is_left():
    picture = picture_from_above(np.array([[19.0, 9.0, 0.0], [30.0, 0.0, 0.0]]), bounds=BOUNDS, scale=5)
    assert picture.size == (100, 100)
    (seen,) = np.argwhere((np.asarray(picture) != BACKGROUND).any(-1))
    assert seen.tolist() == [5, 5]


def test_boxes_and_flow():
    bare = picture_from_above(np.zeros((0, 3)), bounds=BOUNDS, scale=5)
    assert not (np.asarray(bare) != BACKGROUND).any()
    picture = picture_from_above(np.zeros((0, 3)), CAR, bounds=BOUNDS, scale=5)
    rows, columns = colours(picture, TRUTH).T
    assert (rows.min(), rows.max()) == pytest.approx((40, 60), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((20, 30), abs=1)
    assert ((columns == 25) & (rows > 41) & (rows < 50)).sum() >= 7  # its heading
    found = picture_from_above(np.zeros((0, 3)), None, CAR, bounds=BOUNDS, scale=5)
    assert len(colours(found, CLASSES["car"])) > 60
    moving = picture_from_above(np.array([[2.0, 0, 0]]), flow=np.array([[3.0, 0, 0]]), bounds=BOUNDS, scale=5)
    assert len(colours(moving, FLOW)) >= 15
    with pytest.raises(ValueError, match="1 points, and flow of 2"):
        picture_from_above(np.zeros((1, 3)), flow=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="x0 < x1"):
        picture_from_above(np.zeros((1, 3)), bounds=(1, 0, 0, 1))


def test_boxes_through_the_camera():
    calibration = Calibration.parse(calibration_text())
    behind = Objects(("Car",), CAR.boxes * [-1, 1, 1, 1, 1, 1, 1])
    image = Image.new("RGB", (1242, 375))
    assert not np.asarray(picture_through_camera(image, calibration, behind)).any()
    pixels = colours(picture_through_camera(image, calibration, CAR, CAR), CLASSES["car"])
    box = calibration.image_boxes(CAR.boxes)[0]
    found = np.concatenate([pixels.min(0)[::-1], pixels.max(0)[::-1]])
    assert found == pytest.approx(np.clip(box, 0, [1241, 374] * 2), abs=3)


def test_a_real_frame(shared_data):
    sample = open_source(f"kitti:{shared_data / 'lidar_kitti_object'}").read(2)
    objects = Objects.from_json(sample["objects.json"])
    picture = picture_from_above(value_of(sample, ("sweep.npz",)).xyz, objects)
    assert picture.size == (800, 704)
    assert len(colours(picture, TRUTH)) > 30  # one cyclist or pedestrian
    assert (np.asarray(picture) != BACKGROUND).any(-1).sum() > 10_000


def test_heading_errors():
    turned = Objects(("Car", "Van"), np.tile(CAR.boxes, (2, 1)), np.ones(2))
    turned.boxes[:, 6] = np.radians([-175, 0])
    assert heading_errors([CAR, CAR], [turned, Objects.none()], "Car") == pytest.approx([175])
    assert len(heading_errors([CAR], [turned], "Cyclist")) == 0
    with pytest.raises(ValueError):
        heading_errors([CAR], [], "Car")
