"""CLIP-rocket: a strong CLIP baseline, and the terms without negatives that it makes superfluous."""

from collimate_vision_language.clip_rocket.method import CLIPRocket
from collimate_vision_language.clip_rocket.terms import BYOLIP, BarLIP, SiamLIP, SwALIP, Views, ViewTerm

__all__ = ["BYOLIP", "BarLIP", "CLIPRocket", "SiamLIP", "SwALIP", "ViewTerm", "Views"]
