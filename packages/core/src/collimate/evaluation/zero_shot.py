"""Zero-shot classification: a class is what its prompts say.

Where the score is a cosine, the normalised prompt vectors of a class are averaged and normalised again (CLIP, arXiv
2103.00020, section 3.1.4). Where a method has a score of its own, as FILIP's late interaction, there is no mean of
embeddings that it could be taken of, and the prompts' similarities are averaged.

Shape legend: N samples, C classes, P prompts of all classes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from collimate.data import Source, class_names
from collimate.encoding import Encoding
from collimate.evaluation.bootstrap import confidence_intervals, evaluate, joined
from collimate.evaluation.classification import ClassificationResult
from collimate.evaluation.features import (
    Features,
    Precision,
    encode_all,
    extract,
    is_cosine,
    other_modality,
    rows_of,
)
from collimate.evaluation.metrics import classification_statistic, ranking_statistic
from collimate.evaluation.modalities import manner_of
from collimate.evaluation.prompts import prompts
from collimate.training import Method

BLOCK = 64  # samples scored at a time, where scores need tokens


def class_vectors(
    prompt_features: Float[Tensor, "P D"], class_of_prompt: Sequence[int], classes: int
) -> Float[Tensor, "C D"]:
    """One unit vector a class: normalise, average over the class's prompts, normalise.

    Args:
        prompt_features: not normalised.
        class_of_prompt: the class of each prompt; classes may have unequally many.
        classes: C.
    """
    return normalize(class_means(normalize(prompt_features.float(), dim=-1).T, class_of_prompt, classes).T, dim=-1)


def class_means(
    prompt_scores: Float[Tensor, "N P"], class_of_prompt: Sequence[int], classes: int
) -> Float[Tensor, "N C"]:
    """The mean of each class's columns.

    Args:
        class_of_prompt: the class of each column.
        classes: C.
    """
    owner = torch.tensor(class_of_prompt)
    sums = prompt_scores.new_zeros(len(prompt_scores), classes).index_add_(1, owner, prompt_scores)
    return sums / owner.bincount(minlength=classes)


def class_scores(
    method: Method, samples: Encoding, prompts: Encoding, class_of_prompt: Sequence[int], classes: int
) -> Float[Tensor, "N C"]:
    """The score of each class for each sample; averages what the method's score allows, see above.

    Args:
        samples: N samples.
        prompts: P prompts, encoded.
        class_of_prompt: the class of each prompt.
        classes: C.
    """
    if is_cosine(method):
        prompts = Encoding(class_vectors(prompts.pooled, class_of_prompt, classes))
        return method.similarity(samples, prompts)
    device = method.device
    prompts = prompts.to(device)
    found = []
    with torch.inference_mode():
        for first in range(0, len(samples.pooled), BLOCK):
            some = rows_of(samples, slice(first, first + BLOCK)).to(device)
            found.append(class_means(method.similarity(some, prompts).float().cpu(), class_of_prompt, classes))
    return torch.cat(found)


def evaluate_zero_shot(
    method: Method,
    data: Source | Features,
    classes: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    templates: str | Sequence[str] | None = None,
    modality: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
    groups: Int64[Tensor, " N"] | None = None,
    windows: int = 1,
) -> ClassificationResult:
    """Classify a labelled data set by class names.

    Args:
        method: a method that encodes text and something else.
        data: samples with a label, or features extracted with `also=["label"]`.
        classes: names, a file of names, or class -> full texts; what the data know unless given.
        templates: the name of a set, a file, or templates; see `collimate.evaluation.prompts`. If None, the data's, or
            where they have none the modality's: `imagenet` for pictures, `sound` for sounds.
        modality: what is classified; the method's first that is not text unless given.
        batch_size: of each rank.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders.
        limit: at most so many samples, spread over the data.
        resamples: of the bootstrap intervals.
        groups: the group of each sample, such as its patient; groups are resampled instead of samples.
        windows: of samples that are longer than the encoder's input, the mean over so many windows; with 1, they are
            what the processor makes of them.

    Raises:
        ValueError: the classes are not known, or a label is none of them.
    """
    modality = modality or other_modality(method)
    found = scored(
        method, data, "label", modality, classes, templates, limit, windows, batch_size, num_workers, device, precision
    )
    labels = found.features.extras["label"]
    protocol = {
        **found.protocol,
        "intervals": f"95 %, {resamples} bootstrap resamples of {'samples' if groups is None else 'groups'}",
    }
    statistic = classification_statistic(found.scores, labels)
    if manner_of(modality).ranks:
        statistic = joined(statistic, ranking_statistic(found.scores, labels))
    metrics = evaluate(statistic, len(labels))
    intervals = confidence_intervals(statistic, len(labels), groups, resamples=resamples)
    title = "Zero-shot classification"
    return ClassificationResult(
        title, metrics, intervals, protocol, found.scores, labels, found.names, found.features, modality
    )


class Scored(NamedTuple):
    """The samples, the score of each class for each, the classes' names, and how the scores came about."""

    features: Features
    scores: Float[Tensor, "N C"]
    names: list[str]
    protocol: dict[str, Any]


def scored(
    method: Method,
    data: Source | Features,
    key: str,
    modality: str,
    classes: str | Sequence[str] | Mapping[str, Sequence[str]] | None,
    templates: str | Sequence[str] | None,
    limit: int | None = None,
    windows: int = 1,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
) -> Scored:
    """The scores of all classes for samples, and what these have under `key`; the rest as for `evaluate_zero_shot`."""
    tokens = not is_cosine(method)
    if not isinstance(data, Features):
        data = extract(
            method, data, [modality], [key], tokens, batch_size, num_workers, device, precision, limit, windows
        )
    known = class_names(data.source) if data.source is not None else None
    manner = manner_of(modality)
    own = getattr(data.source, "templates", None)
    texts = prompts(classes, templates or own or manner.templates, known, manner.spaced_names)
    flat = [text for several in texts.values() for text in several]
    owner = [place for place, several in enumerate(texts.values()) for _ in several]
    encoded = encode_all(method, "text", flat, tokens, device=device, precision=precision)
    scores = class_scores(method, data.encodings[modality], encoded, owner, len(texts))
    protocol = {
        **data.settings,
        "classes": len(texts),
        "prompts": f"{len(flat)}, such as {flat[0]!r}",
        "ensemble": "mean of similarities" if tokens else "mean of embeddings",
    }
    return Scored(data, scores, list(texts), protocol)
