"""How evaluation treats point clouds: what reports show of one, and by which sentences classes are asked for."""

from __future__ import annotations

import numpy as np

from collimate.evaluation.modalities import Exhibit, Manner, register_evaluation
from collimate_3d.evaluation.pictures import show_scene
from collimate_3d.formats.columns import COLOURS
from collimate_3d.reading import RawPoints, read_points

TEMPLATES = ("a point cloud of {}.", "a 3D model of {}.", "a scan of {}.")  # ours
DARK, LIGHT = 50, 200  # ours, of 255: the lowest and the highest point of a cloud without colours


def show_points(raw: RawPoints) -> Exhibit:
    """A cloud from above at a slant, in its colours, or lighter the higher where it has none.

    Raises:
        Undecodable: it is damaged, empty, or no cloud.
    """
    cloud = read_points(raw)
    nothing = np.zeros(0, np.int64)
    return show_scene(
        {
            "xyz": cloud.xyz,
            "rgb": _colours(cloud.channels(COLOURS) if set(COLOURS) <= set(cloud.fields) else None, cloud.xyz[:, 2]),
            "instance": np.zeros(len(cloud), np.int64),
            "ids": nothing,
            "labels": nothing,
            "boxes": np.zeros((0, 6), np.float32),
        }
    )


def _colours(rgb: np.ndarray | None, heights: np.ndarray) -> np.ndarray:
    if rgb is not None:
        return (np.nan_to_num(rgb, nan=0.5) * 255).astype(np.uint8)
    extent = float(np.ptp(heights)) or 1.0
    grey = DARK + (LIGHT - DARK) * (heights - heights.min()) / extent
    return np.repeat(grey[:, None], 3, 1).astype(np.uint8)


register_evaluation(
    "points", Manner(show=show_points, templates="points", template_sets={"points": TEMPLATES}, spaced_names=True)
)
