"""Operators on points and their voxels, batched, for CPU and CUDA alike."""

from collimate_3d.operators.neighbours import Neighbours, ball_query, gathered, interpolated, nearest
from collimate_3d.operators.sampling import VOTENET_DEAD_ZONE, farthest_points
from collimate_3d.operators.segments import Groups, grouped, segment_count, segment_max, segment_mean, segment_sum
from collimate_3d.operators.voxels import (
    Voxelisation,
    padded_voxels,
    voxelise,
    voxelise_limited,
    voxelise_unbounded,
)

__all__ = [
    "VOTENET_DEAD_ZONE",
    "Groups",
    "Neighbours",
    "Voxelisation",
    "ball_query",
    "farthest_points",
    "gathered",
    "grouped",
    "interpolated",
    "nearest",
    "padded_voxels",
    "segment_count",
    "segment_max",
    "segment_mean",
    "segment_sum",
    "voxelise",
    "voxelise_limited",
    "voxelise_unbounded",
]
