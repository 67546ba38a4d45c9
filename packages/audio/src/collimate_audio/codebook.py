"""Codebooks: the nearest code of each vector, how evenly codes are used, and spherical k-means.

Shape legend: N vectors, K codes, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from collimate import distributed

ROWS_AT_ONCE = 8192  # ours: their distances to 1024 codes take 32 MiB


@torch.no_grad()
def nearest_codes(vectors: Float[Tensor, "*N D"], codebook: Float[Tensor, "K D"]) -> Int64[Tensor, "*N"]:
    """The code at the smallest Euclidean distance from each vector, in float32."""
    codebook = codebook.float()
    squares = codebook.square().sum(1)
    parts = vectors.detach().float().flatten(0, -2).split(ROWS_AT_ONCE)
    with torch.autocast(codebook.device.type, enabled=False):
        found = [torch.addmm(squares, part, codebook.T, alpha=-2).argmin(1) for part in parts]
    return torch.cat(found).view(vectors.shape[:-1])


def code_counts(codes: Int64[Tensor, "*N"], count: int, group: distributed.Group = None) -> Float[Tensor, " K"]:
    """How often each of `count` codes occurs on all ranks; negative ones stand for padding and do not count."""
    codes = codes.flatten()
    return distributed.all_sum(torch.bincount(codes[codes >= 0], minlength=count).float(), group)


def perplexity(counts: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """The number of codes in use: the exponential of the entropy of their shares, from 1 to K."""
    share = counts / counts.sum().clamp_min(torch.finfo(counts.dtype).tiny)
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def spherical_kmeans(
    vectors: Float[Tensor, "N D"], start: Int64[Tensor, " K"], rounds: int = 10
) -> Float[Tensor, "K D"]:
    """Unit means of clusters of unit vectors.

    Args:
        vectors: of length 1.
        start: the rows that begin as means.
        rounds: of assigning vectors and moving means. A mean that no vector is nearest to stays.
    """
    means = vectors[start]
    for _ in range(rounds):
        nearest = nearest_codes(vectors, means)
        means = cluster_means(vectors, nearest, means, distributed.LOCAL)
    return means


def cluster_means(
    vectors: Float[Tensor, "N D"],
    codes: Int64[Tensor, " N"],
    otherwise: Float[Tensor, "K D"],
    group: distributed.Group = None,
) -> Float[Tensor, "K D"]:
    """The unit mean of the vectors of each code, those of all ranks; a code without any keeps what it has."""
    sums = torch.zeros_like(otherwise).index_add_(0, codes, vectors.to(otherwise.dtype))
    counts = torch.bincount(codes, minlength=len(otherwise)).to(otherwise.dtype)
    sums, counts = distributed.all_sum(torch.cat([sums, counts[:, None]], 1), group).split([sums.shape[1], 1], 1)
    return torch.where(counts > 0, normalize(sums / counts.clamp_min(1), dim=1), otherwise)
