"""Training: the Method base, optimization, gradient cache and callbacks."""

from collimate.training.classifier import Classifier
from collimate.training.gradient_cache import embed_in_chunks
from collimate.training.method import Method
from collimate.training.momentum import follow, momentum_copy
from collimate.training.multigrid import MultigridSchedule
from collimate.training.optimization import Optimization, parameter_groups
from collimate.training.phases import PhaseSchedule

__all__ = [
    "Classifier",
    "Method",
    "MultigridSchedule",
    "Optimization",
    "PhaseSchedule",
    "embed_in_chunks",
    "follow",
    "momentum_copy",
    "parameter_groups",
]
