"""Self-supervised objectives on point clouds: choices of the contrastive core, and what they need beside it."""

from collimate_3d.losses.bev_contrast import bev_contrast_loss, matched_cells
from collimate_3d.losses.depth_contrast import DepthContrastLosses, depth_contrast_losses
from collimate_3d.losses.equivariance import (
    flow_equivariance_loss,
    flow_warped,
    rotation_class,
    rotation_classification_loss,
)
from collimate_3d.losses.point_contrast import (
    HardestContrastive,
    draw_pairs,
    hardest_contrastive_losses,
    one_pair_a_cell,
    point_info_nce,
)
from collimate_3d.losses.proposal_contrast import ProposalEncoding, proposal_cluster_loss, proposal_instance_loss

__all__ = [
    "DepthContrastLosses",
    "HardestContrastive",
    "ProposalEncoding",
    "bev_contrast_loss",
    "depth_contrast_losses",
    "draw_pairs",
    "flow_equivariance_loss",
    "flow_warped",
    "hardest_contrastive_losses",
    "matched_cells",
    "one_pair_a_cell",
    "point_info_nce",
    "proposal_cluster_loss",
    "proposal_instance_loss",
    "rotation_class",
    "rotation_classification_loss",
]
