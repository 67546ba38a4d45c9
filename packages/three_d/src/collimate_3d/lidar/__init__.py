"""LiDAR: sweeps, their readers, labels, motion, and how detectors are judged."""

from collimate_3d.lidar.bev import collapse_to_map, sample_map, warp_map
from collimate_3d.lidar.calibration import Calibration
from collimate_3d.lidar.flow import flow_of_poses, flow_of_tracks, read_flow, with_ego, without_ego, write_flow
from collimate_3d.lidar.kitti import KittiSource, format_labels, parse_labels
from collimate_3d.lidar.kitti_ap import DIFFICULTIES, EVERYTHING, Difficulty, kitti_ap, precision_curves
from collimate_3d.lidar.nuscenes import NuScenesSource
from collimate_3d.lidar.objects import OBJECTS, Objects
from collimate_3d.lidar.registration import estimated_flow, registered
from collimate_3d.lidar.sequences import SequenceSource, open_kitti360, open_odometry
from collimate_3d.lidar.subsets import label_subset
from collimate_3d.lidar.sweep import PREVIOUS, SWEEP, Sweep, decode_sweep, encode_sweep
from collimate_3d.lidar.transforms import Transform, TransformChoice, Views, two_views

__all__ = [
    "DIFFICULTIES",
    "EVERYTHING",
    "OBJECTS",
    "PREVIOUS",
    "SWEEP",
    "Calibration",
    "Difficulty",
    "KittiSource",
    "NuScenesSource",
    "Objects",
    "SequenceSource",
    "Sweep",
    "Transform",
    "TransformChoice",
    "Views",
    "collapse_to_map",
    "decode_sweep",
    "encode_sweep",
    "estimated_flow",
    "flow_of_poses",
    "flow_of_tracks",
    "format_labels",
    "kitti_ap",
    "label_subset",
    "open_kitti360",
    "open_odometry",
    "parse_labels",
    "precision_curves",
    "read_flow",
    "registered",
    "sample_map",
    "two_views",
    "warp_map",
    "with_ego",
    "without_ego",
    "write_flow",
]
