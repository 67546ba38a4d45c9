"""Motion between two sweeps from the points alone: iterated closest points, and nearest neighbours for what moves.

An estimator for tests and for data without poses; those that are learnt do better, and their files are read by
`collimate_3d.lidar.flow.read_flow`.

Shape legend: N points of a sweep, M of the next.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64
from scipy.spatial import KDTree

from collimate_3d.lidar.flow import check_flow
from collimate_3d.lidar.poses import apply_pose

STEPS = 40  # ours
TRIMMED = 0.6  # ours: the share of pairs that are believed; the rest is what is hidden, new or moves
CELL = 0.25  # ours, in metres: of what surfaces are told by


def registered(
    source: Float[np.ndarray, "N 3"],
    target: Float[np.ndarray, "M 3"],
    start: Float[np.ndarray, "4 4"] | None = None,
    steps: int = STEPS,
) -> Float[np.ndarray, "4 4"]:
    """The rigid motion that lays a sweep over the next (Besl and McKay 1992; with trimming, Chetverikov et al. 2002).

    Distances are to planes: of the pairs of nearest points, the nearest are taken, and the motion is the one that
    brings them least far off the surface there, to first order (Chen and Medioni 1992).

    Args:
        start: a first guess; that nothing moved if None.

    Returns:
        (4, 4) float64, from the frame of the sweep into that of the next.

    Raises:
        ValueError: fewer than ten points.
    """
    if min(len(source), len(target)) < 10:
        raise ValueError(f"{len(source)} and {len(target)} points are too few to be laid over one another.")
    moving, target = _thinned(source), _thinned(target)
    tree = KDTree(target)
    normals = _normals(target, tree)
    motion = np.eye(4) if start is None else np.array(start, np.float64)
    for _ in range(steps):
        points = apply_pose(motion, moving)
        distance, nearest = _nearest(tree, points)
        believed = distance <= np.quantile(distance, TRIMMED)
        step = _step(points[believed], target[nearest[believed]], normals[nearest[believed]])
        motion = step @ motion
        if np.abs(step - np.eye(4)).max() < 1e-6:
            break
    return motion


def estimated_flow(
    xyz: Float[np.ndarray, "N 3"],
    following: Float[np.ndarray, "M 3"],
    motion: Float[np.ndarray, "4 4"],
    farthest: float = 2.0,
    neighbours: int = 8,
) -> Float[np.ndarray, "N 3"]:
    """The flow to the nearest points of the next sweep, smoothed over neighbours; the sensor's motion is included.

    Args:
        motion: from the frame of the sweep into that of the next: from poses, or `registered`.
        farthest: metres beyond which a nearest point is another thing; such points move as the world does.
        neighbours: of each point, over whose flows the median is taken.

    Raises:
        ValueError: as `check_flow`.
    """
    moved = apply_pose(motion, xyz)
    distance, nearest = _nearest(KDTree(following), moved)
    found = distance <= farthest
    residual = np.zeros_like(moved)
    residual[found] = np.asarray(following, np.float64)[nearest[found]] - moved[found]
    close = _nearest(KDTree(xyz), xyz, min(neighbours, len(xyz)))[1].reshape(len(xyz), -1)
    return check_flow(moved + np.median(residual[close], axis=1) - xyz, len(xyz))


def _nearest(
    tree: KDTree, points: Float[np.ndarray, "N 3"], count: int = 1
) -> tuple[Float[np.ndarray, "N ..."], Int64[np.ndarray, "N ..."]]:
    """Distances to the nearest points, and their places."""
    distance, place = tree.query(points, k=count)
    return np.asarray(distance), np.asarray(place)


def _thinned(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "n 3"]:
    """One point of each cell. Without it neighbours lie along one ring of the scan, which spans no surface."""
    points = np.asarray(points, np.float64)
    return points[np.unique(np.floor(points / CELL).astype(np.int64), axis=0, return_index=True)[1]]


def _normals(points: Float[np.ndarray, "M 3"], tree: KDTree, neighbours: int = 10) -> Float[np.ndarray, "M 3"]:
    """The direction in which each point's neighbours spread least."""
    around = points[_nearest(tree, points, min(neighbours, len(points)))[1]]
    apart = around - around.mean(1, keepdims=True)
    return np.linalg.eigh(apart.transpose(0, 2, 1) @ apart)[1][..., 0]


def _step(
    points: Float[np.ndarray, "n 3"], wanted: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "4 4"]:
    """The motion that least squares find for the distances to planes, its rotation made one."""
    slopes = np.concatenate([np.cross(points, normals), normals], 1)
    offsets = ((wanted - points) * normals).sum(1)
    turn_and_shift = np.linalg.lstsq(slopes, offsets, rcond=None)[0]
    x, y, z = turn_and_shift[:3]
    left, _, right = np.linalg.svd(np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]]))
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = left @ right, turn_and_shift[3:]
    return motion
