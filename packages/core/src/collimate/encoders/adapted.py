"""Encoders around an encoder: with low-rank updates, frozen, or in a joint space. In a recipe they take its place."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from collimate.configurable import build
from collimate.encoders.base import Encoder
from collimate.encoders.projection import NoProjection, Projection
from collimate.encoding import Encoding


class LoRA(Encoder):
    """An encoder whose weights are frozen and get trainable low-rank updates, through peft.

    Hu et al. 2021, arXiv 2106.09685: W x + (alpha / rank) B A x. Needs the extra `collimate[lora]`. In a recipe:

        image_encoder:
          class_path: collimate.encoders.LoRA
          init_args:
            rank: 8
            encoder:
              class_path: collimate.encoders.OpenClipImageEncoder
              init_args: {model: ViT-B-32, pretrained: laion2b_s34b_b79k}

    Args:
        encoder: the encoder to adapt; it is changed in place.
        rank: rank of the updates.
        alpha: their scale, times the rank.
        dropout: dropout on the input of the updates.
        targets: a regular expression for the full names of the layers to adapt. If None, all linear layers
            and 1x1 convolutions are, those of the attentions too; the patch embedding is none of them, nor is a
            decoder whose matrix is the embeddings.

    Raises:
        ValueError: no layer fits.
    """

    def __init__(
        self, encoder: Encoder, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, targets: str | None = None
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__()
        _split_attentions(encoder)
        layers = _layers(encoder)
        if not layers:
            raise ValueError(f"LoRA adapts linear layers, of which {type(encoder).__name__} has none: train it whole.")
        names = [name for name in layers if targets is None or re.fullmatch(targets, name)]
        if not names:
            raise ValueError(f"No layer of {type(encoder).__name__} fits {targets!r}. Its layers: {', '.join(layers)}.")
        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=dropout,
            target_modules="|".join(map(re.escape, names)),
        )
        encoder.requires_grad_(False)
        self.encoder: Any = inject_adapter_in_model(settings, encoder)
        self.width = encoder.width

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoder(inputs, mask)

    def example(self) -> Tensor | None:
        return self.encoder.example()

    def depths(self) -> dict[str, int]:
        return {f"encoder.{name}": depth for name, depth in self.encoder.depths().items()}

    def merged(self) -> Encoder:
        """A plain encoder whose weights are W + (alpha / rank) B A."""
        from peft.tuners.lora import LoraLayer

        weights = {name: value.clone() for name, value in self.encoder.state_dict().items() if "lora_" not in name}
        for name, layer in self.encoder.named_modules():
            if isinstance(layer, LoraLayer):
                delta: Any = layer.get_delta_weight("default")  # type: ignore[operator]
                weights[f"{name}.base_layer.weight"] += delta
        plain_names = {name: name.replace("base_layer.", "").replace("in_proj.", "in_proj_") for name in weights}
        package = type(self.encoder).__module__.partition(".")[0]
        plain: Encoder = build(self.encoder.config(), trust=[package])
        plain.load_state_dict({plain_names[name]: value for name, value in weights.items()})
        return plain.train(self.training)


class Frozen(Encoder):
    """An encoder that does not learn, as the image tower in LiT (arXiv 2111.07991).

    It stays in evaluation mode, so that dropout is off and batch norm's averages do not move.

    Args:
        encoder: the encoder to freeze.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.width = encoder.width

    @torch.no_grad()
    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoder(inputs, mask)

    def example(self) -> Tensor | None:
        return self.encoder.example()

    def depths(self) -> dict[str, int]:
        return {f"encoder.{name}": depth for name, depth in self.encoder.depths().items()}

    def train(self, mode: bool = True) -> Frozen:
        self.training = mode
        return self


class Projected(Encoder):
    """An encoder with its projection: its own space is the joint space that a method trained.

    Args:
        encoder: the tower.
        projection: from its width into the joint space.
    """

    def __init__(self, encoder: Encoder, projection: Projection) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection
        self.width = projection.dim

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.projection.project(self.encoder(inputs, mask))

    def example(self) -> Tensor | None:
        return self.encoder.example()

    def depths(self) -> dict[str, int]:
        return {f"encoder.{name}": depth for name, depth in self.encoder.depths().items()}


def require_frozen(encoder: nn.Module, projection: nn.Module, modality: str, who: str) -> None:
    """See that a tower is frozen and that its own space is the joint space, so that its vectors can be a teacher's.

    Args:
        who: asks for it.

    Raises:
        ValueError: it is not; says what to set.
    """
    if not (isinstance(encoder, Frozen) and isinstance(projection, NoProjection)):
        raise ValueError(
            f"{who} takes from the {modality} tower how near samples are: put it into collimate.encoders.Frozen, and "
            f"set {modality}_projection to NoProjection({encoder.width}) and embed_dim to {encoder.width}."
        )


class _SelfAttention(nn.Module):
    """nn.MultiheadAttention on one input, as two linear layers that take updates.

    peft can wrap the attention whole, but adds the output layer's update twice (huggingface/peft#3774).
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width, bias = attention.embed_dim, attention.in_proj_bias is not None
        self.heads, self.dropout = attention.num_heads, attention.dropout
        self.in_proj = nn.Linear(width, 3 * width, bias)
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = nn.Linear(width, width, bias)
        self.out_proj.weight, self.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        projected = self.in_proj(query).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(*projected, attn_mask=attn_mask, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def _split_attentions(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.MultiheadAttention):
            setattr(module, name, _SelfAttention(child))
        else:
            _split_attentions(child)


def _layers(module: nn.Module) -> list[str]:
    """Full names of what multiplies one vector by a matrix of its own: an update of embeddings' would be theirs too."""
    tied = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    return [
        name
        for name, child in module.named_modules()
        if (isinstance(child, nn.Linear) and id(child.weight) not in tied)
        or (isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1))
    ]
