"""Graph layers over the objects of a scene."""

from collimate_3d.graphs.attention import Attention, OffsetAttention, PlaceAttention
from collimate_3d.graphs.base import GraphLayers, NoGraph
from collimate_3d.graphs.feature_attention import FeatureAttention, FeatureAttentionGraph
from collimate_3d.graphs.triplets import TripletConvolution, TripletGraph

__all__ = [
    "Attention",
    "FeatureAttention",
    "FeatureAttentionGraph",
    "GraphLayers",
    "NoGraph",
    "OffsetAttention",
    "PlaceAttention",
    "TripletConvolution",
    "TripletGraph",
]
