"""Processors: the raw-to-tensor step of each modality, which travels with every checkpoint."""

from collimate.processing.base import Processor
from collimate.processing.image import ImageProcessor
from collimate.processing.labels import ClassLabels
from collimate.processing.text import ClipTokenizer, HuggingFaceTokenizer, Tokenizer

__all__ = ["ClassLabels", "ClipTokenizer", "HuggingFaceTokenizer", "ImageProcessor", "Processor", "Tokenizer"]
