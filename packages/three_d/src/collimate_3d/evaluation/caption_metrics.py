"""Captions against references: BLEU, ROUGE-L, CIDEr-D and a METEOR of exact words.

The first three are those of coco-caption (Chen et al. 2015, arXiv 1504.00325), number by number, as captions of images
and of 3D objects are reported; torchmetrics' BLEU and ROUGE-L smooth and weigh otherwise. Texts are split at spaces:
whoever wants them in lower case, or marks apart, does so before.

- BLEU-n (Papineni et al. 2002): counts clipped by the largest of any reference, the nearest reference length.
- ROUGE-L (Lin 2004): beta 1.2, of the best precision and the best recall, each over all references.
- CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726): document frequencies come from the references of this very set, so
  that a score depends on all of it; 10 is a perfect caption, which papers write as 1000.
- METEOR (Banerjee and Lavie 2005) knows stems and synonyms; here only equal words match, so that it stands beside no
  published number.

Scan2Cap (Chen et al. 2021, arXiv 2012.02206) reports m@k: a caption counts as empty where the box it was written for
overlaps the annotated one by less than k.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TINY, SMALL = 1e-15, 1e-9  # coco-caption, bleu_scorer.py
ROUGE_BETA = 1.2
CIDER_SIGMA, CIDER_SCALE = 6.0, 10.0
ORDERS = 4  # BLEU and CIDEr go up to n-grams of so many words
METEOR_RECALL, METEOR_PENALTY = 9.0, 0.5  # Banerjee and Lavie, section 2.2

Gram = tuple[str, ...]


@dataclass(frozen=True)
class CaptionScores:
    """The metrics of a set of captions.

    Attributes:
        metrics: `BLEU-1` to `BLEU-4`, of the whole set together, and `ROUGE-L`, `CIDEr`, `METEOR (exact)`, means.
        each: the same of every caption, in the order in which they were given.
    """

    metrics: dict[str, float]
    each: dict[str, list[float]]


def caption_scores(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """All metrics of a set.

    Args:
        captions: id -> the caption; it may be empty.
        references: id -> one or several texts, for the same ids.

    Raises:
        ValueError: there are none, the ids differ, or one has no reference.
    """
    if not captions or captions.keys() != references.keys():
        differing = sorted(captions.keys() ^ references.keys())[:3]
        raise ValueError(f"Captions and references are of the same things; these are not in both: {differing}.")
    if empty := [name for name, texts in references.items() if not texts or isinstance(texts, str)]:
        raise ValueError(f"References are a list of texts for each caption; {empty[0]!r} has none.")
    said = [caption.split() for caption in captions.values()]
    wanted = [[text.split() for text in references[name]] for name in captions]
    bleu, bleu_each = _bleu(said, wanted)
    each = {f"BLEU-{order + 1}": scores for order, scores in enumerate(bleu_each)}
    each["ROUGE-L"] = [rouge_l(*pair) for pair in zip(said, wanted, strict=True)]
    each["CIDEr"] = _cider(said, wanted)
    each["METEOR (exact)"] = [
        max(meteor_exact(one, text) for text in texts) for one, texts in zip(said, wanted, strict=True)
    ]
    metrics = {name: sum(scores) / len(scores) for name, scores in each.items()}
    metrics |= {f"BLEU-{order + 1}": score for order, score in enumerate(bleu)}
    return CaptionScores(metrics, each)


def scores_at_overlap(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    overlaps: Mapping[str, float],
    least: float,
    marked: bool = True,
) -> CaptionScores:
    """Scan2Cap's m@k: captions of boxes that lie elsewhere count as empty; the mean runs over all annotated objects.

    Args:
        captions: id of an annotated object -> what was said of the box assigned to it; ids that lack are empty.
        references: of every annotated object.
        overlaps: id -> the overlap of the two boxes; 0 where it lacks.
        least: k.
        marked: whether texts stand between `sos` and `eos`, as in the official evaluation, which raises all metrics.
    """

    def mark(text: str) -> str:
        return f"sos {text} eos" if marked else text

    said = {
        name: mark(captions[name]) if name in captions and overlaps.get(name, 0) >= least else "" for name in references
    }
    return caption_scores(said, {name: [mark(text) for text in texts] for name, texts in references.items()})


def rouge_l(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption."""
    common = [_longest_common(caption, reference) for reference in references]
    precision = max((found / len(caption) for found in common if caption), default=0.0)
    recall = max(
        (found / len(reference) for found, reference in zip(common, references, strict=True) if reference), default=0.0
    )
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def meteor_exact(caption: Sequence[str], reference: Sequence[str]) -> float:
    """METEOR with equal words alone: harmonic mean of precision and nine times recall, less for words out of order.

    Words are matched in runs, the longest run first, which finds few chunks, if not always the fewest.
    """
    free_said, free_wanted = [True] * len(caption), [True] * len(reference)
    matches = chunks = 0
    while run := _longest_run(caption, reference, free_said, free_wanted):
        start, other, length = run
        for step in range(length):
            free_said[start + step] = free_wanted[other + step] = False
        matches, chunks = matches + length, chunks + 1
    if not matches:
        return 0.0
    precision, recall = matches / len(caption), matches / len(reference)
    mean = (1 + METEOR_RECALL) * precision * recall / (recall + METEOR_RECALL * precision)
    return mean * (1 - METEOR_PENALTY * (chunks / matches) ** 3)


# The metrics' parts -----------------------------------------------------------------------------------------------


def _grams(words: Sequence[str]) -> Counter[Gram]:
    """Every n-gram of up to four words, with its count."""
    return Counter(
        tuple(words[at : at + order]) for order in range(1, ORDERS + 1) for at in range(len(words) - order + 1)
    )


def _bleu(
    said: Sequence[Sequence[str]], wanted: Sequence[Sequence[Sequence[str]]]
) -> tuple[list[float], list[list[float]]]:
    """BLEU-1 to BLEU-4 of the whole, and each of every caption."""
    counts = [_bleu_counts(words, references) for words, references in zip(said, wanted, strict=True)]
    total = [sum(column) for column in zip(*counts, strict=True)]
    every = [_bleu_of(each) for each in counts]
    return _bleu_of(total), [list(column) for column in zip(*every, strict=True)]


def _bleu_counts(words: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """Length, reference length, and of each order the n-grams that are right and all n-grams."""
    largest: Counter[Gram] = Counter()
    for reference in references:
        largest |= _grams(reference)
    right = Counter[int]()
    for gram, count in _grams(words).items():
        right[len(gram)] += min(count, largest[gram])
    length = min((abs(len(each) - len(words)), len(each)) for each in references)[1]
    orders = range(1, ORDERS + 1)
    return [len(words), length, *(right[n] for n in orders), *(max(0, len(words) - n + 1) for n in orders)]


def _bleu_of(counts: Sequence[int]) -> list[float]:
    length, wanted = counts[:2]
    right, all_of = counts[2 : 2 + ORDERS], counts[2 + ORDERS :]
    ratio = (length + TINY) / (wanted + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(ORDERS):
        product *= (right[order] + TINY) / (all_of[order] + SMALL)
        scores.append(product ** (1 / (order + 1)) * brevity)
    return scores


def _cider(said: Sequence[Sequence[str]], wanted: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of each caption."""
    frequency: Counter[Gram] = Counter()
    for references in wanted:
        frequency.update({gram for reference in references for gram in _grams(reference)})
    size = math.log(len(said))

    def weighted(words: Sequence[str]) -> tuple[dict[int, dict[Gram, float]], dict[int, float]]:
        vectors: dict[int, dict[Gram, float]] = defaultdict(dict)
        for gram, count in _grams(words).items():
            vectors[len(gram)][gram] = count * (size - math.log(max(1.0, frequency[gram])))
        return vectors, {n: math.sqrt(sum(value**2 for value in vector.values())) for n, vector in vectors.items()}

    scores = []
    for words, references in zip(said, wanted, strict=True):
        vectors, norms = weighted(words)
        total = 0.0
        for reference in references:
            other, other_norms = weighted(reference)
            apart = max(0, len(words) - 1) - max(0, len(reference) - 1)  # the official length: how many bigrams
            penalty = math.exp(-(apart**2) / (2 * CIDER_SIGMA**2))
            for order, vector in vectors.items():
                both = norms[order] * other_norms.get(order, 0.0)
                shared = sum(
                    min(value, other[order].get(gram, 0.0)) * other[order].get(gram, 0.0)
                    for gram, value in vector.items()
                )
                total += shared / both * penalty if both else 0.0
        scores.append(CIDER_SCALE * total / ORDERS / len(references))
    return scores


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for at, each in enumerate(other, 1):
            kept = lengths[at]
            lengths[at] = before + 1 if word == each else max(lengths[at], lengths[at - 1])
            before = kept
    return lengths[-1]


def _longest_run(
    one: Sequence[str], other: Sequence[str], free: Sequence[bool], other_free: Sequence[bool]
) -> tuple[int, int, int] | None:
    """Where the longest run of equal free words begins in each, and how long it is."""
    best: tuple[int, int, int] | None = None
    for start in range(len(one)):
        for at in range(len(other)):
            length = 0
            while (
                start + length < len(one)
                and at + length < len(other)
                and free[start + length]
                and other_free[at + length]
                and one[start + length] == other[at + length]
            ):
                length += 1
            if length and (best is None or length > best[2]):
                best = (start, at, length)
    return best
