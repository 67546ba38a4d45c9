"""Audio methods: BEATs with its tokenizer iterations, audio-text contrast."""

from collimate_audio.audio_text import CLAP
from collimate_audio.augmentations import Mixup, SoundAugmentation, SpectrogramMasks
from collimate_audio.beats import BEATs, BeatsHead
from collimate_audio.characters import CharacterTokenizer
from collimate_audio.contrasts import FourTermContrast, FrozenNeighbours, PairContrast, SigmoidContrast
from collimate_audio.exhibits import show_sound
from collimate_audio.filter_bank import FilterBank
from collimate_audio.fine_tuning import AudioClassifier
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
from collimate_audio.speech_encoder import SpeechTransformer, TranscriptTransformer
from collimate_audio.speech_text import SiameseSpeechText
from collimate_audio.tokenizers import AcousticTokenizer, BeatsTokenizer, Estimator, RandomTokenizer, distillation_loss
from collimate_audio.trained import trained_encoder, trained_head, trained_tokenizer

__all__ = [
    "CLAP",
    "AcousticTokenizer",
    "AudioClassifier",
    "BEATs",
    "BeatsDistillation",
    "BeatsHead",
    "BeatsPretraining",
    "BeatsTokenizer",
    "CharacterTokenizer",
    "EMAQuantizer",
    "Estimator",
    "FilterBank",
    "FourTermContrast",
    "FrozenNeighbours",
    "LabelPredictor",
    "LabelledSource",
    "Mixup",
    "PairContrast",
    "Quantized",
    "RandomTokenizer",
    "SiameseSpeechText",
    "SigmoidContrast",
    "SoundAugmentation",
    "SpectrogramMasks",
    "SpeechTransformer",
    "TranscriptTransformer",
    "VisiblePatches",
    "distillation_loss",
    "hide_patches",
    "label_accuracy",
    "masked_label_loss",
    "show_sound",
    "trained_encoder",
    "trained_head",
    "trained_tokenizer",
    "write_labels",
]
