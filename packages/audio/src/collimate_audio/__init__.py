"""Audio methods: BEATs with its tokenizer iterations, audio-text contrast."""

from collimate_audio.beats import BEATs, BeatsHead
from collimate_audio.filter_bank import FilterBank
from collimate_audio.labels import LabelledSource, write_labels
from collimate_audio.masked_patches import (
    LabelPredictor,
    VisiblePatches,
    hide_patches,
    label_accuracy,
    masked_label_loss,
)
from collimate_audio.pretraining import BeatsDistillation, BeatsPretraining
from collimate_audio.quantizer import EMAQuantizer, Quantized
from collimate_audio.tokenizers import AcousticTokenizer, BeatsTokenizer, Estimator, RandomTokenizer, distillation_loss
from collimate_audio.trained import trained_encoder, trained_head, trained_tokenizer

__all__ = [
    "AcousticTokenizer",
    "BEATs",
    "BeatsDistillation",
    "BeatsHead",
    "BeatsPretraining",
    "BeatsTokenizer",
    "EMAQuantizer",
    "Estimator",
    "FilterBank",
    "LabelPredictor",
    "LabelledSource",
    "Quantized",
    "RandomTokenizer",
    "VisiblePatches",
    "distillation_loss",
    "hide_patches",
    "label_accuracy",
    "masked_label_loss",
    "trained_encoder",
    "trained_head",
    "trained_tokenizer",
    "write_labels",
]
