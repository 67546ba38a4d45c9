"""3D methods: scene-graph-guided pre-training, LiDAR equivariance."""

from collimate_3d.evaluation import evaluate_grounding, evaluate_objects
from collimate_3d.graphs import NoGraph, OffsetAttention, PlaceAttention, TripletGraph
from collimate_3d.language import GRUTextEncoder, WordTokenizer
from collimate_3d.object_encoder import ObjectPointNet
from collimate_3d.scene_graph_vlp import SceneGraphVLP
from collimate_3d.scenes import DrawnReferrals, ReferralProcessor, SceneAugmentation, SceneProcessor

__all__ = [
    "DrawnReferrals",
    "GRUTextEncoder",
    "NoGraph",
    "ObjectPointNet",
    "OffsetAttention",
    "PlaceAttention",
    "ReferralProcessor",
    "SceneAugmentation",
    "SceneGraphVLP",
    "SceneProcessor",
    "TripletGraph",
    "WordTokenizer",
    "evaluate_grounding",
    "evaluate_objects",
]
