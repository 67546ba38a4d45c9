"""open_clip's own towers, without their projections, which belong to the method.

Sizes are open_clip's: those of one of its models by name, each of which can be overridden, or its defaults
(ViT-B/16). A tower's `config()` spells them out.

Shape legend: B samples, H W pixels, P patches, L text tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any, Literal

import open_clip
import torch
from jaxtyping import Bool, Float, Int64
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, _build_text_tower, _build_vision_tower
from open_clip.transformer import text_global_pool
from torch import Tensor
from torch.nn import functional

from collimate.encoders.base import Encoder, strides, waves
from collimate.encoding import Encoding

PROJECTION_DIM = 1  # open_clip builds each tower with a projection, which is thrown away


class OpenClipEncoder(Encoder):
    """What the three towers share: sizes by model name, initial weights, and a complete configuration."""

    tower: Any
    """open_clip's module."""

    sizes: dict[str, Any]
    """Every field of the tower's open_clip configuration, and `quick_gelu`."""

    defaults: dict[str, Any]
    """The values of these fields where neither a model nor the user says otherwise."""

    def config(self) -> dict[str, Any]:
        """The class with its sizes, independent of open_clip's table of models and of downloads."""
        config = super().config()
        named = inspect.signature(type(self).__init__).parameters
        given = config["init_args"]
        sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in self.sizes.items()}
        config["init_args"] = {key: value for key, value in sizes.items() if key in named}
        unusual = {key: value for key, value in sizes.items() if key not in named and value != self.defaults[key]}
        config["init_args"]["options"] = unusual
        if "grad_checkpointing" in given:
            config["init_args"]["grad_checkpointing"] = given["grad_checkpointing"]
        return config


class OpenClipImageEncoder(OpenClipEncoder):
    """The vision transformer of CLIP and OpenCLIP.

    `pooled` is the class token after the last layer norm (or what the model pools instead), `tokens` are the
    patches after it. Images may have another size than the tower was made for: positions are interpolated.

    Args:
        model: an open_clip model whose sizes to take, such as `ViT-B-32`.
        pretrained: initial weights: a tag of that model, which is downloaded, or a local file.
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        width: D.
        layers: number of blocks.
        head_width: width of one attention head.
        mlp_ratio: hidden width of a block's MLP over D.
        quick_gelu: x sigmoid(1.702 x) instead of GELU. OpenAI's weights need it.
        patch_dropout: share of patches left out in training (FLIP, arXiv 2212.00794). What is left has no grid.
        grad_checkpointing: recompute activations in the backward pass.
        options: further fields of open_clip's `CLIPVisionCfg`.

    Raises:
        ValueError: there is no such model, or its image tower is none of open_clip's transformers.
    """

    defaults = asdict(CLIPVisionCfg()) | {"quick_gelu": False}

    def __init__(
        self,
        model: str | None = None,
        pretrained: str | None = None,
        image_size: int | None = None,
        patch_size: int | None = None,
        width: int | None = None,
        layers: int | None = None,
        head_width: int | None = None,
        mlp_ratio: float | None = None,
        quick_gelu: bool | None = None,
        patch_dropout: float | None = None,
        grad_checkpointing: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        given = {
            "image_size": image_size,
            "patch_size": patch_size,
            "width": width,
            "layers": layers,
            "head_width": head_width,
            "mlp_ratio": mlp_ratio,
            "quick_gelu": quick_gelu,
            "patch_dropout": patch_dropout,
        }
        self.sizes = _sizes(self.defaults, "vision_cfg", model, pretrained, given, options)
        if self.sizes["timm_model_name"] or not isinstance(self.sizes["layers"], int):
            raise ValueError(f"The image tower of {model!r} is no ViT: use TimmImageEncoder or OpenClipResNetEncoder.")
        if self.sizes["attentional_pool"]:
            raise ValueError(f"The attentional pooling of {model!r} (CoCa) is not supported.")
        quick, fields = _split(self.sizes)
        tower: Any = _build_vision_tower(PROJECTION_DIM, CLIPVisionCfg(**fields), quick)
        tower.proj = None
        tower.set_grad_checkpointing(grad_checkpointing)
        self.tower, self.width = tower, fields["width"]
        if pretrained:
            self.tower.load_state_dict(_pretrained_tower(model, pretrained, "visual.", drop=("proj",)))

    def forward(self, inputs: Float[Tensor, "B 3 H W"], mask: Tensor | None = None) -> Encoding:
        tower = self.tower
        patches = tower.conv1(inputs)
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).mT
        class_token = tower.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        hidden = torch.cat([class_token, patches], dim=1) + self._positions(grid).to(patches.dtype)
        hidden = tower.transformer(tower.ln_pre(tower.patch_dropout(hidden)))
        pooled, tokens = tower._pool(hidden)
        return Encoding(pooled, tokens, grid=grid if tokens.shape[1] == grid[0] * grid[1] else None)

    def example(self) -> Float[Tensor, "B 3 H W"]:
        return waves(2, 3, self.sizes["image_size"], self.sizes["image_size"])

    def features(self, inputs: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B D h w"]]:
        """The feature map after each block, for dense tasks. For images of the tower's own size."""
        return self.tower.forward_intermediates(inputs, intermediates_only=True)["image_intermediates"]

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        positions = self.tower.positional_embedding
        if grid == tuple(self.tower.grid_size):
            return positions
        of_class, of_patches = positions[:1], positions[1:].T.unflatten(1, self.tower.grid_size)
        resized = functional.interpolate(of_patches[None], grid, mode="bicubic", antialias=True)[0]
        return torch.cat([of_class, resized.flatten(1).T])


class OpenClipResNetEncoder(OpenClipEncoder):
    """CLIP's modified ResNet.

    Its attention pooling is a self-attention over the last feature map with the mean in front: `pooled` is
    the mean's output and `tokens` are the cells', all before the output projection.

    Args:
        model: an open_clip model whose sizes to take, such as `RN50`.
        pretrained: initial weights: a tag of that model, which is downloaded, or a local file.
        image_size: side of the images in pixels, a multiple of 32.
        width: channels after the stem; D is 32 times as many.
        layers: blocks in each of the four stages.
        options: further fields of open_clip's `CLIPVisionCfg`.

    Raises:
        ValueError: there is no such model, or its image tower is no modified ResNet.
    """

    defaults = asdict(CLIPVisionCfg()) | {"quick_gelu": False}

    def __init__(
        self,
        model: str | None = "RN50",
        pretrained: str | None = None,
        image_size: int | None = None,
        width: int | None = None,
        layers: Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        given = {"image_size": image_size, "width": width, "layers": layers and tuple(layers)}
        self.sizes = _sizes(self.defaults, "vision_cfg", model, pretrained, given, options)
        if self.sizes["timm_model_name"] or isinstance(self.sizes["layers"], int):
            raise ValueError(f"The image tower of {model!r} is no modified ResNet.")
        _, fields = _split(self.sizes)
        tower: Any = _build_vision_tower(PROJECTION_DIM, CLIPVisionCfg(**fields))
        self.tower, self.width = tower, 32 * fields["width"]
        del self.tower.attnpool.c_proj
        if pretrained:
            drop = ("attnpool.c_proj.weight", "attnpool.c_proj.bias")
            self.tower.load_state_dict(_pretrained_tower(model, pretrained, "visual.", drop))

    def config(self) -> dict[str, Any]:
        config = super().config()
        config["init_args"]["model"] = None
        return config

    def forward(self, inputs: Float[Tensor, "B 3 H W"], mask: Tensor | None = None) -> Encoding:
        tower = self.tower
        maps = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(inputs)))))
        pool = tower.attnpool
        cells = maps.flatten(2).mT
        hidden = torch.cat([cells.mean(1, keepdim=True), cells], dim=1) + pool.positional_embedding.to(cells.dtype)
        query, key, value = (
            projection(hidden).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
            for projection in (pool.q_proj, pool.k_proj, pool.v_proj)
        )
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return Encoding(attended[:, 0], attended[:, 1:], grid=(maps.shape[2], maps.shape[3]))

    def example(self) -> Float[Tensor, "B 3 H W"]:
        return waves(2, 3, self.sizes["image_size"], self.sizes["image_size"])

    def features(self, inputs: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """The feature map after the stem and after each stage, for dense tasks."""
        return self.tower.forward_intermediates(inputs, intermediates_only=True)["image_intermediates"]


class OpenClipTextEncoder(OpenClipEncoder):
    """The text transformer of CLIP and OpenCLIP (causal), and of SigLIP (not causal).

    `tokens` are those after the last layer norm, up to the end of the batch's longest text; `pooled` is one of
    them. Where pooling finds the end token, the mask follows from it and need not be given.

    Args:
        model: an open_clip model whose sizes to take, such as `ViT-B-32`.
        pretrained: initial weights: a tag of that model, which is downloaded, or a local file.
        context_length: the longest text in tokens.
        vocab_size: number of ids.
        width: D.
        heads: attention heads.
        layers: number of blocks.
        mlp_ratio: hidden width of a block's MLP over D.
        quick_gelu: x sigmoid(1.702 x) instead of GELU. OpenAI's weights need it.
        no_causal_mask: every token sees every other, padding too (SigLIP).
        pool_type: `argmax` takes the token of the largest id, which is CLIP's end token; `eos` the first
            `eos_id`; `last` the last position, so that texts must be padded to the full context.
        eos_id: the end token's id, for `eos`.
        grad_checkpointing: recompute activations in the backward pass.
        options: further fields of open_clip's `CLIPTextCfg`.

    Raises:
        ValueError: there is no such model, or its text tower is not open_clip's own.
    """

    defaults = asdict(CLIPTextCfg()) | {"quick_gelu": False}

    def __init__(
        self,
        model: str | None = None,
        pretrained: str | None = None,
        context_length: int | None = None,
        vocab_size: int | None = None,
        width: int | None = None,
        heads: int | None = None,
        layers: int | None = None,
        mlp_ratio: float | None = None,
        quick_gelu: bool | None = None,
        no_causal_mask: bool | None = None,
        pool_type: Literal["argmax", "eos", "first", "last"] | None = None,
        eos_id: int | None = None,
        grad_checkpointing: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        given = {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": width,
            "heads": heads,
            "layers": layers,
            "mlp_ratio": mlp_ratio,
            "quick_gelu": quick_gelu,
            "no_causal_mask": no_causal_mask,
            "pool_type": pool_type,
            "eos_id": eos_id,
        }
        self.sizes = _sizes(self.defaults, "text_cfg", model, pretrained, given, options)
        if self.sizes["hf_model_name"]:
            raise ValueError(f"The text tower of {model!r} is a Hugging Face model: use HuggingFaceTextEncoder.")
        if self.sizes["embed_cls"]:
            raise ValueError(f"The appended class token of {model!r} (CoCa) is not supported.")
        quick, fields = _split(self.sizes)
        tower: Any = _build_text_tower(PROJECTION_DIM, CLIPTextCfg(**fields), quick)
        tower.text_projection = None
        tower.set_grad_checkpointing(grad_checkpointing)
        self.tower, self.width = tower, fields["width"]
        if pretrained:
            drop = ("text_projection", "text_projection.weight", "text_projection.bias")
            self.tower.load_state_dict(_pretrained_tower(model, pretrained, "text.", drop))

    def forward(self, inputs: Int64[Tensor, "B L"], mask: Bool[Tensor, "B L"] | None = None) -> Encoding:
        tower = self.tower
        if mask is None and tower.pool_type in ("argmax", "eos"):
            found = inputs if tower.pool_type == "argmax" else (inputs == tower.eos_id).long()
            mask = torch.arange(inputs.shape[1], device=inputs.device) <= found.argmax(dim=1, keepdim=True)
        inputs, mask = self._cut(inputs, mask)
        length = inputs.shape[1]
        hidden = tower.token_embedding(inputs) + tower.positional_embedding[:length]
        causal = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
        tokens = tower.ln_final(tower.transformer(hidden, attn_mask=causal))
        return Encoding(text_global_pool(tokens, inputs, tower.pool_type, eos_token_id=tower.eos_id), tokens, mask)

    def example(self) -> Int64[Tensor, "B L"]:
        ids = strides(2, self.sizes["context_length"], below=self.sizes["vocab_size"])
        ids[:, -1] = self.sizes["eos_id"] if self.sizes["pool_type"] == "eos" else self.sizes["vocab_size"] - 1
        return ids

    def _cut(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Cut off the padding that all texts share: no token of a causal tower sees what stands behind it.

        Captions fill a fifth of CLIP's 77 positions, so this is most of the tower's work. Compiled and exported
        towers keep their one length.
        """
        if mask is None or self.tower.attn_mask is None or self.tower.pool_type == "last":
            return inputs, mask
        if torch.compiler.is_compiling():
            return inputs, mask
        length = int(mask.any(dim=0).nonzero().max()) + 1
        return inputs[:, :length], mask[:, :length]


def open_clip_config(model: str) -> dict[str, Any]:
    """open_clip's configuration of a model.

    Raises:
        ValueError: there is none of this name; says which are near.
    """
    config = open_clip.get_model_config(model)
    if config is None:
        near = get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"open_clip has no model {model!r}. Near: {', '.join(near) or 'none'}.")
    return config


def pretrained_state_dict(model: str, pretrained: str) -> dict[str, Tensor]:
    """A model's whole state dict, from a tag that open_clip knows (downloaded) or from a local file."""
    from collimate.checkpoints.files import read_state_dict  # that package imports this one

    known = open_clip.get_pretrained_cfg(model, pretrained)
    path = open_clip.download_pretrained(known) if known else pretrained
    return read_state_dict(path)


def _sizes(
    defaults: dict[str, Any],
    section: str,
    model: str | None,
    pretrained: str | None,
    given: dict[str, Any],
    options: dict[str, Any] | None,
) -> dict[str, Any]:
    named = open_clip_config(model) if model else {}
    sizes = {**defaults, "quick_gelu": named.get("quick_gelu", False), **named.get(section, {})}
    if model and pretrained and (open_clip.get_pretrained_cfg(model, pretrained) or {}).get("quick_gelu"):
        sizes["quick_gelu"] = True
    return {**sizes, **(options or {}), **{key: value for key, value in given.items() if value is not None}}


def _split(sizes: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    fields = dict(sizes)
    return fields.pop("quick_gelu"), fields


def _pretrained_tower(model: str | None, pretrained: str, prefix: str, drop: tuple[str, ...]) -> dict[str, Tensor]:
    weights = open_clip.model.convert_to_custom_text_state_dict(pretrained_state_dict(model or "", pretrained))
    tower = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return {key: value for key, value in tower.items() if key not in drop}
