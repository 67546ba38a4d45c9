"""Noun phrases of captions: what an open-vocabulary detector is asked to find.

The visually enriched and spatially localised (VESL) pipeline of CLOC, arXiv 2410.02746, section 4 and appendix: a
caption is put in lower case and cut into words; generic words of the web are dropped; the rest is tagged with parts of
speech and chunked by `GRAMMAR`; phrases that are all stop words are dropped; the first 20 stay.

It needs the extra `collimate[phrases]`, and one of two taggers: NLTK's, whose data NLTK downloads (`python -m
nltk.downloader averaged_perceptron_tagger_eng`) or finds in a folder that the variable NLTK_DATA names; or TextBlob's,
of a lexicon and rules, which brings its data and errs more often.

Departure: sentences are told by their full stop and what follows it, not by NLTK's model, which is one more download.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

Tagged = tuple[str, str]
"""A word and its part of speech, as the Penn Treebank has them."""
Tagger = Callable[[Sequence[str]], Sequence[Tagged]]
"""From the words of a sentence to the same with their parts of speech."""

GRAMMAR = "NP: {<DT>?<JJ.*>*<NN.*>+}"  # the paper's appendix
_GENERIC = """
alibaba aliexpress amazon available background blog buy co com description diy download facebook free gif hd ideas
illustration illustrations image images img instagram jpg online org original page pdf photo photography photos
picclick picture pictures png porn premium resolution royalty sale sex shutterstock stock svg thumbnail tumblr tumgir
twitter uk uploaded vector vectors video videos wallpaper wallpapers wholesale www xxx youtube
"""
_STOP = """
a about above after again against all am an and any are as at be because been before being below between both but by
can did do does doing don down during each few for from further had has have having he her here hers herself him
himself his how i if in into is it its itself just me more most my myself no nor not now of off on once only or other
our ours ourselves out over own s same she should so some such t than that the their theirs them themselves then there
these they this those through to too under until up very was we were what when where which while who whom why will
with you your yours yourself yourselves
"""
GENERIC_WORDS = frozenset(_GENERIC.split())  # the paper's appendix
STOP_WORDS = frozenset(_STOP.split())  # the paper's appendix
MAX_PHRASES = 20  # the paper's section 4


def queries(texts: Sequence[str], tagger: Tagger, limit: int = MAX_PHRASES) -> list[str]:
    """The noun phrases of a picture's captions, in their order, none twice; at most so many."""
    found: dict[str, None] = {}
    for text in texts:
        for sentence in re.split(r"(?<=[.!?])\s+", text.strip().lower()):
            words = [word for word in _words(sentence) if word not in GENERIC_WORDS]
            found |= dict.fromkeys(noun_phrases(tagger(words), limit)) if words else {}
    return list(found)[:limit]


def noun_phrases(tagged: Sequence[Tagged], limit: int = MAX_PHRASES) -> list[str]:
    """The first noun phrases of tagged words in lower case; generic words do not part their neighbours."""
    kept = [(word, part) for word, part in tagged if word not in GENERIC_WORDS]
    chunks = _chunker().parse(kept).subtrees(lambda tree: tree.label() == "NP") if kept else []
    phrases = ([word for word, _ in chunk.leaves()] for chunk in chunks)
    return [" ".join(words) for words in phrases if not STOP_WORDS.issuperset(words)][:limit]


def tagger_named(name: Literal["nltk", "textblob"]) -> Tagger:
    """A tagger of one of the libraries.

    Raises:
        ImportError: the extra is not installed.
        ValueError: NLTK's data are not here; says how to come by them.
    """
    return _nltk_tagger() if name == "nltk" else _textblob_tagger()


def _nltk_tagger() -> Tagger:
    tag = _library("nltk").pos_tag
    try:
        tag(["word"])
    except LookupError:
        raise ValueError(
            "NLTK's tagger needs data that are not here. Download them (`python -m nltk.downloader "
            "averaged_perceptron_tagger_eng`), let NLTK_DATA name a folder that has them, or take the tagger "
            "`textblob`, which needs none."
        ) from None
    return tag


def _textblob_tagger() -> Tagger:
    tag = _library("textblob.en").tag
    # It reads one line of words with blanks between them, and gives some signs other names: the words stay ours.
    return lambda words: [
        (word, part) for word, (_, part) in zip(words, tag(" ".join(words), tokenize=False), strict=True)
    ]


def _words(sentence: str) -> list[str]:
    return _library("nltk.tokenize").NLTKWordTokenizer().tokenize(sentence)


@lru_cache
def _chunker() -> Any:
    return _library("nltk").RegexpParser(GRAMMAR)


@lru_cache
def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError("Noun phrases need an extra: install `collimate[phrases]`.") from error
