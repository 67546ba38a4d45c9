"""Pre-training of LiDAR backbones without labels."""

from collimate_3d.pretraining.bev_contrast import BEVContrast
from collimate_3d.pretraining.essl3d import ESSL3D
from collimate_3d.pretraining.point_contrast import PointContrast
from collimate_3d.pretraining.proposal_contrast import ProposalContrast

__all__ = ["ESSL3D", "BEVContrast", "PointContrast", "ProposalContrast"]
