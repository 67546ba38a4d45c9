"""Acoustic tokenizers: filter banks to one of K labels for each patch.

Chen et al. 2023, BEATs, arXiv 2212.09058, section 3.2. The first iteration's projects each patch x at random,

    z = argmin_i ||v_i - W x||^2,    v_i ~ N(0, 1) and W fixed;

the later ones' is trained: an encoder of BEATs' own shape, a small MLP, and a quantizer of which an estimator is to
tell what a teacher, the encoder of the iteration before, makes of each patch,

    L = mean_t (1 - cos(o_t, h_t)) + L_quantizer

over real patches t, o the estimator's output and h the teacher's. Where the teacher is fine-tuned, h may be its logits,
as the paper has it; microsoft/unilm has no training code, and ESPnet's takes the last layer's features in either case.

Shape legend: B clips, F frames, M mel bands, L tokens, K codes, D width of the encoder, Q width of a code,
T width of the teacher's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm, normalize

from collimate.configurable import Configurable
from collimate.encoders import Encoder
from collimate.encoders.base import waves
from collimate.encoding import Encoding
from collimate.losses.masked_tokens import UNSCORED, mean_of_chosen
from collimate_audio.beats import BEATs, masked_mean
from collimate_audio.beats_layers import BeatsLayers, LayerSettings, initialise
from collimate_audio.beats_weights import quantizer_weights, read_official
from collimate_audio.codebook import nearest_codes
from collimate_audio.filter_bank import MEL_BANDS
from collimate_audio.padding import real_windows
from collimate_audio.quantizer import EMAQuantizer, Quantized


class AcousticTokenizer(Encoder):
    """A filter bank to labels, one for each patch of `BEATs`, in the same order.

    As an encoder, its `tokens` are the vectors that are compared with the codes, and `pooled` their mean: so it is
    saved, loaded and probed as any other.
    """

    codes: int
    """K; labels lie below it."""

    patch_size: int
    """The side of a patch, in frames and in bands."""

    def example(self) -> Float[Tensor, "B F M"]:
        return waves(2, 3 * self.patch_size, max(MEL_BANDS, self.patch_size))

    @torch.no_grad()
    def labels(self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None) -> Int64[Tensor, "B L"]:
        """The label of each patch; `UNSCORED` where it is padding.

        Args:
            inputs: as `FilterBank.finish` makes them, of exactly the sound that the encoder is given.
            mask: True where a frame is real.
        """
        raise NotImplementedError


class RandomTokenizer(AcousticTokenizer):
    """The first iteration's tokenizer: nothing in it is learned, and its weights are saved with whatever it labels for.

    As in ESPnet, W is two random matrices, and vectors are normalised after each, without which most patches would get
    one of few labels. The paper names no normalisation.

    Args:
        codes: K.
        width: Q.
        patch_width: between the two matrices.
        patch_size: side of a patch, in frames and in bands.
        normalisation: of what is compared with the codes: `layer_norm`, as ESPnet's, or `l2`, of both sides.
        seed: of the draws.
    """

    patch_weight: Tensor
    projection: Tensor
    codebook: Tensor

    def __init__(
        self,
        codes: int = 1024,
        width: int = 256,
        patch_width: int = 512,
        patch_size: int = 16,
        normalisation: Literal["layer_norm", "l2"] = "layer_norm",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if normalisation not in ("layer_norm", "l2"):
            raise ValueError(f"normalisation is 'layer_norm' or 'l2', not {normalisation!r}.")
        self.codes, self.width, self.patch_size, self.normalisation = codes, width, patch_size, normalisation
        generator = torch.Generator().manual_seed(seed)
        patch_weight, projection = torch.empty(patch_width, 1, patch_size, patch_size), torch.empty(width, patch_width)
        for matrix in (patch_weight, projection):
            nn.init.xavier_normal_(matrix, generator=generator)
        self.register_buffer("patch_weight", patch_weight)
        self.register_buffer("projection", projection)
        self.register_buffer("codebook", torch.randn(codes, width, generator=generator))

    def forward(self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None) -> Encoding:
        vectors = self.projected(inputs)
        steps, bands = (extent // self.patch_size for extent in inputs.shape[-2:])
        real = None
        if mask is not None:
            real = real_windows(mask, self.patch_size, self.patch_size).repeat_interleave(bands, 1)
        return Encoding(masked_mean(vectors, real), vectors, real, (steps, bands))

    @torch.no_grad()
    def labels(self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None) -> Int64[Tensor, "B L"]:
        codebook = self.codebook if self.normalisation == "layer_norm" else normalize(self.codebook, dim=1)
        encoding = self(inputs, mask)
        found = nearest_codes(encoding.tokens, codebook)
        return found if encoding.mask is None else found.masked_fill(~encoding.mask, UNSCORED)

    def patches(self, inputs: Float[Tensor, "B F M"]) -> Float[Tensor, "B L C"]:
        """The patches behind the first matrix and its norm."""
        with torch.autocast(inputs.device.type, enabled=False):  # labels must not depend on the precision of training
            found = nn.functional.conv2d(inputs.float()[:, None], self.patch_weight, stride=self.patch_size)
            return layer_norm(found.flatten(2).mT, found.shape[1:2])

    def projected(self, inputs: Float[Tensor, "B F M"]) -> Float[Tensor, "B L Q"]:
        """What is compared with the codes."""
        with torch.autocast(inputs.device.type, enabled=False):
            found = self.patches(inputs) @ self.projection.T
            return (
                layer_norm(found, found.shape[-1:]) if self.normalisation == "layer_norm" else normalize(found, dim=-1)
            )


class BeatsTokenizer(AcousticTokenizer):
    """The later iterations' tokenizer: `BEATs`, two matrices with a tanh between them, and `EMAQuantizer`.

    Args:
        encoder: of the shape of the encoder that will learn from its labels, or any other with the same patches.
        codes: K.
        width: Q.
        beta: the weight of the quantizer's loss; see `EMAQuantizer`.
        decay: of the codes' moving average.
        restart_below: the share below which a code is restarted; see `EMAQuantizer`.
    """

    def __init__(
        self,
        encoder: BEATs,
        codes: int = 1024,
        width: int = 256,
        beta: float = 1.0,
        decay: float = 0.99,
        restart_below: float = 0.0,
    ) -> None:
        super().__init__()
        self.codes, self.width, self.patch_size = codes, width, encoder.patch_size
        self.encoder = encoder
        self.quantize_layer = nn.Sequential(
            nn.Linear(encoder.width, encoder.width), nn.Tanh(), nn.Linear(encoder.width, width)
        )
        self.quantize = EMAQuantizer(codes, width, beta, decay, restart_below)
        for matrix in self.quantize_layer:
            if isinstance(matrix, nn.Linear):
                initialise(matrix)

    def forward(self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None) -> Encoding:
        encoding = self.encoder(inputs, mask)
        vectors = normalize(self.quantize_layer(encoding.tokens).float(), dim=-1)
        return Encoding(masked_mean(vectors, encoding.mask), vectors, encoding.mask, encoding.grid)

    def quantized(
        self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None
    ) -> tuple[Quantized, Bool[Tensor, "B L"] | None]:
        """The quantized patches, and which of them are real; in training the codes move."""
        vectors, real = self.encodings(inputs, mask)
        return self.quantize(vectors, real), real

    @torch.no_grad()
    def labels(self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None) -> Int64[Tensor, "B L"]:
        vectors, real = self.encodings(inputs, mask)
        codes = self.quantize.codes(vectors)
        return codes if real is None else codes.masked_fill(~real, UNSCORED)

    def encodings(
        self, inputs: Float[Tensor, "B F M"], mask: Bool[Tensor, "B F"] | None = None
    ) -> tuple[Float[Tensor, "B L Q"], Bool[Tensor, "B L"] | None]:
        """e of each patch, which the quantizer is given; and which patches are real."""
        encoding = self.encoder(inputs, mask)
        return self.quantize_layer(encoding.tokens), encoding.mask

    @classmethod
    def from_official(cls, checkpoint: str | PathLike[str] | Mapping[str, Any], **changes: Any) -> BeatsTokenizer:
        """A published tokenizer.

        Args:
            checkpoint: the file, or the dictionary with `cfg` and `model` that it holds.
            changes: arguments of `BEATs` that differ from the checkpoint's.

        Raises:
            CheckpointError: it is damaged, or not of a tokenizer of BEATs.
        """
        _, weights = read_official(checkpoint)
        found = quantizer_weights(weights)
        codes, width = found["quantize.codebook"].shape
        tokenizer = cls(BEATs.from_official(checkpoint, **changes), codes, width)
        tokenizer.load_state_dict({**tokenizer.state_dict(), **found})
        return tokenizer


class Estimator(nn.Module, Configurable):
    """What tells a teacher's output from the codes alone; only in training.

    A matrix, layers as those of BEATs with a relative bias of their own and no convolution, a norm, and, where the
    teacher's output is of another width, a matrix.

    Args:
        code_width: Q.
        width: of the layers.
        layers: 3 in the paper.
        heads: attention heads.
        hidden: width of the MLPs.
        target_width: T where it is not `width`, such as the number of a fine-tuned teacher's classes.
        buckets, max_distance: as of `BEATs`.
        dropout: as of `BEATs`.
    """

    def __init__(
        self,
        code_width: int = 256,
        width: int = 768,
        layers: int = 3,
        heads: int = 12,
        hidden: int = 3072,
        target_width: int | None = None,
        buckets: int = 320,
        max_distance: int = 800,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        settings = LayerSettings(
            width=width, heads=heads, hidden=hidden, buckets=buckets, max_distance=max_distance, dropout=dropout
        )
        self.code_width, self.target_width = code_width, target_width or width
        self.connector_layer = nn.Linear(code_width, width)
        self.decoder_blocks = BeatsLayers(settings, layers)
        self.decoder_norm = nn.LayerNorm(width)
        self.target = nn.Identity() if self.target_width == width else nn.Linear(width, self.target_width)
        for matrix in (self.connector_layer, self.target):
            if isinstance(matrix, nn.Linear):
                initialise(matrix)

    def forward(
        self, vectors: Float[Tensor, "B L Q"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L T"]:
        """o of each patch, from its quantized vectors; `mask` is True where a patch is real."""
        return self.target(self.decoder_norm(self.decoder_blocks(self.connector_layer(vectors), mask)))


def distillation_loss(
    estimated: Float[Tensor, "B L T"], teacher: Float[Tensor, "B L T"], mask: Bool[Tensor, "B L"] | None = None
) -> Float[Tensor, ""]:
    """The mean of 1 - cos(o, h) over the real patches of all ranks, in float32.

    Args:
        estimated: o.
        teacher: h, the last layer's tokens or their logits; no gradient reaches it.
        mask: True where a patch is real.

    Returns:
        this rank's share: its mean over ranks is that over patches.
    """
    missing = 1 - cosine_similarity(estimated.float(), teacher.detach().float(), dim=-1)
    missing = missing.flatten() if mask is None else missing[mask]
    return mean_of_chosen(missing, torch.tensor(missing.numel(), device=missing.device))
