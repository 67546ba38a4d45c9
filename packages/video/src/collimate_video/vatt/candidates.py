"""The texts of a clip among which its own is: narration strays from what is seen, by some seconds or altogether."""

from __future__ import annotations

from collections.abc import Sequence

from collimate.data.captions import Caption, CaptionChoice


class Candidates(CaptionChoice):
    """The first C captions of a sample, in their order: the nearest in time first, as data should have them.

    Where there are fewer, empty texts stand for those that are missing. A sample without any has one empty text in its
    `captions.json`.

    Args:
        count: C; VATT has 5, the narration nearest in time and its four neighbours.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, count: int = 5) -> None:
        if count < 1:
            raise ValueError(f"A clip has at least one candidate, not {count}.")
        self.count = count

    def __call__(self, captions: Sequence[Caption]) -> list[str]:
        texts = [caption.text for caption in captions if caption.text.strip()][: self.count]
        return texts + [""] * (self.count - len(texts))
