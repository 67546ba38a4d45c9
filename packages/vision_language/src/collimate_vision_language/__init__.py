"""Image-text methods: each file states one paper's objective over an image and a text tower."""

from collimate_vision_language.clip import CLIP
from collimate_vision_language.siglip import SigLIP

__all__ = ["CLIP", "SigLIP"]
