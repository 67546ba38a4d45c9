"""MoRE's towers: one vision transformer with DropKey, over the patches of an X-ray or over the moments of an ECG.

Thapa et al. 2024, MoRE, arXiv 2410.16239; svthapa/MoRE, utils/build_model.py. Both are timm's ViT, but for the
attention (`collimate_medical.dropkey`), which has no bias on queries, keys and values. Weights are named as there.

Shape legend: B samples, H W pixels, C leads, T samples of a lead, N tokens, D width.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn.functional import interpolate

from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding
from collimate_medical.dropkey import DropKeyAttention, linear_shares

NORM_EPS = 1e-6  # timm, VisionTransformer
INIT_STD = 0.02  # timm, VisionTransformer
KERNEL = 5  # of both convolutions over an ECG, and the step of the first one; utils/build_model.py


class _Transformer(Encoder):
    """A class token, positions, and pre-norm blocks; `pooled` is the class token, `tokens` are the others."""

    def __init__(
        self,
        count: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropkey: float,
        dropkey_last: float,
        qkv_bias: bool,
        init_std: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + count, width))
        shares = linear_shares(depth, dropkey, dropkey_last)
        self.blocks = nn.Sequential(*[_Block(width, heads, mlp_ratio, share, qkv_bias) for share in shares])
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.apply(partial(_initialise, std=init_std))
        nn.init.normal_(self.cls_token, std=1e-6)  # timm, VisionTransformer.init_weights
        nn.init.trunc_normal_(self.pos_embed, std=init_std)

    def _encoding(
        self, tokens: Float[Tensor, "B N D"], positions: Float[Tensor, "1 N+1 D"], grid: tuple[int, int]
    ) -> Encoding:
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens + positions))
        return Encoding(tokens[:, 0], tokens[:, 1:], grid=grid)


class ImageTransformer(_Transformer):
    """MoRE's X-ray tower. `tokens` lie on the grid of patches; other sizes than `image_size` interpolate positions.

    Args:
        image_size: the side in pixels for which positions are learned.
        patch_size: side of a patch.
        width: D.
        depth: blocks.
        heads: of the attentions.
        mlp_ratio: width of a block's hidden layer, in widths.
        dropkey: the share of keys that the first block drops in training.
        dropkey_last: that of the last block, with those between on a line. As MoRE was run, 0.3 in all of them.
        qkv_bias: whether queries, keys and values have a bias; needed for weights of ImageNet.
        init_std: of random matrices and positions; see `collimate.encoders.Bert`.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        dropkey: float = 0.3,
        dropkey_last: float = 0.0,
        qkv_bias: bool = False,
        init_std: float = INIT_STD,
    ) -> None:
        if image_size % patch_size:
            raise ValueError(f"Pictures of {image_size} pixels cannot be cut into patches of {patch_size}.")
        side = image_size // patch_size
        super().__init__(side**2, width, depth, heads, mlp_ratio, dropkey, dropkey_last, qkv_bias, init_std)
        self.image_size, self.patch_size, self.grid = image_size, patch_size, (side, side)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, patch_size)})

    def forward(self, inputs: Float[Tensor, "B 3 H W"], mask: Tensor | None = None) -> Encoding:
        patches = self.patch_embed["proj"](inputs)
        grid = (patches.shape[2], patches.shape[3])
        positions = self.pos_embed
        if grid != self.grid:
            positions = resample_abs_pos_embed(positions, list(grid), list(self.grid), num_prefix_tokens=1)
        return self._encoding(patches.flatten(2).mT, positions, grid)

    def example(self) -> Float[Tensor, "B 3 H W"]:
        return waves(2, 3, self.image_size, self.image_size)


class ECGTransformer(_Transformer):
    """MoRE's ECG tower: two convolutions over all leads together, then the transformer.

    Token i sees the samples 5 i to 5 i + 25, for kernels of 5. `tokens` lie on a grid of one row, along time. ECGs of
    another length interpolate positions. The convolutions are followed by batch norms: in training, samples see each
    other's statistics.

    Args:
        samples: T, for which positions are learned: 10 s at 100 Hz.
        leads: C.
        stem_width: channels between the convolutions.
        width, depth, heads, mlp_ratio, dropkey, dropkey_last, qkv_bias, init_std: as of `ImageTransformer`.
    """

    def __init__(
        self,
        samples: int = 1000,
        leads: int = 12,
        stem_width: int = 256,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        dropkey: float = 0.3,
        dropkey_last: float = 0.0,
        qkv_bias: bool = False,
        init_std: float = INIT_STD,
    ) -> None:
        if samples < KERNEL**2:
            raise ValueError(f"An ECG of {samples} samples gives no token: {KERNEL**2} are the least.")
        count = samples // KERNEL - (KERNEL - 1)
        super().__init__(count, width, depth, heads, mlp_ratio, dropkey, dropkey_last, qkv_bias, init_std)
        self.samples, self.leads = samples, leads
        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module("conv1", self._stage(leads, stem_width, KERNEL))
        self.patch_embed.add_module("conv2", self._stage(stem_width, width, 1))

    def forward(self, inputs: Float[Tensor, "B C T"], mask: Tensor | None = None) -> Encoding:
        if inputs.shape[1] != self.leads or inputs.shape[2] < KERNEL**2:
            raise ValueError(
                f"An ECG is (batch, {self.leads} leads, {KERNEL**2} samples or more); got {tuple(inputs.shape)}."
            )
        tokens = self.patch_embed(inputs).mT
        positions = self.pos_embed
        if tokens.shape[1] != positions.shape[1] - 1:
            moments = interpolate(positions[:, 1:].mT, tokens.shape[1], mode="linear").mT
            positions = torch.cat([positions[:, :1], moments], 1)
        return self._encoding(tokens, positions, (1, tokens.shape[1]))

    def example(self) -> Float[Tensor, "B C T"]:
        return waves(2, self.leads, self.samples)

    def _stage(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(inputs, outputs, KERNEL, stride), nn.ReLU(), nn.BatchNorm1d(outputs))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float, dropped: float, qkv_bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=NORM_EPS), nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = DropKeyAttention(width, heads, dropped, qkv_bias)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, hidden))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(hidden, width))

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


def _initialise(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
