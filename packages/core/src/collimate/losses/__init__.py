"""Contrastive losses: a choice on four axes (similarity, targets, weights, negatives) over one tiled core.

`clip_loss`, `siglip_loss`, `supcon_loss` and `cwcl_loss` are a few lines each on `info_nce`, `symmetric_info_nce` and
`sigmoid_contrast`. None of them ever holds a matrix of all pairs, and all are exact across devices. `filip_loss` has
another similarity, `late_interaction`, and holds a score a pair, but never the products of tokens behind it.
"""

from collimate.losses.amcl import amcl_nt_xent_loss
from collimate.losses.annotation_trees import tree_similarities
from collimate.losses.assignments import balanced_assignments, swapped_assignment_loss
from collimate.losses.clip import clip_loss
from collimate.losses.cwcl import cwcl_loss
from collimate.losses.distance_weights import matrix_weights_by_distance, pair_weights_by_distance
from collimate.losses.filip import filip_loss
from collimate.losses.late_interaction import Selected, late_interaction, select_tokens
from collimate.losses.local_to_global import local_to_global_loss
from collimate.losses.mil_nce import mil_nce_loss, mil_nce_losses, symmetric_mil_nce_loss, symmetric_mil_nce_losses
from collimate.losses.pair_temperature import PairTemperature
from collimate.losses.queue import FeatureQueue
from collimate.losses.redundancy import cross_correlation_loss, predictive_loss
from collimate.losses.regions import RegionLosses, box_loss, region_losses, region_text_loss
from collimate.losses.scores import symmetric_info_nce_of_scores
from collimate.losses.siglip import siglip_loss
from collimate.losses.sigmoid import sigmoid_contrast
from collimate.losses.simhand import similarity_weighted_loss
from collimate.losses.soft_labels import soft_label_loss
from collimate.losses.softmax import (
    SymmetricLosses,
    info_nce,
    info_nce_losses,
    symmetric_info_nce,
    symmetric_info_nce_losses,
)
from collimate.losses.star import star_loss
from collimate.losses.supcon import supcon_loss
from collimate.losses.targets import (
    Leading,
    Mixture,
    Paired,
    SharedLabels,
    Similarities,
    Smoothed,
    Softened,
    Targets,
    Weights,
)
from collimate.losses.transport import ctc_losses, sinkhorn_divergences
from collimate.losses.view_supcon import Subspaces, view_supcon_losses

__all__ = [
    "FeatureQueue",
    "Leading",
    "Mixture",
    "PairTemperature",
    "Paired",
    "RegionLosses",
    "Selected",
    "SharedLabels",
    "Similarities",
    "Smoothed",
    "Softened",
    "Subspaces",
    "SymmetricLosses",
    "Targets",
    "Weights",
    "amcl_nt_xent_loss",
    "balanced_assignments",
    "box_loss",
    "clip_loss",
    "cross_correlation_loss",
    "ctc_losses",
    "cwcl_loss",
    "filip_loss",
    "info_nce",
    "info_nce_losses",
    "late_interaction",
    "local_to_global_loss",
    "matrix_weights_by_distance",
    "mil_nce_loss",
    "mil_nce_losses",
    "pair_weights_by_distance",
    "predictive_loss",
    "region_losses",
    "region_text_loss",
    "select_tokens",
    "siglip_loss",
    "sigmoid_contrast",
    "similarity_weighted_loss",
    "sinkhorn_divergences",
    "soft_label_loss",
    "star_loss",
    "supcon_loss",
    "swapped_assignment_loss",
    "symmetric_info_nce",
    "symmetric_info_nce_losses",
    "symmetric_info_nce_of_scores",
    "symmetric_mil_nce_loss",
    "symmetric_mil_nce_losses",
    "tree_similarities",
    "view_supcon_losses",
]
