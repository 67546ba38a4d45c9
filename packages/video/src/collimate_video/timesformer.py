"""TimeSformer with divided space-time attention, as ALPRO uses it.

Bertasius et al. 2021, arXiv 2102.05095; Li et al. 2022, Align and Prompt, arXiv 2112.09583, section 3.1;
salesforce/ALPRO, modeling/timesformer/vit.py. With e_p a position for each place, shared by all frames, and e_t one for
each frame, shared by all places, the tokens that enter the blocks of `collimate_video.divided_attention` are

    c + e_0    and    W x_pt + e_p + e_t    for the patch x_pt.

At the start e_t and the matrix behind every attention in time are zero, so that frames do not see each other, and the
class token is the mean over what an image transformer makes of each of them.

One departure, in order alone: `tokens` are given frame by frame, row by row, as the grid (time, height, width) says;
the official ones lie place by place.

Shape legend: B clips, T frames, H W pixels, h w rows and columns of patches, P = h w, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding
from collimate_video.divided_attention import LAYER_NORM_EPS, DividedBlock
from collimate_video.positions import Resize, resized_positions, resized_times
from collimate_video.timesformer_weights import fill_timesformer, official_settings, official_weights

INITIAL_STD = 0.02  # timesformer/vit.py


class TimeSformer(Encoder):
    """The video encoder. Every parameter has its official name; the defaults are those of ALPRO.

    `pooled` is the class token; `tokens` are those of the patches on the grid (time, height, width). The mean of the
    latter over time, behind the class token, is what ALPRO's fusion reads: `pooled_over_time`.

    Clips of other sizes than the encoder was built for are taken: the positions are resized to them.

    Args:
        pretrained: initial weights: a file with those of a TimeSformer or of ALPRO, or the name of a vision transformer
            of timm, such as `vit_base_patch16_224.augreg_in21k_ft_in1k`, whose weights are downloaded unless cached.
            An image transformer gives its attention to both, time and space, and its positions to each frame.
        image_size: side of the frames in pixels that positions are made for.
        patch_size: side of a patch in pixels.
        frames: T that positions are made for.
        width: D.
        layers: blocks.
        heads: attention heads.
        hidden: width of the MLPs.
        drop_path: of the last block; the first has none, those between lie evenly.
        resize: how the positions of places are resized: `nearest` as officially, or `bicubic`, which keeps more of
            what was learned. Those of frames are always resized to the nearest.
        grad_checkpointing: recompute activations in the backward pass.
        init_std: of random weights; see `collimate.encoders.Bert`.

    Raises:
        ValueError: the sizes contradict each other.
        CheckpointError: the weights are missing, damaged, or of another model.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        image_size: int = 224,
        patch_size: int = 16,
        frames: int = 4,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        drop_path: float = 0.1,
        resize: Resize = "nearest",
        grad_checkpointing: bool = False,
        init_std: float = INITIAL_STD,
    ) -> None:
        super().__init__()
        _check(image_size, patch_size, width, heads, resize)
        self.width, self.patch_size, self.image_size, self.frames = width, patch_size, image_size, frames
        self.resize: Resize = resize
        self.grad_checkpointing = grad_checkpointing
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, width))
        self.time_embed = nn.Parameter(torch.zeros(1, frames, width))
        rates = torch.linspace(0, drop_path, layers).tolist()
        self.blocks = nn.ModuleList(DividedBlock(width, heads, hidden, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self._initialise(init_std)
        if pretrained is not None:
            fill_timesformer(self, pretrained)

    def forward(self, inputs: Float[Tensor, "B T 3 H W"], mask: Tensor | None = None) -> Encoding:
        """Encode a batch of clips.

        Raises:
            ValueError: the frames are no clip's, or do not divide into patches.
        """
        grid, tokens = self._embedded(inputs)
        for block in self.blocks:
            tokens = self._through(block, tokens, grid[0])
        tokens = self.norm(tokens)
        return Encoding(tokens[:, 0], _by_frame(tokens, grid).flatten(1, 2), grid=grid)

    def features(self, inputs: Float[Tensor, "B T 3 H W"]) -> list[Float[Tensor, "B D T h w"]]:
        """The feature map after each block, not normalised, for dense tasks."""
        grid, tokens = self._embedded(inputs)
        maps = []
        for block in self.blocks:
            tokens = self._through(block, tokens, grid[0])
            maps.append(_by_frame(tokens, grid).permute(0, 3, 1, 2).unflatten(-1, grid[1:]))
        return maps

    def example(self) -> Float[Tensor, "B T 3 H W"]:
        return waves(2, self.frames, 3, self.image_size, self.image_size)

    @classmethod
    def from_official(
        cls, checkpoint: str | PathLike[str] | Mapping[str, Any], prefix: str | None = None, **options: Any
    ) -> TimeSformer:
        """The video encoder of a published checkpoint, of the sizes that its weights have.

        Args:
            checkpoint: a file, or the state dict it holds, of ALPRO or of TimeSformer.
            prefix: what its names begin with, such as `prompter.visual_encoder.model.` for ALPRO's teacher; the
                student's, or a bare TimeSformer's, if None.
            options: arguments of the encoder that no shape tells. `heads` is the width by 64 unless given.

        Raises:
            CheckpointError: it is damaged, or holds no such weights.
        """
        weights = official_weights(checkpoint, prefix)
        encoder = cls(**{**official_settings(weights), **options})
        encoder.load_state_dict(weights)
        return encoder

    def _embedded(self, inputs: Tensor) -> tuple[tuple[int, int, int], Float[Tensor, "B 1+P*T D"]]:
        """The grid, and the tokens that enter the blocks."""
        self._check_clip(inputs)
        maps = self.patch_embed["proj"](inputs.flatten(0, 1))
        grid = (inputs.shape[1], *maps.shape[2:])
        positions = resized_positions(self.pos_embed, grid[1:], self.resize)
        patches = (maps.flatten(2).mT + positions[:, 1:]).unflatten(0, inputs.shape[:2])
        patches = patches.transpose(1, 2) + resized_times(self.time_embed, grid[0])[:, None]
        first = (self.cls_token + positions[:, :1]).expand(len(inputs), -1, -1)
        return grid, torch.cat([first, patches.flatten(1, 2)], 1)

    def _through(self, block: nn.Module, tokens: Tensor, frames: int) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, tokens, frames, use_reentrant=False)  # type: ignore[return-value]
        return block(tokens, frames)

    def _check_clip(self, inputs: Tensor) -> None:
        side = self.patch_size
        if inputs.ndim != 5 or inputs.shape[2] != 3 or inputs.shape[3] % side or inputs.shape[4] % side:
            raise ValueError(
                f"TimeSformer reads clips (batch, frames, 3, height, width) with sides that {side} divides; got "
                f"{tuple(inputs.shape)}. `VideoProcessor` makes them."
            )

    def _initialise(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=std)
        for block in self.blocks:
            nn.init.zeros_(block.temporal_fc.weight)  # type: ignore[arg-type]


def pooled_over_time(encoding: Encoding) -> Encoding:
    """A clip's tokens averaged over its frames: the grid (time, height, width) becomes (height, width).

    Raises:
        ValueError: the tokens lie on no such grid, or some are masked.
    """
    tokens, grid = encoding.tokens, encoding.grid
    if tokens is None or grid is None or len(grid) != 3 or encoding.prefix or encoding.mask is not None:
        raise ValueError(
            "Only the tokens of clips, on a grid (time, height, width) without a gap, have a mean over time."
        )
    return Encoding(encoding.pooled, tokens.unflatten(1, (grid[0], -1)).mean(1), grid=grid[1:])


def _by_frame(tokens: Float[Tensor, "B 1+P*T D"], grid: tuple[int, int, int]) -> Float[Tensor, "B T P D"]:
    """The patches, from place by place to frame by frame."""
    return tokens[:, 1:].unflatten(1, (-1, grid[0])).transpose(1, 2)


def _check(image_size: int, patch_size: int, width: int, heads: int, resize: str) -> None:
    if image_size % patch_size:
        raise ValueError(f"Frames of {image_size} pixels do not divide into patches of {patch_size}.")
    if width % heads:
        raise ValueError(f"A width of {width} does not divide into {heads} heads.")
    if resize not in ("nearest", "bicubic"):
        raise ValueError(f"resize is 'nearest' or 'bicubic', not {resize!r}.")
