"""What a frozen backbone says of two sweeps of one place: how many of its matches are right, and the motion they tell.

Voxels of both sweeps that choose one another by the cosine of their features are a match; it is right where the known
motion brings the one to within `AGREE` of the other (the share of these is the inlier ratio of Choy, Park, Koltun 2019,
FCGF, section 5). The motion on which most of them agree (`collimate_3d.lidar.matching`) is held against the known one.

Shape legend: V voxels, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from collimate.evaluation.features import evaluating, place
from collimate.evaluation.result import Result
from collimate.training import Method
from collimate_3d.lidar.matching import AGREE, agreed_motion, mutual_matches
from collimate_3d.lidar.poses import apply_pose
from collimate_3d.lidar.processing import unpacked_sweeps
from collimate_3d.lidar.sweep import Sweep
from collimate_3d.operators.segments import segment_mean
from collimate_3d.pretraining.parts import Level, voxels_of_points
from collimate_3d.voxel_encoder import VoxelEncoder


def evaluate_registration(
    method: Method,
    source: Sweep,
    target: Sweep,
    motion: Float[np.ndarray, "4 4"],
    level: Level = "conv2",
    device: str = "auto",
    seed: int = 0,
) -> Result:
    """Lay a sweep over another one by the features of their voxels.

    Args:
        method: one that encodes `lidar` with a `VoxelEncoder`, or with one below further layers.
        motion: the known one, from the frame of the source into that of the target.
        level: of the backbone, whose voxels are matched.
        device: `auto` is the first GPU where there is one, else the CPU.
        seed: of the triples that are drawn.

    Returns:
        `matches`, the share of `right matches`, `rotation error` in degrees, `translation error` in metres.

    Raises:
        ValueError: the method has no sparse backbone, or there are fewer than three matches.
    """
    encoder = getattr(method.encoders["lidar"], "lift", method.encoders["lidar"])
    if not isinstance(encoder, VoxelEncoder):
        raise ValueError(f"Voxels are matched; {type(encoder).__name__} has none.")
    where = place(method, device)
    with evaluating(method), torch.inference_mode():
        stacked = method.processors["lidar"].batch([source, target]).to(where)
        (here, said), (there, answered) = (described(encoder, each, level) for each in stacked[:, None])
        pairs = mutual_matches(said, answered).cpu().numpy()
    ours, theirs = (each.double().cpu().numpy()[at] for each, at in zip((here, there), pairs.T, strict=True))
    right = np.linalg.norm(apply_pose(motion, ours) - theirs, axis=1) <= AGREE
    apart = np.linalg.inv(motion) @ agreed_motion(ours, theirs, seed=seed)
    turn = np.degrees(np.arccos(np.clip((np.trace(apart[:3, :3]) - 1) / 2, -1, 1)))
    metrics = {
        "matches": float(len(pairs)),
        "right matches": float(right.mean()),
        "rotation error": float(turn),
        "translation error": float(np.linalg.norm(apart[:3, 3])),
    }
    return Result("Registration by features", metrics, {}, {"level": level, "a match is right within metres": AGREE})


def described(
    encoder: VoxelEncoder, stacked: Float[Tensor, "1 N C"], level: Level
) -> tuple[Float[Tensor, "V 3"], Float[Tensor, "V D"]]:
    """The voxels of a sweep that hold points: where these lie in the mean, in metres, and what the encoder says of
    them."""
    batch = encoder.batch(unpacked_sweeps(stacked).points)
    levels = encoder.levels(batch)
    voxel = voxels_of_points(batch, encoder.grid, levels, level)
    found = voxel >= 0
    occupied, place_of = voxel[found].unique(return_inverse=True)
    xyz = segment_mean(batch.xyz[found], place_of, len(occupied))
    return xyz, getattr(levels, level).features[occupied]
