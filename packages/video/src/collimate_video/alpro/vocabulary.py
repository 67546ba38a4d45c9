"""`collimate video entities`: the nouns of a corpus of captions, the most frequent first.

The vocabulary of prompting entity modelling, Li et al. 2022, arXiv 2112.09583, section 3.3: the 1000 most frequent
nouns of the captions of pre-training, by a tagger of parts of speech.

Departure: counted are the last words of noun phrases (`collimate.data.phrases`), once a caption. So generic words of
the web are none, and in `a dog house` the house counts, and not the dog.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from collimate.console import say
from collimate.data import open_source
from collimate.data.captions import captions_of
from collimate.data.decoding import Undecodable
from collimate.data.files import write_atomically
from collimate.data.phrases import Tagger, queries, tagger_named
from collimate.data.source import CorruptSample, Source

ALL_PHRASES = 1000  # ours: of one caption, more than any has


def entities(
    data: str,
    output: str,
    count: int = 1000,
    tagger: Literal["nltk", "textblob"] = "nltk",
    limit: int | None = None,
) -> None:
    """Write the most frequent nouns of captions, a line each with how often they occur. Needs `collimate[phrases]`.

    Nothing but captions is read of shards and tables. Samples without a usable caption are counted and left out.

    Args:
        data: any source of samples with captions, such as `shards` or `train.jsonl`.
        output: the file.
        count: so many nouns. The paper's 1000 unless given.
        tagger: of parts of speech: NLTK's, which needs data that it downloads; or TextBlob's, which needs none and errs
            more often.
        limit: look at the first so many samples; all if not given.

    Raises:
        ValueError: there is no noun in them.
    """
    source = open_source(data)
    left_out = Counter[str]()
    texts = _texts(source, min(len(source), limit or len(source)), left_out)
    found = nouns(texts, tagger_named(tagger)).most_common(count)
    if not found:
        raise ValueError(f"No caption of {source.name} has a noun; left out: {dict(left_out) or 'none'}.")
    write_atomically(Path(output), "".join(f"{noun} {number}\n" for noun, number in found).encode())
    said = "".join(f"\nLeft out: {number} samples: {reason}" for reason, number in left_out.most_common())
    say(f"{len(found)} nouns, from {found[0][0]} ({found[0][1]}) to {found[-1][0]} ({found[-1][1]}): {output}{said}")


def nouns(texts: Iterable[str], tagger: Tagger) -> Counter[str]:
    """How many of the texts have each noun: the last words of noun phrases, where they are letters."""
    counts = Counter[str]()
    for text in texts:
        last = {phrase.split()[-1] for phrase in queries([text], tagger, ALL_PHRASES)}
        counts.update(word for word in last if word.isalpha() and len(word) > 1)
    # Equal counts in alphabetical order, so that the file is the same for the same captions in any order.
    return Counter(dict(sorted(counts.items())))


def _texts(source: Source, count: int, left_out: Counter[str]) -> Iterator[str]:
    for index in range(count):
        try:
            captions = captions_of(source.peek(index, ("txt", "captions.json")))
        except (CorruptSample, Undecodable) as error:
            left_out[error.reason] += 1
            continue
        yield from dict.fromkeys(caption.text for caption in captions)
