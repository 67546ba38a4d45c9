"""Image-text methods, and their neighbours of pictures or texts alone: each file states one paper's objective."""

from collimate_vision_language.alip import ALIP
from collimate_vision_language.amcl import AMCL
from collimate_vision_language.clip import CLIP
from collimate_vision_language.clip_reident import CLIPReIdent
from collimate_vision_language.clip_rocket import BYOLIP, BarLIP, CLIPRocket, SiamLIP, SwALIP
from collimate_vision_language.cloc import CLOC
from collimate_vision_language.cosmo import COSMO
from collimate_vision_language.cwcl import CWCL
from collimate_vision_language.dialog2flow import Dialog2Flow
from collimate_vision_language.dreamlip import DreamLIP
from collimate_vision_language.filip import FILIP
from collimate_vision_language.flair import FLAIR
from collimate_vision_language.siglip import SigLIP
from collimate_vision_language.simhand import SiMHand
from collimate_vision_language.space2 import SPACE2
from collimate_vision_language.sub_captions import SubCaptions
from collimate_vision_language.supcon import SupCon
from collimate_vision_language.tcl import TCL, AnswerScores, TCLAnswers, TCLPairs

__all__ = [
    "ALIP",
    "AMCL",
    "BYOLIP",
    "CLIP",
    "CLOC",
    "COSMO",
    "CWCL",
    "FILIP",
    "FLAIR",
    "SPACE2",
    "TCL",
    "AnswerScores",
    "BarLIP",
    "CLIPReIdent",
    "CLIPRocket",
    "Dialog2Flow",
    "DreamLIP",
    "SiMHand",
    "SiamLIP",
    "SigLIP",
    "SubCaptions",
    "SupCon",
    "SwALIP",
    "TCLAnswers",
    "TCLPairs",
]
