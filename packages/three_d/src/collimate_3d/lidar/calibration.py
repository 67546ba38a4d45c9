"""The calibration of KITTI's cameras, by name; boxes and points between the LiDAR's frame, the camera's and the image.

The rectified camera looks along z, with x to the right and y down. Its boxes are (x, y, z, l, h, w, rotation_y), whose
point is the middle of the BOTTOM, with rotation_y = -heading - pi/2. Angles are not wrapped.

Shape legend: N points, M boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from collimate.data.decoding import Undecodable

CALIBRATION = "calib.json"
"""The key of a sample under which its calibration lies."""

NAMES = {
    "projection": ("P2",),
    "rectification": ("R0_rect", "R_rect"),
    "lidar_to_camera": ("Tr_velo_to_cam", "Tr_velo_cam", "Tr"),
}
"""What each matrix is called in the files of the object benchmark, of tracking and of odometry."""

NEAREST = 1e-3  # ours, in metres: corners behind the camera have no place in its image


@dataclass(frozen=True)
class Calibration:
    """How the LiDAR sees the left colour camera.

    Attributes:
        projection: P2, from the rectified camera into pixels.
        rectification: R0, of the reference camera.
        lidar_to_camera: from the LiDAR into the reference camera.
    """

    projection: Float[np.ndarray, "3 4"]
    rectification: Float[np.ndarray, "3 3"]
    lidar_to_camera: Float[np.ndarray, "3 4"]

    @property
    def lidar_to_rectified(self) -> Float[np.ndarray, "4 4"]:
        """One matrix for both steps."""
        matrix = np.eye(4)
        matrix[:3] = self.rectification @ self.lidar_to_camera
        return matrix

    def to_rectified(self, points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
        """Points of the LiDAR as the rectified camera sees them; float64."""
        return _homogeneous(points) @ self.lidar_to_rectified[:3].T

    def to_lidar(self, points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
        """The way back."""
        return _homogeneous(points) @ np.linalg.inv(self.lidar_to_rectified)[:3].T

    def project(self, points: Float[np.ndarray, "N 3"]) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, " N"]]:
        """Pixels (x right, y down) and depth in metres of points of the rectified camera.

        The division is by the depth in the rectified camera (open-mmlab/OpenPCDet, calibration_kitti.py), which lies a
        few millimetres from that in the colour camera. What lies behind it comes out with a depth below 0.
        """
        depth = points[:, 2].astype(np.float64)
        image = _homogeneous(points) @ self.projection[:2].T
        return image / np.where(depth == 0, np.nan, depth)[:, None], depth

    def unproject(self, pixels: Float[np.ndarray, "N 2"], depth: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 3"]:
        """The points of the rectified camera that are seen at these pixels, so many metres away."""
        scaled = pixels * depth[:, None] - self.projection[:2, 3] - self.projection[:2, 2] * depth[:, None]
        return np.concatenate([np.linalg.solve(self.projection[:2, :2], scaled.T).T, depth[:, None]], 1)

    def boxes_to_camera(self, boxes: Float[np.ndarray, "M 7"]) -> Float[np.ndarray, "M 7"]:
        """x, y, z of the bottom's middle, l, h, w, rotation_y in the rectified camera."""
        length, width, height, heading = np.asarray(boxes, np.float64)[:, 3:].T
        bottoms = boxes[:, :3] - np.stack([0 * height, 0 * height, height / 2], 1)
        rest = np.stack([length, height, width, -heading - np.pi / 2], 1)
        return np.concatenate([self.to_rectified(bottoms), rest], 1)

    def boxes_to_lidar(self, boxes: Float[np.ndarray, "M 7"]) -> Float[np.ndarray, "M 7"]:
        """The way back."""
        length, height, width, rotation = np.asarray(boxes, np.float64)[:, 3:].T
        centres = self.to_lidar(boxes[:, :3]) + np.stack([0 * height, 0 * height, height / 2], 1)
        return np.concatenate([centres, np.stack([length, width, height, -rotation - np.pi / 2], 1)], 1)

    def image_boxes(
        self, boxes: Float[np.ndarray, "M 7"], size: tuple[int, int] | None = None
    ) -> Float[np.ndarray, "M 4"]:
        """The box in the image around the corners of each box of the LiDAR; x0, y0, x1, y1 in pixels.

        Args:
            size: height and width of the image, to which boxes are clipped.
        """
        corners = camera_corners(self.boxes_to_camera(boxes)).reshape(-1, 3)
        pixels = self.project(corners)[0].reshape(-1, 8, 2)
        found = np.concatenate([pixels.min(1), pixels.max(1)], 1)
        return found if size is None else np.clip(found, 0, [size[1] - 1, size[0] - 1] * 2)

    def sees(self, points: Float[np.ndarray, "N 3"], size: tuple[int, int]) -> np.ndarray:
        """Which points of the LiDAR lie in the image, (N,) bool: the front view.

        Args:
            size: height and width of the image.
        """
        rectified = self.to_rectified(points)
        pixels, depth = self.project(rectified)
        return (depth > NEAREST) & (pixels >= 0).all(1) & (pixels < size[::-1]).all(1)

    def to_json(self) -> dict[str, Any]:
        """What `calib.json` holds."""
        return {name: getattr(self, name).tolist() for name in NAMES}

    @classmethod
    def from_json(cls, matrices: Mapping[str, Any]) -> Calibration:
        """What `to_json` made.

        Raises:
            Undecodable: a matrix is missing or has another shape.
        """
        return cls.of({name: matrices.get(name) for name in NAMES})

    @classmethod
    def parse(cls, text: str) -> Calibration:
        """The calibration in a file of KITTI, whatever the order of its lines.

        Raises:
            Undecodable: a line that is needed is missing or damaged.
        """
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        found: dict[str, Any] = {}
        for name, keys in NAMES.items():
            key = next((key for key in keys if key in lines), None)
            if key is None and name == "rectification" and "Tr" in lines:
                found[name] = np.eye(3)  # odometry: its one matrix leads into the rectified camera
                continue
            if key is None:
                raise Undecodable(
                    "no calibration", f"no line {' or '.join(keys)}; there are {', '.join(lines) or 'none'}"
                )
            try:
                found[name] = [float(number) for number in lines[key].split()]
            except ValueError as error:
                raise Undecodable("damaged calibration", f"{key}: {error}") from None
        return cls.of(found)

    @classmethod
    def of(cls, matrices: Mapping[str, Any]) -> Calibration:
        """The matrices in their shapes.

        Raises:
            Undecodable: one is missing, of another size, or not finite.
        """
        shaped = {}
        for name in NAMES:
            shape = (3, 3) if name == "rectification" else (3, 4)
            values = np.array(matrices[name] if matrices[name] is not None else [], np.float64)
            if values.size != shape[0] * shape[1] or not np.isfinite(values).all():
                raise Undecodable("damaged calibration", f"{name} has {values.size} numbers; it is {shape} and finite")
            shaped[name] = values.reshape(shape)
        return cls(**shaped)


def camera_corners(boxes: Float[np.ndarray, "M 7"]) -> Float[np.ndarray, "M 8 3"]:
    """The corners of boxes in the camera's frame, the bottom first (open-mmlab/OpenPCDet, box_utils.py)."""
    length, height, width, rotation = (each[:, None] for each in np.asarray(boxes, np.float64)[:, 3:].T)
    x = length / 2 * np.array([1, 1, -1, -1, 1, 1, -1, -1])
    y = -height * np.array([0, 0, 0, 0, 1, 1, 1, 1])
    z = width / 2 * np.array([1, -1, -1, 1, 1, -1, -1, 1])
    cosine, sine = np.cos(rotation), np.sin(rotation)
    return np.stack([x * cosine + z * sine, y, z * cosine - x * sine], -1) + boxes[:, None, :3]


def _homogeneous(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 4"]:
    return np.concatenate([np.asarray(points, np.float64), np.ones((len(points), 1))], 1)
