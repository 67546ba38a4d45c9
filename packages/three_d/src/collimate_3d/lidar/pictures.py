"""Pictures of sweeps for reports: from above, and through the camera.

From above, ahead is up and the left is left, as a driver sees it.

Shape legend: N points, M boxes.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps
from PIL import Image, ImageDraw

from collimate_3d.boxes import box_corners
from collimate_3d.lidar.calibration import NEAREST, Calibration
from collimate_3d.lidar.objects import DONT_CARE, Objects

BACKGROUND, TRUTH, FLOW = (16, 20, 28), (245, 245, 245), (255, 90, 160)
CLASSES = {"car": (80, 200, 255), "pedestrian": (255, 170, 60), "cyclist": (120, 235, 120)}
OTHER = (200, 150, 255)
LOW, HIGH = -2.5, 1.5  # metres between which heights are coloured
FLOW_STRIDE = 7  # of so many points one has its flow drawn
_HEIGHTS = colormaps["viridis"]
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


def picture_from_above(
    xyz: Float[np.ndarray, "N 3"],
    truths: Objects | None = None,
    detections: Objects | None = None,
    flow: Float[np.ndarray, "N 3"] | None = None,
    *,
    bounds: tuple[float, float, float, float] = (0.0, -40.0, 70.4, 40.0),
    scale: float = 10.0,
) -> Image.Image:
    """A sweep: points by height, labelled boxes in white, detections in the colour of their class, flow in pink.

    A line from the middle of a box ahead shows its heading. Detections fade with their score.

    Args:
        flow: of the points, in metres, drawn at its length.
        bounds: x0, y0, x1, y1 in metres; those of KITTI's detectors by default.
        scale: pixels a metre.

    Raises:
        ValueError: bounds that are empty, or flow of other points.
    """
    if not (bounds[0] < bounds[2] and bounds[1] < bounds[3]):
        raise ValueError(f"Bounds are x0, y0, x1, y1 in metres with x0 < x1 and y0 < y1; got {bounds}.")
    if flow is not None and len(flow) != len(xyz):
        raise ValueError(f"There are {len(xyz)} points, and flow of {len(flow)}.")
    view = _View(bounds, scale)
    found = Image.fromarray(view.points(np.asarray(xyz, np.float64)))
    draw = ImageDraw.Draw(found)
    if flow is not None:
        ends = xyz + flow
        for start, stop in zip(view.pixels(xyz)[::FLOW_STRIDE], view.pixels(ends)[::FLOW_STRIDE], strict=True):
            draw.line((*start, *stop), fill=FLOW)
    if truths is not None:
        for box in _cared(truths).boxes:
            view.box(draw, box, TRUTH, 1)
    if detections is not None:
        scores = np.ones(len(detections)) if detections.scores is None else detections.scores
        for name, box, score in zip(detections.names, detections.boxes, scores, strict=True):
            view.box(draw, box, _faded(CLASSES.get(name.lower(), OTHER), float(np.clip(score, 0.2, 1))), 2)
    return found


def picture_through_camera(image: Image.Image, calibration: Calibration, *several: Objects) -> Image.Image:
    """The picture of the camera with the edges of boxes, each group in a colour of its own: white, then by class.

    Boxes that reach behind the camera are left out.

    Args:
        several: labelled objects, then detections.
    """
    found = image.convert("RGB")
    draw = ImageDraw.Draw(found)
    for group, objects in enumerate(several):
        cared = _cared(objects)
        corners = box_corners(torch.from_numpy(cared.boxes)).numpy()
        for name, points in zip(cared.names, corners, strict=True):
            pixels, depth = calibration.project(calibration.to_rectified(points))
            if (depth > NEAREST).all():
                colour = CLASSES.get(name.lower(), OTHER) if group else TRUTH
                for one, other in _EDGES:
                    draw.line((*pixels[one], *pixels[other]), fill=colour, width=2)
    return found


class _View:
    """Where metres come to lie in the picture."""

    def __init__(self, bounds: tuple[float, float, float, float], scale: float) -> None:
        self.bounds, self.scale = bounds, scale
        self.height, self.width = (max(1, round(scale * (bounds[at + 2] - bounds[at]))) for at in (0, 1))

    def pixels(self, xy: Float[np.ndarray, "N some"]) -> Float[np.ndarray, "N 2"]:
        """Across and down of each place."""
        return np.stack([self.bounds[3] - xy[:, 1], self.bounds[2] - xy[:, 0]], 1) * self.scale

    def points(self, xyz: Float[np.ndarray, "N 3"]) -> np.ndarray:
        """(height, width, 3) uint8; where several points fall on a pixel the highest is seen."""
        canvas = np.tile(np.array(BACKGROUND, np.uint8), (self.height, self.width, 1))
        across, down = np.floor(self.pixels(xyz)).astype(np.int64).T
        inside = (across >= 0) & (across < self.width) & (down >= 0) & (down < self.height)
        order = np.flatnonzero(inside)[np.argsort(xyz[inside, 2], kind="stable")]
        colours = 255 * _HEIGHTS(np.clip((xyz[order, 2] - LOW) / (HIGH - LOW), 0, 1))[:, :3]
        canvas[down[order], across[order]] = colours.astype(np.uint8)
        return canvas

    def box(self, draw: ImageDraw.ImageDraw, box: Float[np.ndarray, " 7"], colour: tuple[int, ...], width: int) -> None:
        corners = self.pixels(box_corners(torch.from_numpy(box[None]))[0, :4].numpy())
        draw.polygon([tuple(corner) for corner in corners], outline=colour, width=width)
        ahead = box[:2] + 0.5 * box[3] * np.array([np.cos(box[6]), np.sin(box[6])])
        middle, front = self.pixels(np.stack([box[:2], ahead]))
        draw.line((*middle, *front), fill=colour, width=width)


def _cared(objects: Objects) -> Objects:
    return objects[np.array([name != DONT_CARE for name in objects.names], bool)]


def _faded(colour: tuple[int, ...], strength: float) -> tuple[int, ...]:
    return tuple(round(strength * part + (1 - strength) * dark) for part, dark in zip(colour, BACKGROUND, strict=True))
