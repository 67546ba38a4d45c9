"""Any image model of timm as an encoder.

Shape legend: B images, H W pixels, L tokens, D width.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import timm
from jaxtyping import Float
from torch import Tensor

from collimate.encoders.base import Encoder, waves
from collimate.encoders.depths import depths_by_timm
from collimate.encoding import Encoding


class TimmImageEncoder(Encoder):
    """A timm model without its classifier.

    `tokens` are a vision transformer's patch tokens (class and register tokens left out) or a convolutional
    network's last feature map, row by row; `pooled` is the model's own pooling. The few mobile networks that
    widen their vectors after pooling have no tokens; `features` gives their maps.

    Args:
        name: a name of `timm.list_models()`, with or without a pre-training tag.
        image_size: side of the images in pixels for models of a fixed size; their own if None.
        pretrained: start from timm's weights, which are downloaded unless cached.
        patch_drop_rate: share of patches left out in training (FLIP, arXiv 2212.00794), for vision
            transformers. What is left has no grid.
        grad_checkpointing: recompute activations in the backward pass.
        model_args: further arguments of the model's constructor, such as `depth` or `drop_path_rate`.

    Raises:
        ValueError: timm has no such model.
    """

    def __init__(
        self,
        name: str,
        image_size: int | None = None,
        pretrained: bool = False,
        patch_drop_rate: float = 0.0,
        grad_checkpointing: bool = False,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        model_args = dict(model_args or {})
        self.image_size = image_size
        if image_size is not None and _has_fixed_size(name):
            model_args["img_size"] = image_size
        if patch_drop_rate > 0:
            model_args["patch_drop_rate"] = patch_drop_rate
        if not pretrained and not timm.is_model(name):  # what is pretrained may lie on the hub
            near = ", ".join(get_close_matches(name, timm.list_models(), n=3)) or "none"
            raise ValueError(f"timm has no model {name!r}. The nearest: {near}. `timm.list_models()` has all.")
        self.model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **model_args)
        self.width = self.model.head_hidden_size
        if grad_checkpointing:
            self.model.set_grad_checkpointing(True)

    def forward(self, inputs: Float[Tensor, "B 3 H W"], mask: Tensor | None = None) -> Encoding:
        features = self.model.forward_features(inputs)
        pooled = self.model.forward_head(features, pre_logits=True)
        if self.model.num_features != self.width:
            return Encoding(pooled)
        if features.ndim == 4:
            if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
                features = features.permute(0, 3, 1, 2)
            return Encoding(pooled, features.flatten(2).mT, grid=tuple(features.shape[2:]))
        tokens = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
        return Encoding(pooled, tokens, grid=self._grid(inputs, tokens.shape[1]))

    def features(self, inputs: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """The feature map after each stage (or each block of a transformer), for dense tasks."""
        return self.model.forward_intermediates(inputs, intermediates_only=True)

    def example(self) -> Float[Tensor, "B 3 H W"]:
        size = self.image_size or self.model.default_cfg["input_size"][-1]
        return waves(2, 3, size, size)

    def depths(self) -> dict[str, int]:
        if not hasattr(self.model, "group_matcher"):
            return super().depths()
        return {f"model.{name}": depth for name, depth in depths_by_timm(self.model).items()}

    def _grid(self, inputs: Tensor, count: int) -> tuple[int, int] | None:
        """The patches' grid, or None where dropped patches have left none."""
        reduction = self.model.feature_info[-1]["reduction"]
        height, width = inputs.shape[-2] // reduction, inputs.shape[-1] // reduction
        return (height, width) if height * width == count else None


def _has_fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.fixed_input_size
