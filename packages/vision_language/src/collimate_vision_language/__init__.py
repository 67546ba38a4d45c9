"""Image-text methods: each file states one paper's objective over an image and a text tower."""

from collimate_vision_language.alip import ALIP
from collimate_vision_language.clip import CLIP
from collimate_vision_language.cloc import CLOC
from collimate_vision_language.dreamlip import DreamLIP
from collimate_vision_language.filip import FILIP
from collimate_vision_language.flair import FLAIR
from collimate_vision_language.siglip import SigLIP
from collimate_vision_language.sub_captions import SubCaptions
from collimate_vision_language.tcl import TCL

__all__ = ["ALIP", "CLIP", "CLOC", "FILIP", "FLAIR", "TCL", "DreamLIP", "SigLIP", "SubCaptions"]
