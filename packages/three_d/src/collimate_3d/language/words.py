"""Texts as whole words, for encoders with a vector a word; the ids of a vocabulary that is counted in one's own texts.

Shape legend: L the context length in words, V ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import regex
import torch
from jaxtyping import Int64
from torch import Tensor

from collimate.processing import Tokenizer

PAD, UNKNOWN, END, MASK = range(4)
SPECIAL = 4
_WORDS = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:'[\p{L}]+)?|[^\s\p{L}\p{M}\p{N}]")


class WordTokenizer(Tokenizer):
    """A text to the numbers of its words, in lower case; marks are words of their own. It ends with an end token.

    Args:
        words: the vocabulary: a list, or a .txt file with a word a line (`collimate three-d vocabulary` writes one).
        context_length: L, the end token included; a longer text is cut.

    Raises:
        ValueError: a word occurs twice, or is none by the rules of this tokenizer.
        FileNotFoundError: there is no such file.
    """

    pad_id, end_id, mask_id = PAD, END, MASK

    def __init__(self, words: Sequence[str] | str, context_length: int = 32) -> None:
        if context_length < 2:
            raise ValueError(f"A word and the end token need a context of 2, got {context_length}.")
        self.words = read_words(words) if isinstance(words, str) else list(words)
        self.context_length, self.vocab_size = context_length, len(self.words) + SPECIAL
        self._numbers = {word: number for number, word in enumerate(self.words, SPECIAL)}
        if len(self._numbers) < len(self.words):
            raise ValueError(f"The vocabulary has a word twice: {Counter(self.words).most_common(1)[0][0]!r}.")
        if odd := [word for word in self.words if split_words(word) != [word]]:
            raise ValueError(f"{odd[0]!r} is no single word in lower case, so that no text would have it.")

    def __call__(self, raw: str) -> Int64[Tensor, " L"]:
        ids = [self._numbers.get(word, UNKNOWN) for word in split_words(raw)][: self.context_length - 1]
        return torch.tensor([*ids, END] + [PAD] * (self.context_length - 1 - len(ids)))

    def pieces(self, ids: Int64[Tensor, " L"]) -> list[str]:
        return [
            "?" if each == UNKNOWN else "" if each < SPECIAL else self.words[each - SPECIAL] for each in ids.tolist()
        ]

    def decode(self, ids: Int64[Tensor, " L"]) -> str:
        return " ".join(self.pieces(ids))

    def config(self) -> dict[str, Any]:
        """As for every Configurable, with the words themselves in the place of their file."""
        config = super().config()
        config["init_args"] |= {"words": self.words}
        return config


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, and its marks."""
    return _WORDS.findall(text.lower())


def count_words(texts: Iterable[str], at_least: int = 1) -> list[str]:
    """The words of texts, the most frequent first, and of equally frequent ones by the alphabet.

    Args:
        at_least: how often a word occurs that is kept.
    """
    counts = Counter(word for text in texts for word in split_words(text))
    return sorted((word for word, count in counts.items() if count >= at_least), key=lambda word: (-counts[word], word))


def read_words(path: str | Path) -> list[str]:
    """The words of a file that has one a line.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no vocabulary {str(path)!r}. `collimate three-d vocabulary` writes one.")
    return [word for line in Path(path).read_text(encoding="utf-8").splitlines() if (word := line.strip())]
