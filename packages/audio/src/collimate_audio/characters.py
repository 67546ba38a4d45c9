"""Transcripts as characters: the units of speech recognition where there is no phonemiser.

Shape legend: B texts, L the context length in characters.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from collimate.processing import Tokenizer

ENGLISH = " 'abcdefghijklmnopqrstuvwxyz"


class CharacterTokenizer(Tokenizer):
    """A text to one id a character, then the end, padded on the right.

    Texts become lower case, white space one space, and characters that the alphabet lacks are left out, as punctuation
    is for transcripts.

    Args:
        context_length: L. A longer text is cut, and its last id is the end.
        alphabet: the characters, each once, in the order of their ids.

    Raises:
        ValueError: a character stands twice in the alphabet.
    """

    def __init__(self, context_length: int = 256, alphabet: str = ENGLISH) -> None:
        if len(set(alphabet)) != len(alphabet):
            raise ValueError(f"Each character of an alphabet stands once; in {alphabet!r} some stand twice.")
        self.context_length, self.alphabet = context_length, alphabet
        self._numbers = {letter: place for place, letter in enumerate(alphabet)}
        self.end_id, self.pad_id = len(alphabet), len(alphabet) + 1
        self.vocab_size = self.mask_id = len(alphabet) + 2

    def __call__(self, raw: str) -> Int64[Tensor, " L"]:
        known = " ".join("".join(each for each in raw.lower() if each in self._numbers or each.isspace()).split())
        ids = [self._numbers[each] for each in known if each in self._numbers][: self.context_length - 1]
        ids.append(self.end_id)
        return torch.tensor(ids + [self.pad_id] * (self.context_length - len(ids)))

    def pieces(self, ids: Int64[Tensor, " L"]) -> list[str]:
        return [self.alphabet[each] if each < len(self.alphabet) else "" for each in ids.tolist()]

    def decode(self, ids: Int64[Tensor, " L"]) -> str:
        return "".join(self.pieces(ids)).strip()

    def example(self) -> str:
        return "the quick brown fox"
