"""Scenes: rooms with objects, and sentences on them; from files to tensors."""

from collimate_3d.scenes.processing import (
    DrawnReferrals,
    ReferralProcessor,
    Referrals,
    SceneAugmentation,
    SceneProcessor,
    Scenes,
    unpacked_referrals,
    unpacked_scenes,
)

__all__ = [
    "DrawnReferrals",
    "ReferralProcessor",
    "Referrals",
    "SceneAugmentation",
    "SceneProcessor",
    "Scenes",
    "unpacked_referrals",
    "unpacked_scenes",
]
