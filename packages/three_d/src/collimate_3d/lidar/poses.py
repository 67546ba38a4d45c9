"""Poses: where a sensor stands and looks, as 4 x 4 matrices that take its points into the world.

Shape legend: N points, M boxes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

ORTHONORMAL = 1e-3  # ours: poses are written with six digits or more


def check_pose(pose: Float[np.ndarray, "4 4"], what: str = "pose") -> Float[np.ndarray, "4 4"]:
    """A pose as float64.

    Raises:
        ValueError: it is no rotation with a translation in metres.
    """
    pose = np.asarray(pose, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all() or not np.allclose(pose[3], (0, 0, 0, 1)):
        raise ValueError(f"The {what} is a finite 4 x 4 matrix whose last row is 0 0 0 1; got {pose.tolist()}.")
    rotation = pose[:3, :3]
    error = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if error > ORTHONORMAL or np.linalg.det(rotation) < 0:
        raise ValueError(
            f"The rotation of the {what} is not orthonormal: it is off by {error:.2g}, its determinant is "
            f"{np.linalg.det(rotation):.3g}. Is it in another order (rows, columns), or scaled?"
        )
    return pose


def inverse_pose(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """The way back; exact to rounding for rigid poses."""
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def motion_between(start: Float[np.ndarray, "4 4"], stop: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """What takes points of the sensor at pose `start` into its frame at pose `stop`, where the world stands still."""
    return inverse_pose(stop) @ start


def apply_pose(pose: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Points in the frame that the pose leads to; float64."""
    return points.astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]


def move_boxes(pose: Float[np.ndarray, "4 4"], boxes: Float[np.ndarray, "M 7"]) -> Float[np.ndarray, "M 7"]:
    """Boxes in the frame that the pose leads to. Boxes stand upright, so of its rotation the heading sees the yaw."""
    boxes = np.array(boxes, np.float64)
    ahead = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], 1) @ pose[:3, :3].T
    boxes[:, :3] = apply_pose(pose, boxes[:, :3])
    boxes[:, 6] = np.arctan2(ahead[:, 1], ahead[:, 0])
    return boxes


def rotation_of(quaternion: Float[np.ndarray, " 4"]) -> Float[np.ndarray, "3 3"]:
    """The rotation matrix of a quaternion w, x, y, z.

    Raises:
        ValueError: its length is 0 or not finite.
    """
    length = np.linalg.norm(quaternion)
    if not np.isfinite(length) or length == 0:
        raise ValueError(f"{np.asarray(quaternion).tolist()} is no rotation: a quaternion w, x, y, z has a length.")
    w, x, y, z = np.asarray(quaternion, np.float64) / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
