"""Sub-captions: the sentences of long captions, each a text of the image by itself.

A long caption says one thing a sentence. `SubCaptions` draws K texts of a sample from the sentences of its captions,
anew each time, and so gives batches texts of (B, K, L) (Zheng et al. 2024, DreamLIP, arXiv 2403.17007, section 3; Xiao
et al. 2025, FLAIR, arXiv 2412.03561, section 3).

Shape legend: B samples, K texts a sample, L text tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Int64
from torch import Tensor

from collimate.data import Caption, CaptionChoice
from collimate.data.decoding import Undecodable, check_text
from collimate.training import Method


def split_sentences(text: str) -> list[str]:
    """The sentences of a caption, with their marks.

    A sentence ends at a line's end, at `</s>`, and at `.`, `!`, `?` or `…` (and quotes or brackets that close there)
    before white space and a capital, a letter without case, a quote or a bracket; the number of an item (`1.`) may
    stand between. So decimals are whole, and a caption in small letters stays one. No sentence ends at an abbreviation
    before names (`Dr.`, `Inc.`, `No.`), at initials (`J.`, `U.S.`, `e.g.`) or at an item's number: the rule rather
    leaves two sentences together than it cuts one.

    Pieces without a letter or digit are dropped; nothing else is lost. Costs time linear in the text's length.
    """
    pieces = []
    for line in re.split(r"\n|</s>", text):
        start = 0
        for stop in _STOP.finditer(line):
            if _begins_sentence(stop[1]) and not _keeps_on(line, start, stop.end()):
                pieces.append(line[start : stop.end()])
                start = stop.end()
        pieces.append(line[start:])
    return [piece.strip() for piece in pieces if any(map(str.isalnum, piece))]


def split_released(text: str) -> list[str]:
    """DreamLIP's released rule: at every full stop, line's end and `</s>`, which are lost.

    It splits decimals and abbreviations, and does not split at `!` and `?` (zyf0619sjtu/DreamLIP, training/data.py).
    """
    pieces = (piece.strip() for piece in re.split(r"\n|</s>|\.", text))
    return [piece for piece in pieces if piece]


class SubCaptions(CaptionChoice):
    """K texts of a sample, drawn from the sentences of its captions.

    The sentences are a list: captions of the kinds in `whole` count as one sentence each, the others are split. Where
    the list is empty, the raw caption is repeated. Captions of white space only do not count. Departures from the
    released sampler, which never draws the last sentence and fails below two: every sentence is drawn, any number is
    enough, and sentences are joined as sentences, with a full stop only where none stands.

    Args:
        num_subcaptions: K.
        sampling: `uniform` draws different sentences, with replacement only where they are fewer than K (the paper:
            from raw caption, short captions and sentences of long ones). `diverse` draws each text by itself: it joins
            1 to `merged_num` sentences, consecutive ones with probability 1/2, else any (FLAIR).
        merged_num: how many consecutive sentences a `uniform` text joins, and the most that a `diverse` one joins;
            1 and 3 if None, as published.
        split: `sentences` or `released`, the functions of this file.
        include_raw: the first of the K texts is always the raw caption, as in DreamLIP's released code.
        kinds: the kinds of captions whose sentences are drawn; all, if None.
        raw: the kinds that count as the raw caption. A sample without any has its first caption for it.
        whole: the kinds that are not split: raw and short captions in the paper, none in the released code and in
            FLAIR's.

    Raises:
        ValueError: fewer than one text or sentence is asked for.
    """

    def __init__(
        self,
        num_subcaptions: int = 8,
        sampling: Literal["uniform", "diverse"] = "uniform",
        merged_num: int | None = None,
        split: Literal["sentences", "released"] = "sentences",
        include_raw: bool = False,
        kinds: Sequence[str] | None = None,
        raw: Sequence[str] = ("raw",),
        whole: Sequence[str] = ("raw", "short"),
    ) -> None:
        self.num_subcaptions, self.include_raw = num_subcaptions, include_raw
        self.draw = {"uniform": draw_uniform, "diverse": draw_diverse}[sampling]
        self.merged_num = {"uniform": 1, "diverse": 3}[sampling] if merged_num is None else merged_num
        self.split = {"sentences": split_sentences, "released": split_released}[split]
        self.kinds, self.raw, self.whole = kinds, tuple(raw), tuple(whole)
        if min(num_subcaptions, self.merged_num) < 1:
            raise ValueError(f"At least 1 text of 1 sentence; not {num_subcaptions} texts of {self.merged_num}.")

    def __call__(self, captions: Sequence[Caption]) -> list[str]:
        """K texts.

        Raises:
            Undecodable: the sample has no caption, or one that was drawn is damaged.
        """
        given = [caption for caption in captions if caption.text.strip()]
        if not given:  # sentences that are joined get full stops, with which nothing would be a text
            raise Undecodable("empty text")
        raw = next((caption.text for caption in given if caption.kind in self.raw), given[0].text)
        texts = [raw] if self.include_raw else []
        texts += self.draw(self.sentences(given) or [raw], self.num_subcaptions - len(texts), self.merged_num)
        return [check_text(text) for text in texts]

    def sentences(self, captions: Sequence[Caption]) -> list[str]:
        """What texts are drawn from, in the captions' order."""
        fitting = [caption for caption in captions if self.kinds is None or caption.kind in self.kinds]
        parts = [[text.strip()] if kind in self.whole else self.split(text) for text, kind in fitting]
        return [sentence for part in parts for sentence in part if sentence]


def draw_uniform(sentences: Sequence[str], count: int, merged: int = 1) -> list[str]:
    """`count` texts, each of `merged` consecutive sentences: no two from one place while there are places enough.

    Args:
        sentences: at least one; where they are fewer than `merged`, every text has all of them.
    """
    places = range(max(len(sentences) - merged, 0) + 1)
    starts = random.sample(places, count) if len(places) >= count else random.choices(places, k=count)
    return [join(sentences[start : start + merged]) for start in starts]


def draw_diverse(sentences: Sequence[str], count: int, most: int = 3) -> list[str]:
    """`count` texts, each of 1 to `most` sentences, drawn independently of one another.

    Args:
        sentences: at least one; with replacement within a text that has more than there are.
    """
    return [_diverse(sentences, random.randint(1, most)) for _ in range(count)]


def _diverse(sentences: Sequence[str], number: int) -> str:
    if number == 1 or random.random() < CONSECUTIVE:
        return draw_uniform(sentences, 1, number)[0]
    enough = len(sentences) >= number
    return join(random.sample(sentences, number) if enough else random.choices(sentences, k=number))


def join(sentences: Sequence[str]) -> str:
    """Sentences as one text; all but the last get a full stop where they have no mark."""
    ended = [text if text.rstrip(_CLOSING)[-1:] in tuple(_MARKS) else f"{text}." for text in sentences[:-1]]
    return " ".join([*ended, *sentences[-1:]])


def several(tokens: Int64[Tensor, "B *K L"]) -> Int64[Tensor, "B K L"]:
    """A batch of texts as several a sample: one where there is no such dimension."""
    return tokens if tokens.ndim == 3 else tokens[:, None]


def embed_several(method: Method, batch: dict[str, Any]) -> dict[str, Tensor]:
    """`image` (B, D), `patches` (B, M, D) and `text` (B, K, D); the text tower sees all texts at once.

    Raises:
        ValueError: the image tower has no tokens.
    """
    image, tokens = method.encode("image", batch["image"]), several(batch["text"])
    if image.tokens is None:
        raise ValueError(f"{type(method.encoders['image']).__name__} has no tokens for texts to look at.")
    text = method.encode("text", tokens.flatten(0, 1)).pooled.unflatten(0, tokens.shape[:2])
    return {"image": image.pooled, "patches": image.tokens, "text": text}


# How sentences end ------------------------------------------------------------------------------------------------

CONSECUTIVE = 0.5  # ExplainableML/flair, src/flair/data.py

_MARKS, _OPENING, _CLOSING = ".!?…", "\"'“‘([", "\"'”’)]"
# One mark, what closes, white space, perhaps an item's number, the next character: nothing is repeated within a
# repetition, so that no text takes quadratic time.
_STOP = re.compile(rf"[{_MARKS}][{re.escape(_CLOSING)}]*(?=\s+(?:\d{{1,3}}\.\s+)?(\S))")
_INITIALS = re.compile(r"[A-Z]\.|(?:[^\W\d_]\.){2,}")
_ABBREVIATIONS = re.compile(  # those that stand before names and numbers
    r"(mr|mrs|ms|messrs|dr|prof|st|mt|ft|jr|sr|gen|col|lt|sgt|capt|rev|hon|gov|sen|rep|pres|vs|inc|ltd|co|corp|al|nos?"
    r"|figs?|vol|ca|approx)\.",
    re.IGNORECASE,
)
_LONGEST_WORD = 16  # characters looked back; initials and abbreviations are shorter


def _begins_sentence(character: str) -> bool:
    return character in _OPENING or (character.isalpha() and not character.islower())


def _keeps_on(line: str, start: int, end: int) -> bool:
    """Whether the word before `end` has its full stop for itself."""
    window = line[max(start, end - _LONGEST_WORD) : end]
    word = window.split()[-1].lstrip(_OPENING)
    if word[:-1].isdigit():
        before = window.removesuffix(word).rstrip(f"{_OPENING} \t")
        return not before or before[-1] in _MARKS + _CLOSING  # the number of an item, not one that ends a sentence
    return bool(_INITIALS.fullmatch(word) or _ABBREVIATIONS.fullmatch(word))
