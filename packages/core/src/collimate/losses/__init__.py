"""Contrastive losses: a choice on four axes (similarity, targets, weights, negatives) over one tiled core.

`clip_loss`, `siglip_loss`, `supcon_loss` and `cwcl_loss` are a few lines each on `info_nce`, `symmetric_info_nce` and
`sigmoid_contrast`. None of them ever holds a matrix of all pairs, and all are exact across devices.
"""

from collimate.losses.clip import clip_loss
from collimate.losses.cwcl import cwcl_loss
from collimate.losses.siglip import siglip_loss
from collimate.losses.sigmoid import sigmoid_contrast
from collimate.losses.softmax import (
    SymmetricLosses,
    info_nce,
    info_nce_losses,
    symmetric_info_nce,
    symmetric_info_nce_losses,
)
from collimate.losses.supcon import supcon_loss
from collimate.losses.targets import Paired, SharedLabels, Similarities, Softened, Targets, Weights

__all__ = [
    "Paired",
    "SharedLabels",
    "Similarities",
    "Softened",
    "SymmetricLosses",
    "Targets",
    "Weights",
    "clip_loss",
    "cwcl_loss",
    "info_nce",
    "info_nce_losses",
    "siglip_loss",
    "sigmoid_contrast",
    "supcon_loss",
    "symmetric_info_nce",
    "symmetric_info_nce_losses",
]
