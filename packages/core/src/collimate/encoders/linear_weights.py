"""Which weights of a module are matrices of its encoders' linear layers: what may be sparse, or go without a state."""

from __future__ import annotations

from torch import nn

from collimate.encoders.base import Encoder


def linear_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> the matrix of each layer of an encoder that multiplies vectors and learns.

    Embeddings' matrices are none, also where a linear layer shares them, nor are those of heads outside of encoders.
    """
    tied = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    found: dict[str, nn.Parameter] = {}
    for outer, encoder in module.named_modules():
        if not isinstance(encoder, Encoder):
            continue
        for inner, child in encoder.named_modules():
            attention = isinstance(child, nn.MultiheadAttention)
            weight = child.in_proj_weight if attention else getattr(child, "weight", None)
            if not (attention or isinstance(child, nn.Linear)) or weight is None or id(weight) in tied:
                continue
            if weight.requires_grad:
                found[".".join(part for part in (outer, inner, "weight") if part)] = weight
    return found
