"""Dense float64 oracles: the equations of the losses written out over the full matrix, with nothing clever.

They are for tests: slow, O(B^2) in memory, and differentiable by plain autograd. Give float64 tensors.

Shape legend: B samples, N queries, M keys, V views, D width; Q queries of P tokens and K keys of L tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def cosines(query: Float[Tensor, "N D"], key: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """Cosines of all pairs, in float64."""
    return normalize(query.double(), dim=1) @ normalize(key.double(), dim=1).T


def softmax_losses(
    logits: Float[Tensor, "N M"],
    targets: Float[Tensor, "N M"] | None = None,
    keep: Bool[Tensor, "N M"] | None = None,
) -> Float[Tensor, " N"]:
    """-Σ_j t_ij / (Σ_j t_ij) log( exp l_ij / Σ_{j kept} exp l_ij ) for each row; 0 where a row has no target.

    Args:
        targets: weights, not normalised; None for the identity.
        keep: pairs in the sum; None for all.
    """
    targets = torch.eye(*logits.shape, dtype=logits.dtype) if targets is None else targets.to(logits)
    kept = logits if keep is None else logits.masked_fill(~keep, -torch.inf)
    log_probability = logits - kept.logsumexp(1, keepdim=True)
    mass = targets.sum(1)
    losses = -(targets * log_probability.masked_fill(targets == 0, 0.0)).sum(1) / mass.clamp_min(1e-6)
    return torch.where(mass > 1e-6, losses, 0.0)


def info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    logit_scale: Float[Tensor, ""] | float,
    targets: Float[Tensor, "N M"] | None = None,
    keep: Bool[Tensor, "N M"] | None = None,
) -> Float[Tensor, ""]:
    """One direction, the mean over queries."""
    return softmax_losses(logit_scale * cosines(query, key), targets, keep).mean()


def symmetric_info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    logit_scale: Float[Tensor, ""] | float,
    targets: Float[Tensor, "N M"] | None = None,
    key_targets: Float[Tensor, "M N"] | None = None,
    keep: Bool[Tensor, "N M"] | None = None,
    weights: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """Half of each direction; `key_targets` None transposes the weights `targets`, which are normalised afterwards."""
    logits = logit_scale * cosines(query, key)
    if key_targets is None and targets is not None:
        key_targets = targets.T
    rows = softmax_losses(logits, targets, keep)
    columns = softmax_losses(logits.T, key_targets, None if keep is None else keep.T)
    if weights is not None:
        rows, columns = rows * weights, columns * weights
    return (rows.mean() + columns.mean()) / 2


def sigmoid_contrast(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    logit_scale: Float[Tensor, ""] | float,
    logit_bias: Float[Tensor, ""] | float,
    targets: Float[Tensor, "N M"] | None = None,
    keep: Bool[Tensor, "N M"] | None = None,
    weights: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """-Σ_j [ t_ij log sigmoid(l_ij) + (1 - t_ij) log sigmoid(-l_ij) ], the mean over queries."""
    logits = logit_scale * cosines(query, key) + logit_bias
    targets = torch.eye(*logits.shape, dtype=logits.dtype) if targets is None else targets.to(logits)
    log_sigmoid = torch.nn.functional.logsigmoid
    losses = -(targets * log_sigmoid(logits) + (1 - targets) * log_sigmoid(-logits))
    if keep is not None:
        losses = losses.masked_fill(~keep, 0.0)
    rows = losses.sum(1)
    return (rows if weights is None else rows * weights).mean()


def clip_loss(
    image: Float[Tensor, "B D"], text: Float[Tensor, "B D"], logit_scale: Float[Tensor, ""] | float
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy with the diagonal."""
    return symmetric_info_nce(image, text, logit_scale)


def siglip_loss(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    logit_scale: Float[Tensor, ""] | float,
    logit_bias: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Pairwise sigmoid with the diagonal."""
    return sigmoid_contrast(image, text, logit_scale, logit_bias)


def supcon_loss(
    features: Float[Tensor, "B V D"],
    labels: Int[Tensor, " B"] | None = None,
    pair_weights: Float[Tensor, "B B"] | None = None,
    temperature: float = 0.07,
) -> Float[Tensor, ""]:
    """Every view against all others; positives share the label, or carry the weight, of their samples."""
    samples, views = features.shape[:2]
    if pair_weights is None:
        labels = torch.arange(samples) if labels is None else labels
        pair_weights = labels[:, None] == labels
    others = ~torch.eye(samples * views, dtype=torch.bool)
    weights = pair_weights.double().repeat_interleave(views, 0).repeat_interleave(views, 1) * others
    flat = features.flatten(0, 1)
    return info_nce(flat, flat, 1 / temperature, weights, others)


def cwcl_loss(
    frozen: Float[Tensor, "B D"],
    trained: Float[Tensor, "B D"],
    logit_scale: Float[Tensor, ""] | float,
    teacher: Float[Tensor, "B E"],
) -> Float[Tensor, ""]:
    """Weights (cosine + 1) / 2 from the frozen side, the diagonal from the other; the sum of both directions."""
    logits = logit_scale * cosines(frozen, trained)
    weights = (cosines(teacher, teacher).detach() + 1) / 2
    return softmax_losses(logits, weights).mean() + softmax_losses(logits.T).mean()


def late_interaction(
    query: Float[Tensor, "Q P D"],
    key: Float[Tensor, "K L D"],
    query_mask: Bool[Tensor, "Q P"] | None = None,
    key_mask: Bool[Tensor, "K L"] | None = None,
) -> Float[Tensor, "Q K"]:
    """Mean over a query's real tokens of the largest cosine to a real token of a key."""
    products = torch.einsum("qpd,kld->qkpl", normalize(query.double(), dim=-1), normalize(key.double(), dim=-1))
    if key_mask is not None:
        products = products.masked_fill(~key_mask[None, :, None], -torch.inf)
    best = products.amax(3)
    if query_mask is None:
        return best.mean(2)
    return (best * query_mask[:, None]).sum(2) / query_mask.sum(1)[:, None]


def filip_loss(
    image: Float[Tensor, "B P D"],
    text: Float[Tensor, "B L D"],
    logit_scale: Float[Tensor, ""] | float,
    image_mask: Bool[Tensor, "B P"] | None = None,
    text_mask: Bool[Tensor, "B L"] | None = None,
) -> Float[Tensor, ""]:
    """Images over texts and texts over images, each by its own late interaction."""
    by_image = logit_scale * late_interaction(image, text, image_mask, text_mask)
    by_text = logit_scale * late_interaction(text, image, text_mask, image_mask)
    return (softmax_losses(by_image).mean() + softmax_losses(by_text).mean()) / 2
