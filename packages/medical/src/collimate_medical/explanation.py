"""What a transformer looked at: attention weighed by its gradient, rolled out over the layers.

Chefer et al. 2021, Generic attention-model explainability, arXiv 2103.15679, and Transformer interpretability beyond
attention visualization, arXiv 2012.09838; Abnar and Zuidema 2020, arXiv 2005.00928, for the plain rollout. With the
attention weights A_l of layer l, heads h, and a score y,

    C_l = mean_h max(0, dy / dA_lh * A_lh),    R = (I + C_L) ... (I + C_2) (I + C_1),          the gradient rollout,
    C_l = mean_h A_lh, each row of I + C_l brought to the sum 1,                               the plain rollout.

R is read in the row of the class token. It tells for each token how much of it reached the class token. As released,
rows of the gradient rollout are not normalised.

Works on the towers here and on every transformer of timm, whose attention is computed openly meanwhile.

Shape legend: B samples, H heads, N tokens with the class token, L those after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.encoding import Encoding

Attentions = Sequence[Float[Tensor, "B H N N"]]
"""Those of each layer, the first one in front."""


def explain(
    encoder: nn.Module,
    inputs: Tensor,
    score: Callable[[Encoding], Float[Tensor, " B"]],
    start_layer: int = 0,
) -> Float[Tensor, "B L"]:
    """The gradient rollout of a score of each sample: how much each token counts for it, 0 or more.

    It also works under `torch.inference_mode`, and leaves no gradients. What the encoder is to be explained for should
    be in evaluation mode.

    Args:
        encoder: a transformer with a class token in front.
        inputs: of the encoder, B samples.
        score: y of what the encoder gives; one a sample, of that sample alone.
        start_layer: the first layer that is multiplied.

    Raises:
        ValueError: no attention was found in the encoder, or it has no such layer.
    """
    with torch.inference_mode(False), torch.enable_grad(), recorded_attention(encoder) as attentions:
        total = score(encoder(inputs.clone().requires_grad_(inputs.is_floating_point()))).sum()
        gradients = torch.autograd.grad(total, attentions)
    layers = [each.detach() for each in attentions]
    return gradient_rollout(layers, gradients, start_layer)


def gradient_rollout(attentions: Attentions, gradients: Attentions, start_layer: int = 0) -> Float[Tensor, "B L"]:
    """R of attention weights and of the gradients of the score with respect to them."""
    weighed = [(g * a).clamp_min(0).mean(1) for a, g in zip(attentions, gradients, strict=True)]
    return _rolled_out(weighed, start_layer, normalised=False)


def attention_rollout(attentions: Attentions, start_layer: int = 0) -> Float[Tensor, "B L"]:
    """R of the attention weights alone, which knows of no score."""
    return _rolled_out([each.mean(1) for each in attentions], start_layer, normalised=True)


@contextmanager
def recorded_attention(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """A list that every attention of the encoder adds its weights to, (B, H, N, N), as it runs.

    Raises:
        ValueError: there is none: the encoder is no transformer of timm or of this package.
    """
    found: list[Tensor] = []
    layers: list[Any] = [
        each for each in encoder.modules() if hasattr(each, "fused_attn") and hasattr(each, "attn_drop")
    ]
    if not layers:
        raise ValueError(f"{type(encoder).__name__} has no attention that can be recorded: use a transformer of timm.")
    fused = [each.fused_attn for each in layers]
    # The input, not the output: dropout would stand between the softmax and what is explained.
    hooks = [each.attn_drop.register_forward_hook(lambda _, given, __: found.append(given[0])) for each in layers]
    try:
        for each in layers:
            each.fused_attn = False
        yield found
    finally:
        for each, was, hook in zip(layers, fused, hooks, strict=True):
            each.fused_attn = was
            hook.remove()


def _rolled_out(layers: Sequence[Tensor], start_layer: int, normalised: bool) -> Float[Tensor, "B L"]:
    if not 0 <= start_layer < len(layers):
        raise ValueError(f"start_layer is one of the {len(layers)} layers, counted from 0; got {start_layer}.")
    identity = torch.eye(layers[0].shape[-1], dtype=layers[0].dtype, device=layers[0].device)
    rolled = identity.expand_as(layers[0])
    for layer in layers[start_layer:]:
        step = identity + layer
        rolled = (step / step.sum(-1, keepdim=True) if normalised else step) @ rolled
    return rolled[:, 0, 1:]
