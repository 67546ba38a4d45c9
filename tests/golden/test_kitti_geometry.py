"""Calibration, boxes, overlaps and average precision against OpenPCDet's KITTI code."""

import numpy as np
import pytest
import torch

from collimate_3d.boxes import aligned_bev_iou, box_corners, limit_angle
from collimate_3d.lidar.calibration import Calibration, camera_corners
from collimate_3d.lidar.kitti_ap import Difficulty, precision_curves
from collimate_3d.lidar.objects import Objects
from collimate_3d.rotated_iou import bev_iou, iou_3d
from collimate_3d.rotated_iou_published import published_areas, published_bev_iou, published_iou_3d

GOLDEN = "kitti_geometry"


@pytest.fixture
def calibration(golden_set):
    found = {name: golden_set.inputs[f"calib.{name}"].double().numpy() for name in ("P2", "R0_rect", "Tr_velo_to_cam")}
    return Calibration(found["P2"], found["R0_rect"], found["Tr_velo_to_cam"])


def compare(golden_set, kind, **found):
    rule = golden_set.config["tolerance"][kind]
    for name, value in found.items():
        wanted = golden_set.expected[name.replace("__", ".")].double()
        torch.testing.assert_close(torch.as_tensor(value).double(), wanted, rtol=rule.get("rtol", 0), atol=rule["atol"])


def test_calibration(golden_set, calibration):
    points = golden_set.inputs["points_lidar"].double().numpy()
    rectified = calibration.to_rectified(points)
    pixels, depth = calibration.project(rectified)
    compare(
        golden_set, "geometry", lidar_to_rect=rectified, rect_to_lidar=calibration.to_lidar(rectified),
        rect_to_img__uv=pixels, rect_to_img__depth=depth, img_to_rect=calibration.unproject(pixels, depth),
    )  # fmt: skip


def test_boxes(golden_set, calibration):
    boxes = golden_set.inputs["boxes_lidar"].double()
    camera = calibration.boxes_to_camera(boxes.numpy())
    size = golden_set.config["image_size"]
    limit = golden_set.config["limit_period"]
    compare(
        golden_set, "geometry", corners_lidar=box_corners(boxes), boxes_camera=camera,
        boxes_back_to_lidar=calibration.boxes_to_lidar(camera), corners_camera=camera_corners(camera),
        image_boxes=calibration.image_boxes(boxes.numpy(), (size["height"], size["width"])),
        image_boxes_unclipped=calibration.image_boxes(boxes.numpy()),
        aligned_bev_iou=aligned_bev_iou(boxes, boxes.flip(0)),
        limit_period=limit_angle(boxes[:, 6], limit["offset"], limit["period"]),
    )  # fmt: skip


def test_overlaps(golden_set):
    one, other, config = golden_set.inputs["iou.a"], golden_set.inputs["iou.b"], golden_set.config["iou"]
    bev, space = bev_iou(one, other), iou_3d(one, other)
    compare(golden_set, "iou_exact", iou__exact_bev=bev, iou__exact_3d=space)
    for name, found in (("bev", bev), ("3d", space)):
        wanted = golden_set.expected[f"iou.pcdet_{name}"]
        torch.testing.assert_close(found, wanted, rtol=0, atol=config["pcdet_atol"])
    told_apart = golden_set.expected["iou.exact_bev"] < config["devkit_mask_exact_iou_at_least"]
    wanted = golden_set.expected["iou.kitti_devkit_bev"]
    atol = golden_set.config["tolerance"]["iou_devkit"]["atol"]
    torch.testing.assert_close(bev[told_apart], wanted[told_apart], rtol=0, atol=atol)
    pairs = golden_set.config["special_iou_pairs"]
    assert bev[pairs["identical"], pairs["identical"]] == pytest.approx(1, abs=1e-6)


def test_overlaps_of_the_published_kernels(golden_set):
    """With their quirks: the margin, and the identical boxes for which KITTI's kernel gives 0."""
    one, other, rules = golden_set.inputs["iou.a"], golden_set.inputs["iou.b"], golden_set.config["tolerance"]
    compare(
        golden_set, "geometry", iou__pcdet_bev=published_bev_iou(one, other),
        iou__pcdet_3d=published_iou_3d(one, other), iou__pcdet_overlap_area=published_areas(one, other),
    )  # fmt: skip
    found, wanted = published_bev_iou(one, other, margin=0.0), golden_set.expected["iou.kitti_devkit_bev"]
    told_apart = golden_set.expected["iou.exact_bev"] < golden_set.config["iou"]["devkit_mask_exact_iou_at_least"]
    torch.testing.assert_close(found[told_apart], wanted[told_apart], rtol=0, atol=rules["iou_devkit"]["atol"])


def objects(golden_set, side):
    """The rows of one side, by frame. Overlaps do not depend on where the camera stands, so it stands at the LiDAR."""
    rows = {
        name.removeprefix(f"{side}."): value.numpy()
        for name, value in golden_set.inputs.items()
        if name.startswith(f"{side}.")
    }
    frames = []
    for frame in range(int(golden_set.inputs["num_frames"])):
        own = {name: value[rows["frame"] == frame].astype(np.float64) for name, value in rows.items()}
        sides = dict(zip(golden_set.config["dimensions_order"], own["dimensions"].T, strict=True))
        right, down, ahead = own["location"].T
        turned = -own["rotation_y"] - np.pi / 2
        boxes = [ahead, -right, sides["h"] / 2 - down, sides["l"], sides["w"], sides["h"], turned]
        frames.append(
            Objects(
                tuple(golden_set.config["class_names"][int(number)] for number in own["class"]),
                np.stack(boxes, 1),
                own["score"],
                None,
                own["bbox"],
                own["alpha"],
                own["truncated"],
                own["occluded"],
            )
        )
    return frames


def test_average_precision(golden_set):
    config = golden_set.config
    limits = (config[name] for name in ("difficulties", "min_height", "max_occlusion", "max_truncation"))
    difficulties = [Difficulty(*each) for each in zip(*limits, strict=True)]
    truths, found = objects(golden_set, "gt"), objects(golden_set, "dt")
    atol = config["tolerance"]
    for at, overlaps in enumerate(config["min_overlap"]):
        curves = precision_curves(truths, found, config["eval_classes"], overlaps, difficulties)
        for metric in config["metrics"]:
            wanted = golden_set.expected[f"precision.{metric}"][:, :, at].numpy()
            assert curves.precision[metric] == pytest.approx(wanted, abs=atol["precision"]["atol"])
            for recalls, average in (("R11", curves.r11), ("R40", curves.r40)):
                wanted = golden_set.expected[f"ap.{metric}_{recalls}"][:, :, at].numpy()
                assert average(metric) == pytest.approx(wanted, abs=atol["ap"]["atol"])
