"""CLOC: contrastive localized language-image pre-training; see `collimate_vision_language.cloc.method`."""

from collimate_vision_language.cloc.method import CLOC
from collimate_vision_language.cloc.prompters import AttentionPrompter, Prompter, RoIAlignPrompter

__all__ = ["CLOC", "AttentionPrompter", "Prompter", "RoIAlignPrompter"]
