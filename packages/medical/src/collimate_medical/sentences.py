"""Which part of a report training reads: one of its sentences, or some, drawn anew each time.

ConVIRT (Zhang et al. 2020, arXiv 2010.00747, section 3.2) contrasts an image with one sentence of its report; GLoRIA
does so in training unless it reads whole reports. Sentences end at a full stop, a semicolon or a line's end.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from collimate.data.captions import Caption, OneCaption

_END = re.compile(r"[.;!?](?=\s|$)|\n+")


class OneSentence(OneCaption):
    """One sentence of one caption, drawn at random from those that have so many words; the whole where none has.

    Args:
        kinds: the kinds of captions that fit; any, if None.
        min_words: GLoRIA leaves out sentences of one word.
        optional: whether a sample may have no caption.
    """

    def __init__(self, kinds: Sequence[str] | None = None, min_words: int = 2, optional: bool = False) -> None:
        super().__init__(kinds, optional=optional)
        self.min_words = min_words

    def __call__(self, captions: Sequence[Caption]) -> str | None:
        report = super().__call__(captions)
        return None if report is None else random.choice(sentences(report, self.min_words) or [report])


class SomeSentences(OneCaption):
    """From one to all sentences of one caption, in their order: texts as short as prompts are, and whole reports. Ours.

    Trained on whole reports alone, a text tower has never seen what a finding asked for by itself looks like.

    Args:
        kinds: the kinds of captions that fit; any, if None.
        optional: whether a sample may have no caption.
    """

    def __init__(self, kinds: Sequence[str] | None = None, optional: bool = False) -> None:
        super().__init__(kinds, optional=optional)

    def __call__(self, captions: Sequence[Caption]) -> str | None:
        report = super().__call__(captions)
        if report is None or not (parts := sentences(report)):
            return report
        kept = sorted(random.sample(range(len(parts)), random.randint(1, len(parts))))
        return " ".join(f"{parts[place]}." for place in kept)


def sentences(report: str, min_words: int = 1) -> list[str]:
    """The sentences of a report that have so many words, without their ends."""
    parts = (part.strip() for part in _END.split(report))
    return [part for part in parts if part and len(part.split()) >= min_words]
