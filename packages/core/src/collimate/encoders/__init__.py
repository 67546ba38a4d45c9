"""Encoders: adapters over timm, open_clip and transformers, and the heads beside them."""

from collimate.encoders.adapted import Frozen, LoRA, Projected
from collimate.encoders.base import Encoder
from collimate.encoders.bert import Bert
from collimate.encoders.huggingface import HuggingFaceTextEncoder
from collimate.encoders.open_clip import OpenClipImageEncoder, OpenClipResNetEncoder, OpenClipTextEncoder
from collimate.encoders.projection import (
    BatchNormProjection,
    LinearProjection,
    MLPProjection,
    NoProjection,
    Projection,
    projections_for,
)
from collimate.encoders.stacking import Stacked
from collimate.encoders.timm import TimmImageEncoder

__all__ = [
    "BatchNormProjection",
    "Bert",
    "Encoder",
    "Frozen",
    "HuggingFaceTextEncoder",
    "LinearProjection",
    "LoRA",
    "MLPProjection",
    "NoProjection",
    "OpenClipImageEncoder",
    "OpenClipResNetEncoder",
    "OpenClipTextEncoder",
    "Projected",
    "Projection",
    "Stacked",
    "TimmImageEncoder",
    "projections_for",
]
