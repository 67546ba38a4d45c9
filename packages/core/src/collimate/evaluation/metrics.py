"""Metrics of classification, retrieval and paired choice: pure functions of scores and labels.

Every metric is a fraction between 0 and 1, not a percentage. In ranks, equal scores stand in their order, the first one
best: of two identical images only the first is ever found at rank 1. Each `..._metrics` function has a `..._statistic`
beside it, the same metrics as a function of sample weights, for `bootstrap.confidence_intervals`.

Definitions: LAION-AI/CLIP_benchmark, metrics/zeroshot_classification.py and zeroshot_retrieval.py.

Shape legend: N samples or images, C classes, T texts, Q queries, K keys, D width, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn.functional import normalize

from collimate.evaluation.bootstrap import Statistic, evaluate
from collimate.evaluation.label_ranking import LabelRanking

RECALLS = (1, 5, 10)
BLOCK = 2**24  # scores held at a time

Scorer = Callable[[slice, slice], Float[Tensor, "q k"]]
"""Scores of some queries against some keys."""


# Classification -------------------------------------------------------------------------------------------------


def classification_metrics(scores: Float[Tensor, "N C"], labels: Int64[Tensor, " N"]) -> dict[str, float]:
    """Accuracy of single-label classification.

    Args:
        scores: larger is likelier.
        labels: the true class of each sample.

    Returns:
        `acc1` and `acc5`, the share of samples whose class is the best or among the five best (`acc5` is NaN below
        five classes); `mean_per_class_recall`, over the classes that occur.

    Raises:
        ValueError: a label is no class, there is no sample, or a score is NaN.
    """
    return evaluate(classification_statistic(scores, labels), len(labels))


def classification_statistic(scores: Float[Tensor, "N C"], labels: Int64[Tensor, " N"]) -> Statistic:
    """`classification_metrics` as a function of sample weights."""
    classes = scores.shape[1]
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        found = f"{labels.min()} to {labels.max()}" if len(labels) else "no labels"
        raise ValueError(
            f"Labels must lie between 0 and {classes - 1}, for {classes} classes; there are {found}: name all classes."
        )
    hit_ranks = ranks(lambda rows, columns: scores[rows, columns], labels, torch.arange(classes))
    best, near = (hit_ranks < 1).float(), (hit_ranks < 5).float()

    def by_class(weights: Float[Tensor, "R N"]) -> Float[Tensor, "R C"]:
        return weights.new_zeros(len(weights), classes).index_add_(1, labels, weights)

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        total = weights.sum(1)
        recall = by_class(weights * best) / by_class(weights)  # NaN where a class does not occur
        return {
            "acc1": weights @ best / total,
            "acc5": weights @ near / total if classes >= 5 else torch.full_like(total, torch.nan),
            "mean_per_class_recall": recall.nanmean(1),
        }

    return statistic


def ranking_statistic(scores: Float[Tensor, "N C"], labels: Int64[Tensor, " N"]) -> Statistic:
    """Where the true class ranks, as the field of sounds reports it: `acc10`, `map@10`, `mean_rank`, `median_rank`.

    Ranks count from 1. `map@10` is the mean of 1 / rank over the samples, 0 for those whose rank is above 10, as in
    LAION-AI/CLAP, evaluate/eval_zeroshot_classification.py. `acc10` is NaN below ten classes.
    """
    classes = scores.shape[1]
    hit_ranks = ranks(lambda rows, columns: scores[rows, columns], labels, torch.arange(classes))

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        total = weights.sum(1)
        near = weights @ (hit_ranks < 10).float() / total
        return {
            "acc10": near if classes >= 10 else torch.full_like(total, torch.nan),
            "map@10": _mean_precision(hit_ranks, weights),
            "mean_rank": weights @ (hit_ranks + 1).float() / total,
            "median_rank": _median(hit_ranks + 1, weights),
        }

    return statistic


def per_class_recall(scores: Float[Tensor, "N C"], labels: Int64[Tensor, " N"]) -> Float[Tensor, " C"]:
    """The share of each class's samples that are classified right; NaN for a class that does not occur."""
    matrix = confusion(scores, labels).double()
    return matrix.diag() / matrix.sum(1)


def confusion(scores: Float[Tensor, "N C"], labels: Int64[Tensor, " N"]) -> Int64[Tensor, "C C"]:
    """Counts of (true class, best class)."""
    classes = scores.shape[1]
    return (labels * classes + scores.argmax(1)).bincount(minlength=classes**2).view(classes, classes)


# Several labels a sample ----------------------------------------------------------------------------------------


def multilabel_metrics(scores: Float[Tensor, "N C"], labels: Shaped[Tensor, "N C"]) -> dict[str, float]:
    """Average precision and ROC AUC of multi-label classification.

    Args:
        scores: larger is likelier.
        labels: 0 or 1.

    Returns:
        `mean_average_precision`, over all classes, one without positives counting as 0;
        `mean_average_precision_of_present`, over the classes with positives; `auroc`, the mean over the classes that
        have both positives and negatives.

    Raises:
        ValueError: scores and labels differ in shape.
    """
    return evaluate(multilabel_statistic(scores, labels), len(labels))


def multilabel_statistic(scores: Float[Tensor, "N C"], labels: Shaped[Tensor, "N C"]) -> Statistic:
    """`multilabel_metrics` as a function of sample weights."""
    if scores.shape != labels.shape:
        raise ValueError(f"The scores are {tuple(scores.shape)}, the labels {tuple(labels.shape)}.")

    rankings = _rankings(scores, labels)

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        found = [ranking(weights) for ranking in rankings]
        precisions = torch.stack([each.average_precision for each in found], 1)
        return {
            "mean_average_precision": precisions.nan_to_num(0).mean(1),
            "mean_average_precision_of_present": precisions.nanmean(1),
            "auroc": torch.stack([each.auroc for each in found], 1).nanmean(1),
        }

    return statistic


def average_precision(scores: Float[Tensor, "N C"], labels: Shaped[Tensor, "N C"]) -> Float[Tensor, " C"]:
    """For each class, the precisions at its positives' scores, each weighed by its share of the positives; 0 without.

    Equal scores are one threshold, as in scikit-learn.
    """
    once = torch.ones(1, len(labels))
    return torch.cat([ranking(once).average_precision for ranking in _rankings(scores, labels)]).nan_to_num(0)


def auroc(scores: Float[Tensor, "N C"], labels: Shaped[Tensor, "N C"]) -> Float[Tensor, " C"]:
    """For each class, the area under the ROC curve; NaN where all samples or none are positive.

    It is the share of (positive, negative) pairs that are ranked right, an equal pair counting as half.
    """
    return torch.cat([ranking(torch.ones(1, len(labels))).auroc for ranking in _rankings(scores, labels)])


def _rankings(scores: Tensor, labels: Tensor) -> list[LabelRanking]:
    return [LabelRanking(score, label) for score, label in zip(scores.T, labels.T, strict=True)]


# Retrieval ------------------------------------------------------------------------------------------------------


def retrieval_metrics(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "T D"],
    image_of_text: Int64[Tensor, " T"],
    recalls: Sequence[int] = RECALLS,
) -> dict[str, float]:
    """Retrieval by cosine in both directions; any number of texts an image, at least one.

    Args:
        image_features, text_features: need not be normalised; scores are taken in float32, some at a time.
        image_of_text: each text's image.
        recalls: the k of the recalls; k beyond the number of candidates is that number.

    Returns:
        `image_retrieval_recall@k`, the share of texts whose image is among the k best images;
        `text_retrieval_recall@k`, the share of images of whose texts one is among the k best texts;
        `image_retrieval_median_rank`, `image_retrieval_mean_rank` and the same of texts, of the best right answer, from
        1; `image_retrieval_map@10` and that of texts, the mean of 1 / rank of the best right answer, 0 above rank 10;
        `rsum`, the sum of all recalls.

    Raises:
        ValueError: an image has no text, or a text's image does not exist.
    """
    images, texts = normalize(image_features.float(), dim=-1), normalize(text_features.float(), dim=-1)
    to_images, to_texts = retrieval_ranks(
        lambda rows, columns: texts[rows] @ images[columns].T,
        lambda rows, columns: images[rows] @ texts[columns].T,
        len(images),
        image_of_text,
    )
    return evaluate(retrieval_statistic(to_images, to_texts, image_of_text, recalls), len(images))


def retrieval_ranks(
    text_to_image: Scorer, image_to_text: Scorer, images: int, image_of_text: Int64[Tensor, " T"]
) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " N"]]:
    """The rank, from 0, of each text's image, and of each image's best text.

    Args:
        text_to_image: scores of texts (rows) against images.
        image_to_text: scores of images (rows) against texts.
        images: N.
        image_of_text: each text's image.

    Raises:
        ValueError: an image has no text, or a text's image does not exist.
    """
    check_owners(images, image_of_text)
    everyone = torch.arange(images)
    return ranks(text_to_image, image_of_text, everyone), ranks(image_to_text, everyone, image_of_text)


def check_owners(images: int, image_of_text: Int64[Tensor, " T"]) -> None:
    """Refuse texts whose image does not exist, and images without a text.

    Raises:
        ValueError: says which.
    """
    if len(image_of_text) and not 0 <= int(image_of_text.min()) <= int(image_of_text.max()) < images:
        raise ValueError(f"image_of_text must lie between 0 and {images - 1}, for {images} images.")
    if missing := (image_of_text.bincount(minlength=images) == 0).nonzero().flatten().tolist():
        raise ValueError(f"{len(missing)} images have no text; the first: image {missing[0]}.")


def retrieval_statistic(
    image_ranks: Int64[Tensor, " T"],
    text_ranks: Int64[Tensor, " N"],
    image_of_text: Int64[Tensor, " T"],
    recalls: Sequence[int] = RECALLS,
    names: tuple[str, str] = ("image", "text"),
) -> Statistic:
    """Retrieval metrics as a function of the weights of images; texts are drawn with their image.

    `names` are the two sides' in the metrics.

    The candidates stay what they are: a resample changes who asks, not what is searched.
    """

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        directions = {names[0]: (image_ranks, weights[:, image_of_text]), names[1]: (text_ranks, weights)}
        found = {
            f"{name}_retrieval_recall@{k}": weight @ (rank < k).float() / weight.sum(1)
            for name, (rank, weight) in directions.items()
            for k in recalls
        }
        medians = {
            f"{name}_retrieval_median_rank": _median(rank + 1, weight) for name, (rank, weight) in directions.items()
        }
        means = {
            f"{name}_retrieval_mean_rank": weight @ (rank + 1).float() / weight.sum(1)
            for name, (rank, weight) in directions.items()
        }
        precisions = {
            f"{name}_retrieval_map@10": _mean_precision(rank, weight) for name, (rank, weight) in directions.items()
        }
        return {**found, **precisions, **medians, **means, "rsum": torch.stack(list(found.values())).sum(0)}

    return statistic


def ranks(
    scorer: Scorer, query_groups: Int64[Tensor, " Q"], key_groups: Int64[Tensor, " K"], block: int | None = None
) -> Int64[Tensor, " Q"]:
    """The rank, from 0, of the best key of each query's own group. Holds the scores of a few queries at a time.

    Args:
        scorer: scores of some queries against some keys.
        query_groups, key_groups: a key answers a query if they are of the same group.
        block: queries at a time; as many as give 2**24 scores if None.

    Raises:
        ValueError: a query has no key of its group, or a score is NaN.
    """
    place = torch.arange(len(key_groups))
    block = block or max(1, BLOCK // max(len(key_groups), 1))
    found = []
    for first in range(0, len(query_groups), block):
        rows = slice(first, min(first + block, len(query_groups)))
        scores = scorer(rows, slice(0, len(key_groups)))
        if scores.isnan().any():
            raise ValueError("There are scores that are NaN: the model's features are not finite.")
        own = query_groups[rows, None] == key_groups
        if not own.any(1).all():
            raise ValueError(f"Query {first + int((~own.any(1)).nonzero()[0])} has no key that answers it.")
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        earliest = torch.where(own & (scores == best), place, len(place)).amin(1, keepdim=True)
        found.append((scores > best).sum(1) + ((scores == best) & (place < earliest)).sum(1))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def _mean_precision(rank: Int64[Tensor, " Q"], weights: Float[Tensor, "R Q"], most: int = 10) -> Float[Tensor, " R"]:
    """The weighted mean of 1 / rank, ranks from 0 counted from 1, of those among the `most` best."""
    precision = torch.where(rank < most, 1 / (rank + 1), 0.0)
    return weights @ precision / weights.sum(1)


def _median(values: Int64[Tensor, " N"], weights: Float[Tensor, "R N"]) -> Float[Tensor, " R"]:
    """The weighted median; between two middle values, their mean."""
    values, order = values.sort()
    heaped = weights[:, order].double().cumsum(1).contiguous()
    half = heaped[:, -1:] / 2
    low, high = torch.searchsorted(heaped, half), torch.searchsorted(heaped, half, right=True)
    return (values[low] + values[high.clamp_max(len(values) - 1)]).float().flatten() / 2


# Paired choice --------------------------------------------------------------------------------------------------


def paired_accuracy(
    right: Float[Tensor, " N"], wrong: Float[Tensor, " N"], kinds: Sequence[str] | None = None
) -> dict[str, float]:
    """The share of samples whose right caption scores above the wrong one (SugarCrepe); a draw is wrong.

    Args:
        right, wrong: scores.
        kinds: what kind of pair each is, if there are kinds.

    Returns:
        `paired_accuracy`; with kinds also `paired_accuracy/<kind>` for each, and `mean_over_kinds`.
    """
    return evaluate(paired_statistic(right, wrong, kinds), len(right))


def paired_statistic(
    right: Float[Tensor, " N"], wrong: Float[Tensor, " N"], kinds: Sequence[str] | None = None
) -> Statistic:
    """`paired_accuracy` as a function of sample weights."""
    correct = (right > wrong).double()
    names = sorted(set(kinds or ()))
    own = {name: torch.tensor([kind == name for kind in kinds or ()]) for name in names}

    def statistic(weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
        weights = weights.double()
        found = {"paired_accuracy": weights @ correct / weights.sum(1)}
        if not names:
            return found
        each = {
            f"paired_accuracy/{name}": weights[:, own[name]] @ correct[own[name]] / weights[:, own[name]].sum(1)
            for name in names
        }  # NaN where a resample has none of a kind
        return found | {"mean_over_kinds": torch.stack(list(each.values())).nanmean(0)} | each

    return statistic


def winoground_metrics(scores: Float[Tensor, "N 2 2"]) -> dict[str, float]:
    """Text, image and group score (Thrush et al. 2022, arXiv 2204.03162, section 3).

    Args:
        scores: of image i with caption j; caption i belongs to image i.
    """
    own, other = scores.diagonal(dim1=1, dim2=2), scores.flip(2).diagonal(dim1=1, dim2=2)
    text: Bool[Tensor, " N"] = (own > other).all(1)
    image = (own > other.flip(1)).all(1)
    found = {"text_score": text, "image_score": image, "group_score": text & image}
    return {name: value.double().mean().item() for name, value in found.items()}
