"""Text to ids. Tokenizers run offline: their vocabulary is in a package or in a folder.

Shape legend: B texts, L the context length in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import regex
import torch
from jaxtyping import Bool, Int64
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from torch import Tensor

from collimate.configurable import at_least
from collimate.processing.base import Processor

CHARACTERS_PER_TOKEN = 32  # the longest entry of CLIP's vocabulary
CAPTION_WORDS = 30  # salesforce/ALBEF, dataset/caption_dataset.py
CAPTION_MARKS = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~", "") | dict.fromkeys("-/", " "))  # dataset/utils.py there
CHARACTERS_CLEANED_PER_TOKEN = 512  # ours: room for white space and entities that cleaning will remove


class Tokenizer(Processor):
    """A text to `context_length` ids, padded with `pad_id` on the right.

    Attributes:
        context_length: L.
        vocab_size: ids lie below it.
        pad_id: the id that fills up short texts. It may be a word's id too (CLIP's 0 is "!").
        start_id: the id that begins every text; None where none does.
        end_id: the id that ends every text, also one that was cut.
        mask_id: the id that stands for a hidden token. Where the vocabulary has none it is `vocab_size`, so that a
            model that fills in hidden tokens has one id more.
    """

    modality = "text"
    context_length: int
    vocab_size: int
    pad_id: int
    start_id: int | None = None
    end_id: int
    mask_id: int

    def __call__(self, raw: str) -> Int64[Tensor, " L"]:
        raise NotImplementedError

    def pieces(self, ids: Int64[Tensor, " L"]) -> list[str]:
        """What each id stands for, for people: a word or a part of one; empty for start, end and padding."""
        raise NotImplementedError

    def decode(self, ids: Int64[Tensor, " L"]) -> str:
        """The text of ids none of which is start, end or padding.

        Raises:
            NotImplementedError: this tokenizer cannot write.
        """
        raise NotImplementedError(f"{type(self).__name__} does not write texts.")

    def continues(self, batch: Int64[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """True where a token goes on with the word of the token before it.

        Raises:
            NotImplementedError: this tokenizer cannot tell.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell which tokens go on with a word.")

    def shaped(self, shape: int) -> Tokenizer:
        """The same with another context length; longer texts are cut."""
        return self.changed(context_length=shape)

    def example(self) -> str:
        return "A photo of two dogs, taken at 12:30 in the rain & fog."

    def mask(self, batch: Int64[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """True up to and including the first end token."""
        ends = (batch == self.end_id).long()
        return ends.cumsum(-1) - ends == 0


class ClipTokenizer(Tokenizer):
    """CLIP's byte-pair encoding: lower case, 49408 ids, start 49406, end 49407, padding 0.

    The merges are open_clip's own; what is added is speed (a bounded cache of words, no work beyond the
    context) and a bound on absurd texts, whose tail is cut before it is cleaned.

    Args:
        context_length: L. A longer text is cut, and its last id is the end token.
        special_tokens: how a text may spell start and end. open_clip's spelling unless given; OpenAI's is
            `("<|startoftext|>", "<|endoftext|>")`.
    """

    pad_id = 0

    def __init__(
        self,
        context_length: int = 77,
        special_tokens: Sequence[str] = ("<start_of_text>", "<end_of_text>"),
    ) -> None:
        if context_length < 2:
            raise ValueError(f"The start and end tokens alone need a context of 2, got {context_length}.")
        self.context_length = context_length
        self.special_tokens = tuple(special_tokens)
        self._encoder = _clip_encoder(self.special_tokens)
        self.start_id, self.end_id = self._encoder.special_ids
        self.vocab_size = self.mask_id = self._encoder.vocab_size

    def __call__(self, raw: str) -> Int64[Tensor, " L"]:
        ids = [self.start_id, *self._encoder(raw, self.context_length - 2), self.end_id]
        ids += [self.pad_id] * (self.context_length - len(ids))
        return torch.tensor(ids, dtype=torch.int64)

    def pieces(self, ids: Int64[Tensor, " L"]) -> list[str]:
        real = self.mask(ids[None])[0].tolist()
        special = (self.start_id, self.end_id)
        return [
            self._encoder.decode(each).strip() if inside and each not in special else ""
            for each, inside in zip(ids.tolist(), real, strict=True)
        ]

    def decode(self, ids: Int64[Tensor, " L"]) -> str:
        return self._encoder.decode_all(ids.tolist()).strip()

    def vocabulary(self) -> tuple[dict[str, int], list[tuple[str, ...]]]:
        """Token to id, with the special tokens in OpenAI's spelling, and the merges in order of rank."""
        return self._encoder.vocabulary()

    def __reduce__(self) -> tuple[type, tuple[int, tuple[str, ...]]]:
        return type(self), (self.context_length, self.special_tokens)


class HuggingFaceTokenizer(Tokenizer):
    """Any tokenizer of a local folder, or of the hub, by `transformers`.

    Args:
        path: a folder with the tokenizer's files (`tokenizer.json`, ...), or a hub id such as
            `google/siglip-base-patch16-224`.
        context_length: L. Shorter texts are padded to it, longer ones cut.
        clean: what is done to the text first. `canonicalize` (lower case, no punctuation) is what the
            released SigLIP models were trained with, `caption` (`clean_caption`) what ALBEF and TCL were.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the context has no room.
    """

    def __init__(
        self,
        path: str,
        context_length: int = 77,
        clean: Literal["lower", "whitespace", "canonicalize", "caption"] | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        if Path(path).is_absolute() and not Path(path).is_dir():
            raise FileNotFoundError(f"The tokenizer's folder {path} is missing.")
        at_least(1, context_length=context_length)
        self.context_length, self.clean = context_length, clean
        self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=Path(path).is_dir())
        self._clean: Any = clean_caption if clean == "caption" else get_clean_fn(clean) if clean else None
        ends = (self._tokenizer.eos_token_id, self._tokenizer.sep_token_id)
        pads = (self._tokenizer.pad_token_id, *ends)
        self.end_id, self.pad_id = _first_id(ends, path, "end"), _first_id(pads, path, "padding")
        self._tokenizer.pad_token_id = self.pad_id
        self.vocab_size = len(self._tokenizer)
        starts = (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id)
        self.start_id = next((each for each in starts if each is not None), None)
        mask_id = self._tokenizer.mask_token_id
        self.mask_id = self.vocab_size if mask_id is None else mask_id
        self._continuing: Tensor | None = None

    def __call__(self, raw: str) -> Int64[Tensor, " L"]:
        text = self._clean(raw) if self._clean else raw
        encoded = self._tokenizer(
            text, padding="max_length", truncation=True, max_length=self.context_length, padding_side="right"
        )
        return torch.tensor(encoded["input_ids"], dtype=torch.int64)

    def pieces(self, ids: Int64[Tensor, " L"]) -> list[str]:
        special = set(self._tokenizer.all_special_ids)
        return ["" if each in special else self._tokenizer.decode([each]).strip() for each in ids.tolist()]

    def decode(self, ids: Int64[Tensor, " L"]) -> str:
        return self._tokenizer.decode(ids.tolist()).strip()

    def mask(self, batch: Int64[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """True where a token is no padding; up to the first end token where padding is the end token too."""
        return batch != self.pad_id if self.pad_id != self.end_id else super().mask(batch)

    def continues(self, batch: Int64[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """True at the pieces that WordPiece writes with ## in front.

        Raises:
            NotImplementedError: the vocabulary has no such pieces.
        """
        if self._continuing is None:
            pieces = self._tokenizer.convert_ids_to_tokens(list(range(self.vocab_size)))
            self._continuing = torch.tensor([piece is not None and piece.startswith("##") for piece in pieces])
        if not bool(self._continuing.any()):
            return super().continues(batch)
        return self._continuing.to(batch.device)[batch]

    def save_files(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


def clean_caption(text: str) -> str:
    """A caption as ALBEF and TCL read it: lower case, hardly any punctuation, at most 30 words.

    As in salesforce/ALBEF, dataset/utils.py: some marks are dropped, hyphens and slashes become spaces, and so does
    other white space; `<person>`, which stands for names in Conceptual Captions, becomes a word.
    """
    text = text.lower().translate(CAPTION_MARKS).replace("<person>", "person")
    return " ".join(text.split()[:CAPTION_WORDS])


class _ClipEncoder:
    """open_clip's tokenizer as a function of a text and the number of ids wanted."""

    def __init__(self, special_tokens: tuple[str, ...]) -> None:
        self._bpe = SimpleTokenizer()
        default = self._bpe.all_special_ids
        self.special_ids = (default[0], default[1])
        self.vocab_size = self._bpe.vocab_size
        self._special = dict(zip(special_tokens, self.special_ids, strict=True))
        spelled = "|".join(map(regex.escape, special_tokens))
        words = self._bpe.pat.pattern.removeprefix("<start_of_text>|<end_of_text>")
        self._words = regex.compile(spelled + words, regex.IGNORECASE)
        self._word_ids = lru_cache(maxsize=2**16)(self._encode_word)

    def __call__(self, text: str, count: int) -> list[int]:
        text = text[: CHARACTERS_CLEANED_PER_TOKEN * (count + 2)]
        if text.isascii() and text.isprintable() and "&" not in text:
            text = text.lower()  # nothing to repair and no entity: only the case is left of the cleaning
        else:
            text = self._bpe.clean_fn(text)
        longest_word = CHARACTERS_PER_TOKEN * (count + 2)
        ids: list[int] = []
        for match in self._words.finditer(text):
            ids.extend(self._word_ids(match.group()[:longest_word]))
            if len(ids) >= count:
                break
        return ids[:count]

    def decode(self, number: int) -> str:
        """The text of one id."""
        return self._bpe.decode([number])

    def decode_all(self, numbers: list[int]) -> str:
        """The text of several ids."""
        return self._bpe.decode(numbers)

    def vocabulary(self) -> tuple[dict[str, int], list[tuple[str, ...]]]:
        spelling = dict(zip(self.special_ids, ("<|startoftext|>", "<|endoftext|>"), strict=True))
        tokens = {spelling.get(number, token): number for token, number in self._bpe.encoder.items()}
        return tokens, sorted(self._bpe.bpe_ranks, key=self._bpe.bpe_ranks.__getitem__)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word in self._special:
            return (self._special[word],)
        letters = "".join(self._bpe.byte_encoder[byte] for byte in word.encode("utf-8"))
        pieces = self._bpe.bpe(letters).split(" ")
        self._bpe.cache.pop(letters, None)  # open_clip's own cache grows without bound
        return tuple(self._bpe.encoder[piece] for piece in pieces)


@lru_cache(maxsize=4)
def _clip_encoder(special_tokens: tuple[str, ...]) -> _ClipEncoder:
    return _ClipEncoder(special_tokens)


def _first_id(candidates: tuple[int | None, ...], path: str, what: str) -> int:
    for candidate in candidates:
        if candidate is not None:
            return candidate
    raise ValueError(f"The tokenizer in {path!r} has no {what} token.")
