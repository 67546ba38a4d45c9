"""Audio methods: BEATs with its tokenizer iterations, audio-text contrast."""

from collimate_audio.beats import BEATs, BeatsHead
from collimate_audio.filter_bank import FilterBank
from collimate_audio.masked_patches import (
    LabelPredictor,
    VisiblePatches,
    hide_patches,
    label_accuracy,
    masked_label_loss,
)
from collimate_audio.quantizer import EMAQuantizer, Quantized
from collimate_audio.tokenizers import AcousticTokenizer, BeatsTokenizer, Estimator, RandomTokenizer, distillation_loss

__all__ = [
    "AcousticTokenizer",
    "BEATs",
    "BeatsHead",
    "BeatsTokenizer",
    "EMAQuantizer",
    "Estimator",
    "FilterBank",
    "LabelPredictor",
    "Quantized",
    "RandomTokenizer",
    "VisiblePatches",
    "distillation_loss",
    "hide_patches",
    "label_accuracy",
    "masked_label_loss",
]
