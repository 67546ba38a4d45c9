"""Training: the Method base, optimization, gradient cache and callbacks."""

from collimate.training.gradient_cache import embed_in_chunks
from collimate.training.method import Method
from collimate.training.momentum import follow, momentum_copy
from collimate.training.optimization import Optimization, parameter_groups

__all__ = ["Method", "Optimization", "embed_in_chunks", "follow", "momentum_copy", "parameter_groups"]
