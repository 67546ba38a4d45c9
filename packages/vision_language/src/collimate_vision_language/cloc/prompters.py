"""Prompters: from the tokens of a picture and a prompt, a box or a text, to one vector of what the prompt means there.

A picture is seen once (`see`), whatever the number of its prompts.

Shape legend: B pictures, T tokens of a picture, M prompts a picture, P tokens of a prompt, W width of the tokens, H
hidden width, D width of a text's vector.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from torchvision.ops import roi_align

from collimate.configurable import Configurable
from collimate.encoding import Encoding


class Prompter(nn.Module, Configurable):
    """What makes a picture promptable.

    Attributes:
        width: W.
        takes_texts: whether texts may be prompts too.
    """

    width: int
    takes_texts = False

    def tokens(self, encoding: Encoding) -> Encoding:
        """The tokens of a picture that prompts look at, of those that the tower gives."""
        return encoding

    def see(self, tokens: Float[Tensor, "B T W"], grid: tuple[int, ...] | None) -> Any:
        """What all prompts of a picture share.

        Args:
            tokens, grid: of `tokens`.
        """
        raise NotImplementedError

    def by_boxes(self, seen: Any, boxes: Float[Tensor, "B M 4"]) -> Float[Tensor, "B M W"]:
        """What the boxes hold; x0, y0, x1, y1 as shares, 0 to 1, of the processed picture."""
        raise NotImplementedError

    def by_texts(self, seen: Any, texts: Float[Tensor, "B M D"]) -> Float[Tensor, "B M W"]:
        """What the texts speak of, each a vector in the joint space, not normalised."""
        raise TypeError(f"{type(self).__name__} takes boxes alone, no texts.")


class Seen(NamedTuple):
    """What `AttentionPrompter` shares among the prompts of a picture, in the symbols there, of the picture's tokens."""

    query: Float[Tensor, "B T W"]
    key: Float[Tensor, "B T W"]
    value: Float[Tensor, "B T W"]  # v'
    logsumexp: Float[Tensor, "B T"]  # of the logits q k / √W over the picture
    attended: Float[Tensor, "B T W"]  # a
    summed: Float[Tensor, "B W"]  # Σ_i (h_i + o)
    parts: tuple[Centred, Centred]  # of h + o, and of a


class Centred(NamedTuple):
    """Vectors as the second norm and the first matrix want them: without their mean, and F of them."""

    vectors: Float[Tensor, "... W"]
    features: Float[Tensor, "... H"]


_Sums = tuple[Float[Tensor, "B M W"], Float[Tensor, "B M H"]]
"""Over some tokens, h' and gelu(W_1 LN'(h') + b_1)."""


class AttentionPrompter(Prompter):
    """CLOC's: one transformer layer with one head over prompt and picture, and the mean of what comes out.

    With h the tokens of a prompt and those of a picture, one after the other, the layer is torch's, norms first,

        h'_i = h_i + o + Σ_j p_ij v'_j,   p_i = softmax_j(q_i k_j / √W),   q, k, v of LN(h),   v' = O v,
        y_i = h'_i + W_2 gelu(W_1 LN'(h'_i) + b_1) + b_2,                          the vector: mean_i y_i,

    of which a prompt changes little for a token i of the picture. Its weights on the picture keep their proportions,
    so that with a_i = Σ_j p_ij v'_j over the picture alone, and λ_i the share of the weights that is left to it,

        h'_i = (h_i + o) + λ_i a_i + Σ_{j in prompt} p_ij v'_j.

    A layer norm is linear but for its deviation σ. With F what centres, scales by the norm's weights and multiplies by
    W_1, W_1 LN'(h'_i) = [F(h_i + o) + λ_i F(a_i) + Σ_{j in prompt} p_ij F(v'_j)] / σ_i + W_1 β; and the mean may be
    taken before W_2. So the tokens of a picture are multiplied by matrices once, for all of its prompts, and a prompt's
    own one or two tokens are all that is left. It is the same number as `layer(h).mean(1)`.

    A box is two tokens, one a corner: half of their channels are sines and cosines of x and half of y, of frequencies
    10000^(-2i / (W/2)) on coordinates from 0 to 2π, as in DETR (arXiv 2005.12872); a learned vector says which corner
    it is, as in SAM (arXiv 2304.02643). A text is one token: its vector through a matrix.

    What a prompter knows of the places of a picture's tokens is what these hold, as those of a ViT do. `token_places`
    adds to each of them the waves of its own centre, as SAM's decoder does: ours, for towers without positions and for
    short training, in which boxes and tokens hardly find each other otherwise.

    The paper leaves open what of this is named as an argument, the norms' place, the matrix of texts and the waves.

    Args:
        width: W, a multiple of 4.
        text_width: D.
        mlp_ratio: H over W.
        pool: the mean of `all` tokens, or of those of the `image` alone.
        corner_vectors: whether corners have the learned vectors.
        token_places: whether the tokens of pictures have waves too; they must lie on a grid.
        coordinate_range: what coordinates from 0 to 1 are multiplied by before the waves.
        wave_base: the 10000 of the frequencies.

    Raises:
        ValueError: the width has no four equal parts.
    """

    takes_texts = True

    def __init__(
        self,
        width: int,
        text_width: int,
        mlp_ratio: float = 4.0,
        pool: Literal["all", "image"] = "all",
        corner_vectors: bool = True,
        token_places: bool = False,
        coordinate_range: float = 2 * math.pi,
        wave_base: float = 10_000.0,
    ) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"A corner is sines and cosines of x and of y: the width is a multiple of 4, not {width}.")
        self.width, self.pool, self.token_places = width, pool, token_places
        self.coordinate_range, self.wave_base = coordinate_range, wave_base
        self.layer = nn.TransformerEncoderLayer(
            width, 1, int(mlp_ratio * width), dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.text_prompt = nn.Linear(text_width, width)
        self.corners = nn.Parameter(torch.randn(2, width) * width**-0.5) if corner_vectors else None

    def tokens(self, encoding: Encoding) -> Encoding:
        """All tokens after the last norm, and the pooled one, a ViT's class token, before them."""
        return encoding.pooled_first()

    def see(self, tokens: Float[Tensor, "B T W"], grid: tuple[int, ...] | None) -> Seen:
        tokens = self._placed(tokens, grid) if self.token_places else tokens
        query, key, value = self._attention(tokens)
        logits = _full(query @ key.mT)
        logsumexp = logits.logsumexp(-1)
        attended = (logits - logsumexp[..., None]).exp().to(value.dtype) @ value
        hidden = tokens + self.layer.self_attn.out_proj.bias
        parts = self._centred(hidden), self._centred(attended)
        return Seen(query, key, value, logsumexp, attended, hidden.sum(1), parts)

    def by_boxes(self, seen: Seen, boxes: Float[Tensor, "B M 4"]) -> Float[Tensor, "B M W"]:
        return self._pooled(seen, self.box_tokens(boxes))

    def by_texts(self, seen: Seen, texts: Float[Tensor, "B M D"]) -> Float[Tensor, "B M W"]:
        return self._pooled(seen, self.text_prompt(texts)[:, :, None])

    def box_tokens(self, boxes: Float[Tensor, "B M 4"]) -> Float[Tensor, "B M 2 W"]:
        """A token for each of the two corners."""
        corners = self._waves(boxes.unflatten(-1, (2, 2)))
        return corners if self.corners is None else corners + self.corners

    def _waves(self, points: Float[Tensor, "... 2"]) -> Float[Tensor, "... W"]:
        """Sines and cosines of x, and those of y."""
        quarter = self.width // 4
        exponents = torch.arange(quarter, device=points.device, dtype=torch.float32) / quarter
        angles = points.float()[..., None] * self.coordinate_range * self.wave_base**-exponents
        return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2).to(self.text_prompt.weight.dtype)

    def _placed(self, tokens: Float[Tensor, "B T W"], grid: tuple[int, ...] | None) -> Float[Tensor, "B T W"]:
        """The tokens with the waves of their centres; what stands in front of the grid has no place."""
        if grid is None or len(grid) != 2:
            raise ValueError("token_places needs tokens on a grid of two dimensions: without dropped patches.")
        height, width = grid
        cells = torch.arange(height * width, device=tokens.device)
        centres = torch.stack([(cells % width + 0.5) / width, (cells // width + 0.5) / height], 1)
        front = tokens.shape[1] - len(cells)
        return torch.cat([tokens[:, :front], tokens[:, front:] + self._waves(centres)], 1)

    def _pooled(self, seen: Seen, prompt: Float[Tensor, "B M P W"]) -> Float[Tensor, "B M W"]:
        """The mean of the layer's outputs."""
        attention = self._attention(prompt)
        hidden, inner = self._of_picture(seen, *attention[1:])
        count = seen.key.shape[1]
        if self.pool == "all":
            of_prompt = self._of_prompt(seen, prompt, *attention)
            hidden, inner, count = hidden + of_prompt[0], inner + of_prompt[1], count + prompt.shape[2]
        return hidden / count + self.layer.linear2(inner / count)

    def _of_picture(self, seen: Seen, key: Float[Tensor, "B M P W"], value: Float[Tensor, "B M P W"]) -> _Sums:
        logits = _full(torch.einsum("btw,bmpw->bmtp", seen.query, key))
        on_picture = seen.logsumexp[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        weights = torch.cat([on_picture, logits], -1).softmax(-1).to(value.dtype)
        left, taken = weights[..., :1], weights[..., 1:]
        (hidden, attended), prompt = seen.parts, self._centred(value)
        scale = self._scale(_mixed(hidden.vectors, left, attended.vectors, taken, prompt.vectors))
        # The bias is one more candidate, of weight 1: a sweep less over the largest tensor.
        bias = self._bias().to(prompt.features.dtype).expand(*prompt.features.shape[:2], 1, -1)
        weights = torch.cat([scale * taken, torch.ones_like(scale)], -1)
        features = torch.cat([prompt.features, bias], 2)
        inner = _mixed(hidden.features, scale * left, attended.features, weights, features, scale)
        summed = seen.summed[:, None] + left[..., 0] @ seen.attended + (taken.sum(2)[:, :, None] @ value)[:, :, 0]
        return summed, gelu(inner).sum(2)

    def _of_prompt(
        self,
        seen: Seen,
        prompt: Float[Tensor, "B M P W"],
        query: Float[Tensor, "B M P W"],
        key: Float[Tensor, "B M P W"],
        value: Float[Tensor, "B M P W"],
    ) -> _Sums:
        logits = _full(torch.cat([query @ seen.key[:, None].mT, query @ key.mT], -1))
        weights = logits.softmax(-1).to(value.dtype)
        on_picture, on_prompt = weights.split([seen.key.shape[1], prompt.shape[2]], -1)
        attended = on_picture @ seen.value[:, None] + on_prompt @ value
        hidden = prompt + self.layer.self_attn.out_proj.bias + attended
        centred = self._centred(hidden)
        inner = gelu(centred.features * self._scale(centred.vectors) + self._bias())
        return hidden.sum(2), inner.sum(2)

    def _attention(self, tokens: Float[Tensor, "... W"]) -> tuple[Tensor, Tensor, Tensor]:
        """q / √W, k and v'. With one head, O may act on the values before they are mixed."""
        attention = self.layer.self_attn
        projected = linear(self.layer.norm1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = projected.chunk(3, -1)
        return query * self.width**-0.5, key, linear(value, attention.out_proj.weight)

    def _centred(self, vectors: Float[Tensor, "... W"]) -> Centred:
        centred = vectors - vectors.mean(-1, keepdim=True)
        return Centred(centred, linear(centred * self.layer.norm2.weight, self.layer.linear1.weight))

    def _scale(self, centred: Float[Tensor, "... W"]) -> Float[Tensor, "... 1"]:
        """1 / σ."""
        variance = torch.linalg.vecdot(_full(centred), _full(centred)) / self.width
        return (variance + self.layer.norm2.eps).rsqrt()[..., None].to(centred.dtype)

    def _bias(self) -> Float[Tensor, " H"]:
        """W_1 β + b_1."""
        return linear(self.layer.norm2.bias, self.layer.linear1.weight, self.layer.linear1.bias)


def _mixed(
    hidden: Float[Tensor, "B T C"],
    left: Float[Tensor, "B M T 1"],
    attended: Float[Tensor, "B T C"],
    taken: Float[Tensor, "B M T P"],
    value: Float[Tensor, "B M P C"],
    scale: Float[Tensor, "B M T 1"] | None = None,
) -> Float[Tensor, "B M T C"]:
    """scale hidden + left attended + taken value, in few sweeps over the result, which is the largest of all tensors.

    In place, as autograd needs none of what is overwritten; and in the precision of `hidden`.
    """
    left, attended, taken, value = (each.to(hidden.dtype) for each in (left, attended, taken, value))
    if scale is None:
        mixed = torch.addcmul(hidden[:, None], left, attended[:, None])
    else:
        mixed = (hidden[:, None] * scale.to(hidden.dtype)).addcmul_(left, attended[:, None])
    mixed.flatten(0, 1).baddbmm_(taken.flatten(0, 1), value.flatten(0, 1))
    return mixed


def _full(values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """At least float32, which softmaxes and deviations need."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class RoIAlignPrompter(Prompter):
    """What CLOC is compared with: the mean of the feature map within a box (He et al. 2017, arXiv 1703.06870).

    It has no weights; the matrix into the joint space is the method's.

    Args:
        width: W.
        output_size: cells along a side of a box, whose values, bilinear, are averaged.
    """

    def __init__(self, width: int, output_size: int = 7) -> None:  # 7: Mask R-CNN's
        super().__init__()
        self.width, self.output_size = width, output_size

    def see(self, tokens: Float[Tensor, "B T W"], grid: tuple[int, ...] | None) -> Float[Tensor, "B W h w"]:
        if grid is None or len(grid) != 2:
            raise ValueError("RoI-Align needs tokens on a grid of two dimensions: without dropped patches.")
        return tokens.mT.unflatten(2, grid)

    def by_boxes(self, seen: Float[Tensor, "B W h w"], boxes: Float[Tensor, "B M 4"]) -> Float[Tensor, "B M W"]:
        height, width = seen.shape[-2:]
        scaled = boxes.to(seen.dtype) * boxes.new_tensor([width, height, width, height])
        found = roi_align(seen, list(scaled.unbind()), self.output_size, aligned=True)
        return found.mean((2, 3)).unflatten(0, boxes.shape[:2])
