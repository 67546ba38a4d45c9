"""Text models of Hugging Face transformers as encoders. Needs the extra `collimate[huggingface]`.

Shape legend: B texts, L tokens, D width.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from collimate.encoders.base import Encoder, strides
from collimate.encoding import Encoding

Pooling = Literal["cls", "mean", "eos", "last"]


class HuggingFaceTextEncoder(Encoder):
    """A transformers text model (BERT, RoBERTa, T5's encoder, a causal model...) with one of four poolings.

    Args:
        model: a folder with weights or a hub id; or a configuration, as in a model's config.json, for
            random weights.
        pooling: `mean` of the real tokens, `cls` the first token, `eos` the last real one, `last` the last
            position, padding or not.
        grad_checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self, model: str | dict[str, Any], pooling: Pooling = "mean", grad_checkpointing: bool = False
    ) -> None:
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

        super().__init__()
        settings = AutoConfig.for_model(**model) if isinstance(model, dict) else AutoConfig.from_pretrained(model)
        auto = AutoModelForTextEncoding if settings.is_encoder_decoder else AutoModel
        if isinstance(model, dict):
            self.model: Any = auto.from_config(settings)
        else:
            self.model = auto.from_pretrained(model, dtype=torch.float32)
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # it would never get a gradient, which DDP does not forgive
        if grad_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.pooling: Pooling = pooling
        self.width = settings.hidden_size

    def forward(self, inputs: Int64[Tensor, "B L"], mask: Bool[Tensor, "B L"] | None = None) -> Encoding:
        mask = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask
        tokens = self.model(input_ids=inputs, attention_mask=mask.long()).last_hidden_state
        return Encoding(self._pool(tokens, mask), tokens, mask)

    def example(self) -> Int64[Tensor, "B L"]:
        return strides(2, 16, below=self.model.config.vocab_size)

    def config(self) -> dict[str, Any]:
        """The class with the model's own configuration, so that its folder is not needed again."""
        config = super().config()
        config["init_args"]["model"] = json.loads(self.model.config.to_json_string(use_diff=True))
        return config

    def _pool(self, tokens: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "last":
            return tokens[:, -1]
        if self.pooling == "eos":
            positions = torch.arange(mask.shape[1], device=mask.device)
            return tokens[torch.arange(len(tokens), device=mask.device), (positions * mask).argmax(dim=1)]
        weights = mask[..., None].to(tokens.dtype)
        return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)
