"""PointNet++ in its two published families, and the encoders made of them."""

from collimate_3d.pointnet2.encoders import ObjectPointNet2, PointNet2, PointNet2MultiScale, Seeds, VoteNetBackbone
from collimate_3d.pointnet2.plain import (
    FeaturePropagation,
    GlobalAbstraction,
    MultiScaleSetAbstraction,
    SetAbstraction,
)
from collimate_3d.pointnet2.votenet import VoteFeaturePropagation, VoteSetAbstraction

__all__ = [
    "FeaturePropagation",
    "GlobalAbstraction",
    "MultiScaleSetAbstraction",
    "ObjectPointNet2",
    "PointNet2",
    "PointNet2MultiScale",
    "Seeds",
    "SetAbstraction",
    "VoteFeaturePropagation",
    "VoteNetBackbone",
    "VoteSetAbstraction",
]
