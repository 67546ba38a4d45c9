"""BEATs: an audio encoder on patches of a filter bank, and the head of its fine-tuned form.

Chen et al. 2023, BEATs: audio pre-training with acoustic tokenizers, arXiv 2212.09058, section 3.1; microsoft/unilm,
beats/BEATs.py. Patches of 16 frames by 16 bands, those of one time step next to each other, pass a matrix, a norm, and
another matrix where the widths differ; then, c a grouped convolution along the flattened patches,

    x <- LN(x + GELU(c(x)))    and the layers of `collimate_audio.beats_layers`.

A pre-norm model has that LN at the very end instead.

Departures, none in the numbers: padded tokens are zeroed out of place, so that fine-tuning has gradients, and the head
gives logits, where the released code gives their sigmoid.

Shape legend: B clips, F frames, M mel bands, L tokens = (F // 16) (M // 16), V visible tokens, C width of patches,
D width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from collimate.configurable import Configurable
from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding
from collimate_audio.beats_layers import BeatsLayers, LayerSettings, PositionalConvolution, initialise
from collimate_audio.beats_weights import backbone_settings, backbone_weights, head_of, read_official
from collimate_audio.filter_bank import MEL_BANDS
from collimate_audio.padding import PaddingRule, checked_rule, real_pieces, real_windows


class BEATs(Encoder):
    """The backbone. Every parameter has its official name; the defaults are those of the published base model.

    `tokens` are the last layer's, time step by time step, on the grid (time, bands); `pooled` is the mean of those that
    are no padding. A clip without any is 0.

    Args:
        width: D.
        layers: of the transformer.
        heads: attention heads.
        hidden: width of the MLPs.
        patch_width: C.
        patch_size: side of a patch, in frames and in bands.
        patch_bias: whether the patches' matrix has a bias.
        activation: of the MLPs; `glu` multiplies one half of twice as many outputs by swish of the other.
        pre_norm: normalise before attention and MLP instead of after them.
        deep_norm: post-norm with DeepNorm's residuals and initial weights.
        position_kernel: taps of the positional convolution.
        position_groups: its groups.
        relative_position: whether attention has a bias by distance.
        gated: whether each query has gates on that bias.
        buckets: of distances.
        max_distance: beyond which all distances count the same, in tokens.
        dropout: of sub-layers and of what enters the layers, in training.
        attention_dropout: of attention weights.
        activation_dropout: inside the MLPs.
        input_dropout: of the patches.
        layer_drop: the probability with which a layer is left out in training.
        gradient_decay: r, by which the gradient is multiplied before it enters each layer from above. As published;
            an optimizer such as AdamW undoes most of it, so that learning rates by layer are the better choice.
        padding: how padded frames make padded patches; see `collimate_audio.padding`.

    Raises:
        ValueError: the arguments contradict each other.
    """

    def __init__(
        self,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        patch_width: int = 512,
        patch_size: int = 16,
        patch_bias: bool = False,
        activation: Literal["gelu", "relu", "glu"] = "gelu",
        pre_norm: bool = False,
        deep_norm: bool = True,
        position_kernel: int = 128,
        position_groups: int = 16,
        relative_position: bool = True,
        gated: bool = True,
        buckets: int = 320,
        max_distance: int = 800,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        input_dropout: float = 0.0,
        layer_drop: float = 0.0,
        gradient_decay: float = 1.0,
        padding: PaddingRule = "exact",
    ) -> None:
        super().__init__()
        self.settings = LayerSettings(
            width=width,
            heads=heads,
            hidden=hidden,
            activation=activation,
            pre_norm=pre_norm,
            deep_norm=deep_norm,
            relative_position=relative_position,
            gated=gated,
            buckets=buckets,
            max_distance=max_distance,
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation_dropout=activation_dropout,
        )
        self.width, self.patch_size, self.padding = width, patch_size, checked_rule(padding)
        self.patch_embedding = nn.Conv2d(1, patch_width, patch_size, patch_size, bias=patch_bias)
        self.layer_norm = nn.LayerNorm(patch_width)
        self.post_extract_proj = None if patch_width == width else nn.Linear(patch_width, width)
        self.dropout_input = nn.Dropout(input_dropout)
        stack = BeatsLayers(self.settings, layers, layer_drop, gradient_decay)
        self.encoder = _Body(stack, width, position_kernel, position_groups)
        if self.post_extract_proj is not None:
            initialise(self.post_extract_proj)

    def forward(self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None) -> Encoding:
        """Encode a batch of filter banks.

        Args:
            inputs: as `FilterBank.finish` makes them.
            mask: True where a frame is real.

        Raises:
            ValueError: there is not a single patch.
        """
        patches = self.patches(inputs)
        real = self.token_mask(inputs, mask)
        tokens = self.encoder(patches, real)
        return Encoding(masked_mean(tokens, real), tokens, real, self.grid(inputs))

    def features(
        self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None
    ) -> list[Float[Tensor, "B L D"]]:
        """The tokens that enter the layers, and those after each: one more than there are layers.

        In a pre-norm model the last ones are not normalised.
        """
        return list(self.encoder.states(self.patches(inputs), self.token_mask(inputs, mask)))

    def visible(
        self,
        inputs: Float[Tensor, "B F M"],
        indices: Int64[Tensor, "B V"],
        mask: Bool[Tensor, "B V"] | None = None,
        in_place: bool = True,
    ) -> Float[Tensor, "B V D"]:
        """Encode some of a clip's patches, which see nothing of the others: for masked prediction.

        Args:
            indices: which patches, each clip's in rising order.
            mask: True where an index is meant; the others fill up.
            in_place: patches know where in the clip they stand. Otherwise, as in the public training code of ESPnet,
                they are taken as neighbours, and know their order alone.
        """
        patches = self.patches(inputs)
        length = patches.shape[1]
        chosen = patches.gather(1, indices[..., None].expand(-1, -1, patches.shape[2]))
        return self.encoder(chosen, mask, indices if in_place else None, length)

    def patches(self, inputs: Float[Tensor, "B F M"]) -> Float[Tensor, "B L D"]:
        """The tokens before any of them has seen another."""
        self.grid(inputs)
        tokens = self.layer_norm(self.patch_embedding(inputs[:, None]).flatten(2).mT)
        return self.dropout_input(tokens if self.post_extract_proj is None else self.post_extract_proj(tokens))

    def grid(self, inputs: Float[Tensor, "B F M"]) -> tuple[int, int]:
        """How many patches there are in time and in bands; frames and bands that fill none are left out.

        Raises:
            ValueError: there are none.
        """
        frames, bands = inputs.shape[-2:]
        if frames < self.patch_size or bands < self.patch_size:
            raise ValueError(
                f"A filter bank of {frames} frames and {bands} bands has no patch of {self.patch_size} by "
                f"{self.patch_size}. Repeat or pad short clips, as FilterBank does."
            )
        return frames // self.patch_size, bands // self.patch_size

    def token_mask(self, inputs: Tensor, mask: Bool[Tensor, "B F"] | None) -> Bool[Tensor, "B L"] | None:
        """Which tokens are real, given which frames are."""
        if mask is None:
            return None
        steps, bands = self.grid(inputs)
        if mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"The mask is {tuple(mask.shape)}, but there are {inputs.shape[0]} clips of {inputs.shape[1]} frames. "
                "It says of each frame whether it is real; `FilterBank.mask` makes one."
            )
        if self.padding == "official":
            return real_pieces(mask, steps * bands)
        return real_windows(mask, self.patch_size, self.patch_size).repeat_interleave(bands, 1)

    def example(self) -> Float[Tensor, "B F M"]:
        return waves(2, 3 * self.patch_size, max(MEL_BANDS, self.patch_size))

    def depths(self) -> dict[str, int]:
        """As for every encoder; the norm before the layers and the biases that all layers share are embeddings."""
        found = super().depths()
        norm = () if self.settings.pre_norm else ("encoder.layer_norm.",)
        early = [name for name in found if name.startswith(norm) or ".relative_attention_bias." in name]
        return found | dict.fromkeys(early, max(found.values()))

    @classmethod
    def from_official(cls, checkpoint: str | PathLike[str] | Mapping[str, Any], **changes: Any) -> BEATs:
        """The backbone of a published checkpoint, be it of an encoder or of a tokenizer.

        Args:
            checkpoint: the file, or the dictionary with `cfg` and `model` that it holds.
            changes: arguments to build it with that differ from the checkpoint's, such as dropouts.

        Raises:
            CheckpointError: it is damaged, or not of BEATs.
        """
        config, weights = read_official(checkpoint)
        encoder = cls(**{**backbone_settings(config), **changes})
        encoder.load_state_dict(backbone_weights(weights, encoder.state_dict().keys()))
        return encoder


class BeatsHead(nn.Module, Configurable):
    """The classifier of fine-tuned models: a matrix on each token, then the mean over those that are real.

    Args:
        width: D.
        classes: K.
        labels: what each output stands for, in their order: the checkpoint's, and not that of the data set's table.
        dropout: of the tokens, in training.

    Raises:
        ValueError: there are not as many labels as classes.
    """

    def __init__(
        self, width: int = 768, classes: int = 527, labels: Sequence[str] | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if labels is not None and len(labels) != classes:
            raise ValueError(f"{len(labels)} labels for {classes} classes.")
        self.labels = None if labels is None else list(labels)
        self.dropout = nn.Dropout(dropout)
        self.predictor = nn.Linear(width, classes)
        initialise(self.predictor)

    def forward(self, encoding: Encoding) -> Float[Tensor, "B K"]:
        """The logits of each clip; the probability of each class is their sigmoid.

        Raises:
            ValueError: the encoding has no tokens.
        """
        if encoding.tokens is None:
            raise ValueError("The head of BEATs reads tokens, and this Encoding has none.")
        return masked_mean(self.token_logits(encoding.tokens), encoding.mask)

    def token_logits(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B L K"]:
        """What each token says on its own: the target of tokenizers whose teacher is fine-tuned."""
        return self.predictor(self.dropout(tokens))

    @classmethod
    def from_official(cls, checkpoint: str | PathLike[str] | Mapping[str, Any]) -> BeatsHead:
        """The head of a published fine-tuned checkpoint, with its labels where the checkpoint holds them.

        Raises:
            CheckpointError: it is damaged, not of BEATs, or not fine-tuned.
        """
        arguments, weights = head_of(checkpoint)
        head = cls(**arguments)
        head.load_state_dict(weights)
        return head


def masked_mean(rows: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B D"]:
    """The mean over real rows; 0 where there are none."""
    if mask is None:
        return rows.mean(1)
    total = rows.masked_fill(~mask[..., None], 0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp_min(1)


class _Body(nn.Module):
    """What comes after the patches, under its official names."""

    def __init__(self, layers: BeatsLayers, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.pos_conv = nn.Sequential(PositionalConvolution(width, kernel, groups))
        self.layers = layers
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(layers.settings.dropout)

    def forward(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None = None, length: int = 0
    ) -> Float[Tensor, "B L D"]:
        for state in self.states(tokens, mask, positions, length):
            tokens = state
        return self.layer_norm(tokens) if self.layers.settings.pre_norm else tokens

    def states(self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None = None, length: int = 0):
        """The input of the layers, and the output of each; `length` is that of the clip in which positions lie."""
        if mask is not None:
            tokens = tokens.masked_fill(~mask[..., None], 0)
        tokens = tokens + (self.pos_conv(tokens) if positions is None else self._convolved(tokens, positions, length))
        tokens = self.dropout(tokens if self.layers.settings.pre_norm else self.layer_norm(tokens))
        yield tokens
        yield from self.layers.states(tokens, mask, positions)

    def _convolved(self, tokens: Tensor, positions: Tensor, length: int) -> Tensor:
        """The convolution where the tokens stand, with zeros between them."""
        places = positions[..., None].expand_as(tokens)
        canvas = tokens.new_zeros(tokens.shape[0], length, tokens.shape[2])
        canvas = canvas.scatter_add(1, places, tokens)  # what only fills up is 0 and adds nothing
        return self.pos_conv(canvas).gather(1, places)
