"""How good a tokenizer's codes are: how evenly they are used, and what they tell of the classes of clips.

Each patch has a code z and, as its label y, the class of its clip. With the joint counts of both over all real patches,

    NMI = 2 I(y; z) / (H(y) + H(z)),    purity = sum_z max_y n(y, z) / n.

Both are between 0 and 1 and no accuracies: a patch of silence tells no class. Purity grows with the number of codes,
and is at least the share of the largest class; so compare tokenizers with equally many codes, on the same clips.

Shape legend: N clips, L patches, P real patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from collimate import distributed
from collimate.data import EvalLoader, Source
from collimate.evaluation.features import evaluating, place, progress
from collimate_audio.codebook import code_counts, perplexity
from collimate_audio.pretraining import BeatsPretraining
from collimate_audio.tokenizers import AcousticTokenizer


class Usage(NamedTuple):
    """How codes are used.

    Attributes:
        patches: how many were counted.
        perplexity: the number of codes in use, from 1 to K.
        used: the share of the codes that occur at all.
        majority: the share of the patches that have the most frequent code.
    """

    patches: int
    perplexity: float
    used: float
    majority: float


class Agreement(NamedTuple):
    """What codes tell of classes: normalised mutual information, and purity beside that of knowing nothing."""

    mutual_information: float
    purity: float
    largest_class: float


class MaskedAccuracy(NamedTuple):
    """The share of hidden patches whose label is told, beside that of always naming the most frequent label."""

    accuracy: float
    majority: float


@dataclass(frozen=True)
class Codes:
    """The codes of a labelled source.

    Attributes:
        codes: (N, L), `UNSCORED` at padding.
        labels: (N,), the class of each clip.
    """

    codes: Int64[Tensor, "N L"]
    labels: Int64[Tensor, " N"]


def usage_of(codes: Int64[Tensor, "N L"], count: int) -> Usage:
    """How evenly `count` codes are used; negative ones are padding."""
    counts = code_counts(codes, count, distributed.LOCAL)
    total = counts.sum().clamp_min(1)
    return Usage(
        int(counts.sum()), float(perplexity(counts)), float((counts > 0).float().mean()), float(counts.max() / total)
    )


def agreement(codes: Int64[Tensor, "N L"], labels: Int64[Tensor, " N"]) -> Agreement:
    """How much the codes of patches say of the classes of their clips.

    Raises:
        ValueError: nothing but padding.
    """
    real = codes >= 0
    if not bool(real.any()):
        raise ValueError("There is no patch but padding.")
    classes, found = labels[:, None].expand_as(codes)[real].numpy(), codes[real].numpy()
    joint: Any = contingency_matrix(classes, found)
    return Agreement(
        float(normalized_mutual_info_score(classes, found)),
        float(joint.max(0).sum() / joint.sum()),
        float(np.bincount(classes).max() / len(classes)),
    )


@torch.inference_mode()
def codes_of(
    tokenizer: AcousticTokenizer,
    source: Source,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    limit: int | None = None,
) -> Codes:
    """The codes of a labelled source, by a tokenizer with its processor."""
    processor: Any = tokenizer.processor
    where = place(tokenizer, device)
    loader = EvalLoader(source, {"audio": processor}, batch_size, num_workers, ["label"], limit=limit)
    codes, labels = [], []
    with evaluating(tokenizer):
        for batch in progress(loader, f"Labelling {source.name}"):
            sounds, valid = batch["audio"].to(where), batch["valid"]
            codes.append(tokenizer.labels(processor.finish(sounds), processor.mask(sounds)).cpu()[valid])
            labels.append(batch["label"][valid])
    return Codes(torch.cat(codes), torch.cat(labels))


@torch.inference_mode()
def masked_accuracy(
    method: BeatsPretraining,
    source: Source,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    limit: int | None = None,
) -> MaskedAccuracy:
    """How many hidden patches of a source a pre-trained model tells right; each clip has always the same masks.

    Args:
        method: with its tokenizer, or without, where the source brings labels.
    """
    where = place(method, device)
    loader = EvalLoader(source, method.processors, batch_size, num_workers, method.also, limit=limit)
    right, total, counts = 0, 0, torch.zeros(method.predictor.labels)
    with evaluating(method):
        for batch in progress(loader, f"Predicting {source.name}"):
            batch = {name: value.to(where) if isinstance(value, Tensor) else value for name, value in batch.items()}
            found = method.embed(batch)
            hidden = found["hidden"] & batch["valid"][:, None, None]
            labels = found["labels"][:, None].expand_as(hidden)[hidden]
            right += int((found["logits"][hidden].argmax(1) == labels).sum())
            total += len(labels)
            counts += labels.bincount(minlength=len(counts)).cpu()
    return MaskedAccuracy(right / max(total, 1), float(counts.max()) / max(total, 1))
