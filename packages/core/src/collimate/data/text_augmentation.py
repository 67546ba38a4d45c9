"""Training transforms of texts.

Fini et al. 2023, arXiv 2305.08675, section 4; the operations are those of Wei and Zou 2019, EDA, arXiv 1901.11196.
"""

from __future__ import annotations

import json
import random
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from collimate.data.preparation import Augmentation


class TextAugmentation(Augmentation):
    """Words left out, put elsewhere or replaced, before the text is tokenized. A text keeps at least one word.

    First stop words are left out, with a probability; then one of three operations is done, or none. Stop words are
    scikit-learn's English ones, where the published code has NLTK's.

    Args:
        drop_stop_words: the probability of leaving out all stop words.
        operations: how likely the operations are, relative to each other: `synonym`, `swap`, `delete`; none if empty.
            The published strong view has 0.4, 0.4 and 0.2.
        share: of the words that an operation changes, one at least; EDA's 0.1 unless given.
        synonyms: a JSON file {word: [words]}, for `synonym`.

    Raises:
        ValueError: an operation of another name, or `synonym` without synonyms.
    """

    def __init__(
        self,
        drop_stop_words: float = 0.8,
        operations: dict[str, float] | None = None,
        share: float = 0.1,
        synonyms: str | PathLike[str] | None = None,
    ) -> None:
        self.drop_stop_words, self.share = drop_stop_words, share
        self.operations = dict(operations or {})
        if unknown := self.operations.keys() - {"synonym", "swap", "delete"}:
            raise ValueError(f"There is no operation {min(unknown)!r} on texts; there are synonym, swap and delete.")
        if self.operations.get("synonym") and synonyms is None:
            raise ValueError("Synonyms need a file of them, {word: [words]}: set `synonyms`, or leave `synonym` out.")
        self.synonyms: dict[str, list[str]] = {}
        if synonyms is not None:
            self.synonyms = json.loads(Path(synonyms).read_text(encoding="utf-8"))

    def __call__(self, raw: str, processor: Any) -> Tensor:
        return processor(self.changed(raw))

    def changed(self, text: str) -> str:
        """The text as one draw of the augmentation leaves it."""
        words = text.split()
        if random.random() < self.drop_stop_words:
            words = [word for word in words if word.lower().strip(".,;:!?\"'") not in _stop_words()] or words
        if self.operations and words:
            operation = random.choices(list(self.operations), list(self.operations.values()))[0]
            words = getattr(self, f"_{operation}")(words)
        return " ".join(words)

    def _count(self, words: list[str]) -> int:
        return max(1, round(self.share * len(words)))

    def _synonym(self, words: list[str]) -> list[str]:
        known = [place for place, word in enumerate(words) if self.synonyms.get(word.lower())]
        for place in random.sample(known, min(self._count(words), len(known))):
            words[place] = random.choice(self.synonyms[words[place].lower()])
        return words

    def _swap(self, words: list[str]) -> list[str]:
        for _ in range(self._count(words) if len(words) > 1 else 0):
            first, second = random.sample(range(len(words)), 2)
            words[first], words[second] = words[second], words[first]
        return words

    def _delete(self, words: list[str]) -> list[str]:
        gone = random.sample(range(len(words)), min(self._count(words), len(words) - 1))
        return [word for place, word in enumerate(words) if place not in gone]


def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS
