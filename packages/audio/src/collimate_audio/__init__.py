"""Audio methods: BEATs with its tokenizer iterations, audio-text contrast."""

from collimate_audio.beats import BEATs, BeatsHead
from collimate_audio.filter_bank import FilterBank

__all__ = ["BEATs", "BeatsHead", "FilterBank"]
