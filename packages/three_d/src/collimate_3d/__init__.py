"""3D methods: scene-graph-guided pre-training, LiDAR equivariance."""

from collimate_3d.bev import BEVBackbone, bev_encoding, bev_map
from collimate_3d.evaluation import (
    evaluate_answers,
    evaluate_captions,
    evaluate_grounding,
    evaluate_objects,
    evaluate_relationships,
)
from collimate_3d.exhibits import show_points
from collimate_3d.formats import encode_points
from collimate_3d.graphs import FeatureAttentionGraph, NoGraph, OffsetAttention, PlaceAttention, TripletGraph
from collimate_3d.grid import BEVGrid, VoxelGrid
from collimate_3d.language import GRUTextEncoder, WordTokenizer
from collimate_3d.object_encoder import ObjectPointNet
from collimate_3d.point_text import PointText
from collimate_3d.pointnet import PointNet
from collimate_3d.pointnet2 import ObjectPointNet2, PointNet2, PointNet2MultiScale, VoteNetBackbone
from collimate_3d.points import PointBatch, PointCloud
from collimate_3d.processor import PointAugmentation, PointProcessor
from collimate_3d.proposals import RoomProcessor, SceneDetector, evaluate_scene_detection
from collimate_3d.reading import read_points
from collimate_3d.scene_graph_vlp import SceneAnswers, SceneCaptions, SceneGraphVLP
from collimate_3d.scenes import DrawnReferrals, ReferralProcessor, SceneAugmentation, SceneProcessor
from collimate_3d.sparse_unet import SparseUNet
from collimate_3d.voxel_encoder import BEVEncoder, PillarEncoder, VoxelEncoder

__all__ = [
    "BEVBackbone",
    "BEVEncoder",
    "BEVGrid",
    "DrawnReferrals",
    "FeatureAttentionGraph",
    "GRUTextEncoder",
    "NoGraph",
    "ObjectPointNet",
    "ObjectPointNet2",
    "OffsetAttention",
    "PillarEncoder",
    "PlaceAttention",
    "PointAugmentation",
    "PointBatch",
    "PointCloud",
    "PointNet",
    "PointNet2",
    "PointNet2MultiScale",
    "PointProcessor",
    "PointText",
    "ReferralProcessor",
    "RoomProcessor",
    "SceneAnswers",
    "SceneAugmentation",
    "SceneCaptions",
    "SceneDetector",
    "SceneGraphVLP",
    "SceneProcessor",
    "SparseUNet",
    "TripletGraph",
    "VoteNetBackbone",
    "VoxelEncoder",
    "VoxelGrid",
    "WordTokenizer",
    "bev_encoding",
    "bev_map",
    "encode_points",
    "evaluate_answers",
    "evaluate_captions",
    "evaluate_grounding",
    "evaluate_objects",
    "evaluate_relationships",
    "evaluate_scene_detection",
    "read_points",
    "show_points",
]
