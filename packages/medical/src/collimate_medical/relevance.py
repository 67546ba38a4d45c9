"""Transformer attribution: attention weighed by its gradient and by the relevance that reaches it.

Chefer et al. 2021, Transformer interpretability beyond attention visualization, arXiv 2012.09838. With the relevance
R_l of a layer's attention A_l, heads h, and a score y,

    C_l = mean_h max(0, dy / dA_lh * R_lh),    R = (I + C_L) ... (I + C_2) (I + C_1),

where relevance starts at the pooled vector and is handed down from outputs to inputs in their shares of

- a linear layer with inputs x and weights W: those of x+ W+ + x- W- (the rule alpha = 1 of section 3.1);
- a product, of attention and values, of queries and keys: those of the products, half to each factor;
- a sum, as of a residual: those of the summands, then scaled so that each branch gets its part of the whole;

and passes through softmax, GELU and layer norms as it is. At the pooled vector v it is that of max(0, v dy/dv), which
for a linear head is the linear rule; MoRE's own rule for the batch norms of its projections was not published. Sums
that scale a residual are taken for each sample, where released code takes them over the batch.

For the towers of this package. The gradient rollout (`collimate_medical.explanation`) needs none of these rules.

Shape legend: B samples, H heads, N tokens with the class token, L those after it, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.encoding import Encoding
from collimate_medical.explanation import gradient_rollout, recorded_attention
from collimate_medical.transformers import ECGTransformer, ImageTransformer

EPS = 1e-9  # modules/layers_ours.py


def explain_by_relevance(
    encoder: ImageTransformer | ECGTransformer,
    inputs: Tensor,
    score: Callable[[Encoding], Float[Tensor, " B"]],
    start_layer: int = 0,
) -> Float[Tensor, "B L"]:
    """The transformer attribution of a score of each sample: how much each token counts for it, 0 or more.

    Args:
        encoder: a tower of this package, in evaluation mode.
        inputs: of the encoder, B samples.
        score: y of the encoding; one a sample, of that sample alone, by its pooled vector.
        start_layer: the first layer that is multiplied.

    Raises:
        TypeError: the encoder is another one.
        ValueError: it has no such layer.
    """
    relevances, gradients = attention_relevance(encoder, inputs, score)
    return gradient_rollout(relevances, gradients, start_layer)


def attention_relevance(
    encoder: ImageTransformer | ECGTransformer, inputs: Tensor, score: Callable[[Encoding], Float[Tensor, " B"]]
) -> tuple[list[Float[Tensor, "B H N N"]], list[Float[Tensor, "B H N N"]]]:
    """The relevance of each layer's attention, and the gradient of the score with respect to it, first layer first."""
    if not isinstance(encoder, ImageTransformer | ECGTransformer):
        raise TypeError(
            f"Relevance is handed down through ImageTransformer and ECGTransformer, not {type(encoder).__name__}: use "
            "the gradient rollout, which takes every transformer of timm."
        )
    given: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, args, __: given.append(args[0])) for block in encoder.blocks]
    try:
        with torch.inference_mode(False), torch.enable_grad(), recorded_attention(encoder) as attentions:
            encoding = encoder(inputs.clone().requires_grad_())
            total = score(encoding).sum()
            slope, *gradients = torch.autograd.grad(total, [encoding.pooled, *attentions])
    finally:
        for hook in hooks:
            hook.remove()
    with torch.inference_mode():
        start = (encoding.pooled * slope).clamp_min(0)
        relevance = torch.zeros_like(given[0])
        relevance[:, 0] = start / (start.sum(1, keepdim=True) + EPS)
        found = []
        for block, tokens in zip(reversed(list(encoder.blocks)), reversed(given), strict=True):
            relevance, attention = _through_block(block, tokens.detach(), relevance)
            found.append(attention)
    return found[::-1], [each.detach() for each in gradients]


def _through_block(block: Any, tokens: Float[Tensor, "B N D"], relevance: Tensor) -> tuple[Tensor, Tensor]:
    """From a block's output to its input; and what reached its attention."""
    attended = block.attn(block.norm1(tokens))
    between = tokens + attended
    hidden = block.mlp.fc1(block.norm2(between))
    active = block.mlp.act(hidden)
    skipped, taken = _sum(between, block.mlp.fc2(active), relevance)
    taken = _linear(block.mlp.fc1, block.norm2(between), _linear(block.mlp.fc2, active, taken))
    skipped, through = _sum(tokens, attended, skipped + taken)
    through, attention = _through_attention(block.attn, block.norm1(tokens), through)
    return skipped + through, attention


def _through_attention(attention: Any, tokens: Float[Tensor, "B N D"], relevance: Tensor) -> tuple[Tensor, Tensor]:
    query, key, value = attention.qkv(tokens).unflatten(2, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)
    weights = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    relevance = _linear(attention.proj, mixed, relevance).unflatten(2, (attention.heads, -1)).transpose(1, 2)
    of_weights, of_value = _product(weights, value, relevance)
    of_query, of_key = _product(query, key.mT, of_weights)
    together = torch.stack([of_query, of_key.mT, of_value]).permute(1, 3, 0, 2, 4).flatten(2)
    return _linear(attention.qkv, tokens, together), of_weights


def _linear(layer: nn.Linear, inputs: Tensor, relevance: Tensor) -> Tensor:
    sides = [(inputs.clamp(min=0), layer.weight.clamp(min=0)), (inputs.clamp(max=0), layer.weight.clamp(max=0))]
    share = _share(relevance, sides[0][0] @ sides[0][1].T + sides[1][0] @ sides[1][1].T)
    return sides[0][0] * (share @ sides[0][1]) + sides[1][0] * (share @ sides[1][1])


def _product(one: Tensor, other: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    share = _share(relevance, one @ other)
    return one * (share @ other.mT) / 2, other * (one.mT @ share) / 2


def _sum(one: Tensor, other: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    share = _share(relevance, one + other)
    parts = [one * share, other * share]
    sums = [part.sum((1, 2), keepdim=True) for part in parts]
    whole, both = relevance.sum((1, 2), keepdim=True), sums[0].abs() + sums[1].abs()
    first, second = (part * _share(_share(own.abs(), both) * whole, own) for part, own in zip(parts, sums, strict=True))
    return first, second


def _share(relevance: Tensor, total: Tensor) -> Tensor:
    return torch.where(total != 0, relevance / (total + EPS), 0)
