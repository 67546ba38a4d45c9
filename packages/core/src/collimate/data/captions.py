"""Which of a sample's captions training reads.

A sample may have one caption (`txt`) and several more of different kinds (`captions.json`: strings, or
`{"text": ..., "kind": "synthetic"}`). A method that needs more than any one of them says so in `Method.captions`: batch
key -> choice. A recipe's `data.captions` replaces these.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from collimate.configurable import Configurable
from collimate.data.decoding import Undecodable, check_text, value_of
from collimate.data.source import Sample

RAW = "raw"
"""The kind of the caption that is a sample's `txt`: what came with the picture."""


class Caption(NamedTuple):
    """A text and its kind: `raw`, `synthetic`, `short`, `long`, ...; None where nobody said."""

    text: str
    kind: str | None = None


def captions_of(sample: Sample) -> list[Caption]:
    """All captions of a sample: its `txt`, then those of its `captions.json`.

    Raises:
        CorruptSample: one of the fields is damaged.
        Undecodable: the captions are in no known form, or there is none.
    """
    found = [Caption(value_of(sample, ("txt",)), RAW)] if "txt" in sample else []
    return found + (listed(value_of(sample, ("captions.json",))) if "captions.json" in sample or not found else [])


def listed(captions: Any) -> list[Caption]:
    """The captions of a decoded field: a string, a list of strings, or a list of {"text": ..., "kind": ...}.

    Raises:
        Undecodable: there is none.
    """
    if isinstance(captions, str):
        return [Caption(captions)]
    if not isinstance(captions, list) or not captions:
        raise Undecodable("no caption", f"expected a list of captions, got {str(captions)[:40]!r}")
    found: list[tuple[Any, Any]] = [
        (each.get("text"), each.get("kind")) if isinstance(each, dict) else (each, None) for each in captions
    ]
    if not all(isinstance(text, str) for text, _ in found):
        raise Undecodable("no caption", f"expected strings, got {str(captions)[:40]!r}")
    return [Caption(text, kind) for text, kind in found]


class CaptionChoice(Configurable):
    """What one key of a batch holds of a sample's captions. It draws from Python's global generator."""

    optional = False
    """Whether a sample may lack them; its row is then that of an empty text, and `<key>_given` says so."""

    def __call__(self, captions: Sequence[Caption]) -> str | list[str] | None:
        """One text, always equally many texts, or None where an optional one is missing.

        Raises:
            Undecodable: what is needed is missing.
        """
        raise NotImplementedError


class OneCaption(CaptionChoice):
    """One caption, drawn at random from those that fit.

    Args:
        kinds: the kinds that fit; any, if None.
        start, stop: the places of those that fit among the captions of these kinds, as in a slice: for lists without
            kinds, `stop=1` is the first caption and `start=1` are the others.
        optional: whether a sample may have none.
    """

    def __init__(
        self,
        kinds: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
        optional: bool = False,
    ) -> None:
        self.kinds, self.start, self.stop, self.optional = kinds, start, stop, optional

    def __call__(self, captions: Sequence[Caption]) -> str | None:
        fitting = [caption for caption in captions if self.kinds is None or caption.kind in self.kinds]
        texts = [caption.text for caption in fitting[self.start : self.stop]]
        if self.optional and not any(text.strip() for text in texts):
            return None
        if not texts:
            kinds = ", ".join(sorted({str(caption.kind) for caption in captions}))
            raise Undecodable(f"no caption of kind {'/'.join(self.kinds or ('any',))}", f"its kinds: {kinds}")
        return check_text(random.choice(texts))
