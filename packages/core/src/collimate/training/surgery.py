"""What to do with gradients of several losses that point against each other.

All rules need of the gradients g_1 ... g_K is their Gram matrix, G_ij = <g_i, g_j>, and give weights: the update is
sum_k w_k g_k. Leading dimensions are independent problems, such as the samples of a batch. A gradient of zero stays
out of everything.

PCGrad: Yu et al. 2020, arXiv 2001.06782. GradVac: Wang et al. 2021, arXiv 2010.05874. CAGrad: Liu et al. 2021, arXiv
2110.14048. MGDA: Désidéri 2012. IMTL-G: Liu et al. 2021, ICLR. Aligned-MTL: Senushkin et al. 2023, arXiv 2305.19000.
UPGrad (Quinton and Rey 2024, arXiv 2406.16232) of two gradients is half of PCGrad's sum.

Shape legend: K losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Gram = Float[Tensor, "*batch K K"]
Weights = Float[Tensor, "*batch K"]


def cosines(gram: Gram) -> Gram:
    """The cosine of each two gradients; 0 where one of them is zero."""
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    products = norms[..., :, None] * norms[..., None, :]
    return torch.where(products > 0, gram / products.clamp_min(_tiny(gram)), 0)


def conflicts(gram: Gram) -> Bool[Tensor, "*batch K K"]:
    """Which two gradients point against each other."""
    return gram < 0


def pcgrad(gram: Gram, order: Sequence[Sequence[int]] | None = None) -> Gram:
    """Each gradient without what it has against the others: row i holds the weights of g'_i.

        g'_i <- g'_i - <g'_i, g_j> / |g_j|^2 g_j        for each j in turn, where <g'_i, g_j> < 0

    Args:
        order: for each gradient, the others in the order in which it is projected; of two, there is only one.
    """
    count = gram.shape[-1]
    mixes = torch.eye(count, dtype=gram.dtype, device=gram.device).expand_as(gram).clone()
    for i in range(count):
        for j in order[i] if order is not None else range(count):
            if j != i:
                own = gram[..., j, j]
                along = (mixes[..., i, :] * gram[..., j, :]).sum(-1)
                mixes[..., i, j] -= torch.where((along < 0) & (own > 0), along / own.clamp_min(_tiny(gram)), 0)
    return mixes


class GradVac:
    """Draws gradients together until their cosines are what they have been on average, and not only up to 0.

    Where the cosine c of g'_i and g_j is below its target t,

        g'_i <- g'_i + |g'_i| (t sqrt(1 - c^2) - c sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2)) g_j,      t <- (1 - b) t + b c

    Args:
        beta: b.

    Attributes:
        targets: t of each two, (K, K), from zeros on; None before the first step.
    """

    def __init__(self, beta: float = 0.01) -> None:
        self.beta, self.targets = beta, None
        self.targets: Tensor | None

    def __call__(self, gram: Gram, order: Sequence[Sequence[int]] | None = None) -> Gram:
        """As `pcgrad`. Of several problems, the targets follow the mean cosine."""
        count = gram.shape[-1]
        if self.targets is None:
            self.targets = torch.zeros(count, count, dtype=gram.dtype, device=gram.device)
        mixes = torch.eye(count, dtype=gram.dtype, device=gram.device).expand_as(gram).clone()
        for i in range(count):
            for j in order[i] if order is not None else range(count):
                if j != i:
                    mix = mixes[..., i, :]
                    own, other = (mix[..., None, :] @ gram @ mix[..., None]).squeeze(-1).squeeze(-1), gram[..., j, j]
                    norms = own.clamp_min(0).sqrt(), other.sqrt()
                    found = (mix * gram[..., j, :]).sum(-1) / (norms[0] * norms[1]).clamp_min(_tiny(gram))
                    mixes[..., i, j] += self._step(found, self.targets[i, j], *norms)
                    self.targets[i, j].lerp_(found.mean(), self.beta)
        return mixes

    def _step(self, found: Tensor, target: Tensor, own: Tensor, other: Tensor) -> Tensor:
        across, along = (1 - found**2).clamp_min(0).sqrt(), (1 - target**2).clamp_min(0).sqrt()
        step = own * (target * across - found * along) / (other * along).clamp_min(_tiny(found))
        return torch.where((found < target) & (other > 0), step, 0)


def cagrad(gram: Gram, c: float = 0.5) -> Weights:
    """The update near the mean gradient g_0 whose worst loss falls fastest, for the MEAN of two losses.

        min_w <g_w, g_0> + c |g_0| |g_w|,   w on the simplex;      update = g_0 + c |g_0| / |g_w| g_w

    Raises:
        ValueError: there are not two losses.
    """
    _two(gram, "cagrad")
    mean = torch.full_like(gram[..., 0], 0.5)
    at_mean = (gram @ mean[..., None]).squeeze(-1)
    reach = c * (mean * at_mean).sum(-1).clamp_min(0).sqrt()

    def value(share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = torch.stack([share, 1 - share], -1)
        length = (weights[..., None, :] @ gram @ weights[..., None]).squeeze(-1).squeeze(-1).clamp_min(0).sqrt()
        return (weights * at_mean).sum(-1) + reach * length, weights, length

    low, high = torch.zeros_like(reach), torch.ones_like(reach)
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(80):  # convex in the share: golden-section search, down to rounding
        left, right = high - golden * (high - low), low + golden * (high - low)
        smaller = value(left)[0] <= value(right)[0]
        low, high = torch.where(smaller, low, left), torch.where(smaller, right, high)
    _, weights, length = value((low + high) / 2)
    there = length > 1e-6 * reach  # else one of the gradients is zero
    return mean + torch.where(there, reach / length.clamp_min(_tiny(gram)), 0)[..., None] * weights


def mgda(gram: Gram) -> Weights:
    """The shortest vector between two gradients.

    Raises:
        ValueError: there are not two losses.
    """
    _two(gram, "mgda")
    first, second, both = gram[..., 0, 0], gram[..., 1, 1], gram[..., 0, 1]
    share = ((second - both) / (first + second - 2 * both).clamp_min(_tiny(gram))).clamp(0, 1)
    return torch.stack([share, 1 - share], -1)


def imtl_g(gram: Gram) -> Weights:
    """Weights with sum 1 at which the update has the same component along each gradient."""
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    weights = (torch.linalg.pinv(gram) @ norms[..., None]).squeeze(-1)
    total = weights.sum(-1, keepdim=True)
    return torch.where(total.abs() > 1e-12, weights / total, 0)


def aligned_mtl(gram: Gram) -> Weights:
    """Mean of the gradients after all their principal components were scaled to the smallest one's length."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values.amax(-1, keepdim=True) * gram.shape[-1] * torch.finfo(gram.dtype).eps
    smallest = torch.where(kept, values, torch.inf).amin(-1, keepdim=True)
    scales = torch.where(kept, (smallest / values.clamp_min(_tiny(gram))).sqrt(), 0)
    return (vectors @ (scales[..., None] * vectors.mT)).mean(-1)


def _two(gram: Tensor, name: str) -> None:
    if gram.shape[-1] != 2:
        raise ValueError(f"{name} is for two groups of losses, not {gram.shape[-1]}: take pcgrad or gradvac.")


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
