"""Scene flow: by how many metres each point p of a sweep moves until the next.

    with the sensor's own motion:    p' = p + flow,        in the axes of the first sweep
    without:                         p' = T p + flow,      in the axes of the next,

where p' lies in the frame of the next sweep, and T, from the poses, takes the first frame into it. Samples say which
(`Sweep.flow_includes_ego`). Four sources: poses alone (a world that stands still), tracked boxes, files of any
estimator, and `collimate_3d.lidar.registration`.

Shape legend: N points of a sweep.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from collimate_3d.boxes import points_in_boxes
from collimate_3d.lidar.objects import Objects
from collimate_3d.lidar.poses import apply_pose, inverse_pose

LARGEST = 10.0
"""Metres that nothing moves between two sweeps: more is a flow in voxels, or in another frame."""

BOX_MARGIN = 0.1  # ours, in metres: points on a surface lie on both sides of its box


def check_flow(flow: Float[np.ndarray, "N 3"], points: int, largest: float = LARGEST) -> Float[np.ndarray, "N 3"]:
    """A flow as float32.

    Raises:
        ValueError: it is of other points, not finite, or too large for metres.
    """
    flow = np.asarray(flow)
    if flow.shape != (points, 3):
        raise ValueError(f"A flow is (points, 3); got {flow.shape} for {points} points.")
    if not np.isfinite(flow).all():
        raise ValueError(f"The flow of {int((~np.isfinite(flow)).any(1).sum())} points is not finite.")
    length = float(np.linalg.norm(flow, axis=1).max(initial=0.0))
    if length >= largest:
        raise ValueError(
            f"A point moves {length:.3g} m until the next sweep; a flow is less than {largest:g} m. Is it in metres, "
            "and in the frame of the LiDAR?"
        )
    return flow.astype(np.float32)


def flow_of_poses(xyz: Float[np.ndarray, "N 3"], motion: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "N 3"]:
    """The flow of a world that stands still, the sensor's motion included.

    Args:
        motion: from the frame of the sweep into that of the next (`poses.motion_between`).

    Raises:
        ValueError: as `check_flow`.
    """
    return check_flow(apply_pose(motion, xyz) - xyz, len(xyz))


def flow_of_tracks(
    xyz: Float[np.ndarray, "N 3"], objects: Objects, following: Objects, motion: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "N 3"]:
    """Points in a box move with it, and all others as the world does; the sensor's motion included.

    An object that is gone in the next sweep moves as the world does, too.

    Args:
        objects, following: those of the sweep and of the next, with their tracks, each in its sweep's frame.
        motion: from the frame of the sweep into that of the next.

    Raises:
        ValueError: objects without tracks, or as `check_flow`.
    """
    if objects.tracks is None or following.tracks is None:
        raise ValueError("Flow of boxes needs the `tracks` of the objects in both sweeps.")
    moved = apply_pose(motion, xyz)
    later = {int(track): box for track, box in zip(following.tracks, following.boxes, strict=True)}
    own = points_in_boxes(torch.from_numpy(xyz.astype(np.float64)), torch.from_numpy(objects.boxes), BOX_MARGIN)
    for place, (track, box) in enumerate(zip(objects.tracks, objects.boxes, strict=True)):
        if int(track) in later:
            inside = (own == place).numpy()
            moved[inside] = apply_pose(_from_box(later[int(track)]) @ inverse_pose(_from_box(box)), xyz[inside])
    return check_flow(moved - xyz, len(xyz))


def without_ego(
    flow: Float[np.ndarray, "N 3"], xyz: Float[np.ndarray, "N 3"], motion: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "N 3"]:
    """What is left of a flow that includes the sensor's motion: what the world moved by."""
    return check_flow(xyz + flow - apply_pose(motion, xyz), len(xyz))


def with_ego(
    flow: Float[np.ndarray, "N 3"], xyz: Float[np.ndarray, "N 3"], motion: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "N 3"]:
    """A flow of the world alone with the sensor's motion added."""
    return check_flow(apply_pose(motion, xyz) + flow - xyz, len(xyz))


def read_flow(path: str | Path, points: int) -> tuple[Float[np.ndarray, "N 3"], bool]:
    """A flow from a file, and whether it includes the sensor's own motion.

    Args:
        path: an .npz file with `flow` (N, 3) in metres and `flow_includes_ego`.
        points: N.

    Raises:
        ValueError: the file lacks one of both, or as `check_flow`.
    """
    with np.load(path, allow_pickle=False) as arrays:
        if missing := {"flow", "flow_includes_ego"} - set(arrays.files):
            raise ValueError(f"{path}: no {' and no '.join(sorted(missing))}; it has {', '.join(arrays.files)}.")
        return check_flow(arrays["flow"], points), bool(arrays["flow_includes_ego"])


def write_flow(path: str | Path, flow: Float[np.ndarray, "N 3"], includes_ego: bool) -> None:
    """A flow as `read_flow` reads it."""
    np.savez(path, flow=check_flow(flow, len(flow)), flow_includes_ego=includes_ego)


def _from_box(box: Float[np.ndarray, " 7"]) -> Float[np.ndarray, "4 4"]:
    """From the frame of a box into that of the sensor."""
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    matrix = np.eye(4)
    matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
    matrix[:3, 3] = box[:3]
    return matrix
