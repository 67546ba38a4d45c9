"""Contrast of a sample's global vector with its local ones: patches, tokens, frames.

Yang et al. 2022, TCL, arXiv 2202.10401, section 3.3 (after Hjelm et al. 2019, Deep InfoMax, arXiv 1808.06670). With the
global vector g_n and the locals l_n1 ... l_nM of sample n,

    L_n = mean_k -log [ exp(s g_n l_nk) / ( exp(s g_n l_nk) + Σ_{j≠n} Σ_k' exp(s g_n l_jk') ) ].

The other locals of a sample are neither its positives nor its negatives. All terms of a sample share the sum over
negatives, whose logarithm is one log-sum-exp a sample, by the tiled kernel of all contrasts; so that the n x M x (n M)
logits of the formula are never held. Locals that are padding are left out before any product is taken.

Shape legend: n samples of this rank, M locals a sample, m locals of all samples that are real, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from collimate.kernels.fixed_keys import row_logsumexp
from collimate.losses.composition import composed


@composed(
    similarity="product of a pooled vector with local ones",
    targets="own local vectors, each by itself",
    negatives="local vectors of the others of the rank",
)
def local_to_global_loss(
    features: Float[Tensor, "n D"],
    local_features: Float[Tensor, "n M D"],
    logit_scale: Float[Tensor, ""] | float,
    mask: Bool[Tensor, "n M"] | None = None,
) -> Float[Tensor, ""]:
    """Contrast each sample's global vector with its own locals, against the locals of the rank's other samples.

    Args:
        features: the global vectors g; any floating dtype, not normalised here.
        local_features: the locals l; not normalised here either, as pooled ones are shorter than 1.
        logit_scale: the multiplier s of the products, not its logarithm.
        mask: True where a local is real. Others are no positives and no negatives, and count in no mean.

    Returns:
        the mean over samples, float32 (float64 for float64 features). A sample without locals contributes 0 and is
        counted; a lone sample has no negatives, and a loss of 0.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check(features, local_features, mask)
    samples, count, _ = local_features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    features, local_features = features.to(dtype), local_features.to(dtype)
    scale = torch.as_tensor(logit_scale, device=features.device).reshape(())
    sample = torch.arange(samples, dtype=torch.int32, device=features.device)
    owner = sample.repeat_interleave(count)
    others = local_features.flatten(0, 1)
    if mask is not None:
        real = mask.flatten().nonzero()[:, 0]
        owner, others = owner[real], others[real]
    negatives = row_logsumexp(features, others, scale, _OfOthers(sample, owner), normalize=False)
    positives = scale * torch.einsum("nd,nmd->nm", features, local_features)
    losses = softplus(negatives[:, None] - positives)
    counted = torch.ones_like(losses) if mask is None else mask.to(losses.dtype)
    return ((losses * counted).sum(1) / counted.sum(1).clamp_min(1)).mean().to(dtype)


@dataclass(frozen=True)
class _OfOthers:
    """Which locals are negatives of a sample: those of the others, who are their owners."""

    sample: Int[Tensor, " n"]
    owner: Int[Tensor, " m"]

    def __call__(self, rows: slice, columns: slice) -> Bool[Tensor, "rows columns"]:
        return self.sample[rows, None] != self.owner[columns]


def _check(features: Tensor, local_features: Tensor, mask: Tensor | None) -> None:
    if local_features.ndim != 3 or features.shape != (len(local_features), local_features.shape[2]):
        raise ValueError(
            f"Global vectors are (samples, width) and locals (samples, locals, width) of the same samples; got "
            f"{tuple(features.shape)} and {tuple(local_features.shape)}."
        )
    if mask is not None and mask.shape != local_features.shape[:2]:
        raise ValueError(f"The mask is {tuple(mask.shape)}, the locals are {tuple(local_features.shape)}.")
