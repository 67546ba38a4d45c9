"""Files of points: PLY, PCD, LAS and LAZ, NPZ and NPY, each to a `PointCloud`."""

from collimate_3d.formats.arrays import decode_npy, decode_npz, encode_points
from collimate_3d.formats.las import decode_las
from collimate_3d.formats.pcd import decode_pcd
from collimate_3d.formats.ply import decode_ply

__all__ = ["decode_las", "decode_npy", "decode_npz", "decode_pcd", "decode_ply", "encode_points"]
