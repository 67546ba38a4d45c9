"""Operators on points and their voxels, batched, for CPU and CUDA alike."""

from collimate_3d.operators.segments import Groups, grouped, segment_count, segment_max, segment_mean, segment_sum
from collimate_3d.operators.voxels import Voxelisation, padded_voxels, voxelise, voxelise_limited, voxelise_unbounded

__all__ = [
    "Groups",
    "Voxelisation",
    "grouped",
    "padded_voxels",
    "segment_count",
    "segment_max",
    "segment_mean",
    "segment_sum",
    "voxelise",
    "voxelise_limited",
    "voxelise_unbounded",
]
