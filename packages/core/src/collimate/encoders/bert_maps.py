"""Where a text looks that was fused with a picture: cross-attention weighted by its gradient.

Li et al. 2021, ALBEF, arXiv 2107.07651 (visual grounding), after Selvaraju et al. 2017, Grad-CAM, arXiv 1610.02391. For
the score y of a picture and a text (that they match) and the weights A of a layer's cross-attention,

    map_p = mean over heads h and tokens l of  max(0, dy / dA_hlp) A_hlp

Shape legend: N pictures, T texts, L text tokens, P tokens of a picture, H heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collimate.encoders.bert import Bert
from collimate.encoding import Encoding

PAIRS_AT_A_TIME = 64  # of 24 x 24 patches, texts of 25 tokens and 12 heads: 45 MB for each layer's weights


def cross_attention_maps(
    bert: Bert,
    score: Callable[[Encoding], Float[Tensor, " pairs"]],
    image: Encoding,
    text: Encoding,
    layer: int,
) -> Float[Tensor, "N T P"]:
    """The map of each text over each picture. It also works under `torch.inference_mode`, and leaves no gradients.

    Args:
        bert: with cross-attention; in evaluation mode.
        score: y of what `bert.fuse` gives, one a pair.
        image: N pictures, with the tokens that the cross-attention reads.
        text: T texts, with the tokens that `bert` gave. Their mask may leave [CLS] and [SEP] out, as that of
            `collimate.evaluation.maps.Localizer` does; they are read all the same.
        layer: which of the fusion layers, from 0. salesforce/ALBEF, Grounding.py takes the
            third of six, 2.

    Returns:
        for all P tokens of a picture, those in front of its grid too; 0 or more, and comparable within a pair.

    Raises:
        ValueError: there is no such layer, or no tokens.
    """
    if not 0 <= layer < len(bert.layers) - bert.fusion_layer:
        raise ValueError(f"layer is one of the {len(bert.layers) - bert.fusion_layer} fusion layers, not {layer}.")
    if image.tokens is None or text.tokens is None:
        raise ValueError("Maps of cross-attention need the tokens of pictures and texts.")
    count = len(text.tokens)
    pairs = torch.arange(len(image.tokens) * count, device=text.tokens.device)
    with torch.inference_mode(False), torch.enable_grad():
        image, text = _fresh(image), _fresh(text.replace(mask=whole_texts(text.token_mask)))
        found = [
            _maps(bert, score, _rows(image, some // count), _rows(text, some % count), layer)
            for some in pairs.split(PAIRS_AT_A_TIME)
        ]
    return torch.cat(found).unflatten(0, (-1, count))


def whole_texts(mask: Bool[Tensor, "T L"]) -> Bool[Tensor, "T L"]:
    """Masks with [CLS] in front of the words, and the [SEP] behind them, where they were left out."""
    places = torch.arange(mask.shape[1], device=mask.device)
    last = places.where(mask, 0).amax(1, keepdim=True)
    return torch.where(mask[:, :1], mask, places <= last + 1)


def _maps(
    bert: Bert, score: Callable[[Encoding], Tensor], image: Encoding, text: Encoding, layer: int
) -> Float[Tensor, "pairs P"]:
    with bert.cross_attention() as recorded:
        total = score(bert.fuse(text, image)).sum()
    weights = recorded[layer]
    (gradient,) = torch.autograd.grad(total, weights)
    every = gradient.clamp_min(0) * weights.detach() * text.token_mask[:, None, :, None]
    return every.mean((1, 2))


def _rows(encoding: Encoding, rows: Tensor) -> Encoding:
    mask = None if encoding.mask is None else encoding.mask[rows]
    assert encoding.tokens is not None
    return encoding.replace(pooled=encoding.pooled[rows], tokens=encoding.tokens[rows], mask=mask)


def _fresh(encoding: Encoding) -> Encoding:
    """Copies that ask for gradients: tensors of inference mode cannot, and weights may be frozen."""
    mask = None if encoding.mask is None else encoding.mask.clone()
    assert encoding.tokens is not None
    return encoding.replace(pooled=encoding.pooled.clone(), tokens=encoding.tokens.clone().requires_grad_(), mask=mask)
