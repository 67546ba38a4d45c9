"""Probes: how well classes can be read from frozen features, by a linear classifier and by neighbours.

Shape legend: N training samples, M test samples, C classes, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss, normalize

from collimate.configurable import build
from collimate.data import Source, class_names
from collimate.encoders import Encoder
from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.classification import ClassificationResult
from collimate.evaluation.features import Features, Model, Precision, encoder_of, extract, modality_of, other_modality
from collimate.evaluation.metrics import classification_statistic
from collimate.training import Method

Scaling = Literal["standardize", "normalize", "none"]
Kind = Literal["linear", "knn"]
AnyModel = TypeVar("AnyModel", bound=Model)

PENALTIES = np.logspace(-6, 2, 97)  # CLIP_benchmark, linear_probe.py: every 16th first, then halving steps
COARSE = 16
MAX_ITERATIONS = 1000  # Radford et al. 2021, appendix A.3
NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO, Caron et al. 2021, arXiv 2104.14294
HELD_OUT = 0.2  # ours: the share of the training samples that chooses the penalty where there is no validation set


def evaluate_probe(
    model: Model,
    train: Source,
    test: Source,
    modality: str | None = None,
    kinds: Sequence[Kind] = ("linear", "knn"),
    scaling: Scaling = "standardize",
    projected: bool = False,
    shots: Sequence[int] = (),
    random_encoder: bool = True,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    windows: int = 1,
) -> ClassificationResult:
    """Probe a frozen encoder on labelled data.

    Args:
        model: an encoder, or a method, of which the modality's encoder is taken.
        train: samples with labels.
        test: samples with labels, of the same classes.
        modality: which encoder of a method; the first that is not text unless given.
        kinds: `linear`, `knn`.
        scaling: of the features, before the linear probe.
        projected: probe the method's joint space instead of its encoder.
        shots: also probe linearly with so many training samples a class, five draws each.
        random_encoder: probe the same encoder with fresh random weights too, the row that training must beat.
        batch_size: of each rank.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders.
        limit: at most so many samples of each, spread over the data.
        resamples: of the bootstrap intervals.
        seed: of splits and random weights.
        windows: of samples that are longer than the encoder's input, the mean over so many windows.

    Returns:
        `linear/acc1`, `knn/acc1`, `random/linear/acc1`..., and the same of `acc5` and `mean_per_class_recall`.

    Raises:
        ValueError: the two sets do not have the same class names, or there is only one class.
    """
    if (names := class_names(test)) != class_names(train):
        raise ValueError(f"{train.name} and {test.name} differ in their class names, so labels mean different things.")
    modality = modality or (other_modality(model) if isinstance(model, Method) else modality_of(model))
    probed = model if projected else encoder_of(model, modality)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "device": device,
        "precision": precision,
        "limit": limit,
        "windows": windows,
    }
    rows = {"": probed}
    if random_encoder and isinstance(probed, Encoder):
        rows["random/"] = randomized(probed, seed)
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    notes: dict[str, Any] = {}
    answers: dict[str, Tensor] = {}
    tested: dict[str, Features] = {}
    for row, encoder in rows.items():
        fitted = extract(encoder, train, [modality], ["label"], **options)
        tested[row] = extract(encoder, test, [modality], ["label"], **options)
        features, labels = fitted.encodings[modality].pooled, fitted.extras["label"]
        test_features, test_labels = tested[row].encodings[modality].pooled, tested[row].extras["label"]
        classes = len(names) if names else max(int(labels.max()), int(test_labels.max())) + 1
        for kind in kinds:
            if kind == "linear":
                probe = LinearProbe.fit_best(features, labels, classes, scaling, seed=seed)
                found = probe.scores(test_features)
                notes[f"{row}linear penalty"] = f"{probe.penalty:.2g}"
            else:
                found = knn_scores(features, labels, test_features, classes)
            answers[f"{row}{kind}"] = found
            statistic = classification_statistic(found, test_labels)
            size = len(test_labels)
            metrics |= {f"{row}{kind}/{name}": value for name, value in evaluate(statistic, size).items()}
            taken = confidence_intervals(statistic, size, resamples=resamples)
            intervals |= {f"{row}{kind}/{name}": value for name, value in taken.items()}
        if not row:
            few = few_shot(features, labels, test_features, test_labels, classes, shots, scaling=scaling, seed=seed)
            notes |= {"train data": f"{train.name}, {len(labels)} samples", "width": features.shape[1]}
    protocol = {
        **tested[""].settings,
        "features": "joint space" if projected else "encoder, before the projection",
        "scaling": scaling,
        "neighbours": f"{NEIGHBOURS}, temperature {TEMPERATURE}",
        **notes,
        "intervals": f"95 %, {resamples} bootstrap resamples of test samples",
    }
    shown = list(names or map(str, range(classes)))
    first = answers[kinds[0]]
    return ClassificationResult(
        "Probes", metrics | few, intervals, protocol, first, tested[""].extras["label"], shown, tested[""], modality
    )


def randomized(model: AnyModel, seed: int = 0) -> AnyModel:
    """The same encoder or method with fresh random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build(_untrained(model.config()), trust=[type(model).__module__.split(".")[0]])
    if isinstance(model, Encoder):
        fresh.processor = model.processor
    return fresh


def _untrained(config: Any) -> Any:
    """A configuration in which nothing is pre-trained, at any depth."""
    if isinstance(config, dict):
        return {
            name: (False if isinstance(value, bool) else None) if name == "pretrained" else _untrained(value)
            for name, value in config.items()
        }
    return [_untrained(item) for item in config] if isinstance(config, list) else config


# Linear ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on scaled features.

    It minimises the mean cross-entropy + penalty / 2 * |W|^2, by L-BFGS; the bias is free.

    Attributes:
        weights: (C, D).
        bias: (C,).
        shift, scale: (D,), what is taken from the features and what they are divided by.
        normalized: whether each feature vector is first brought to length 1.
        penalty: the weight of the L2 term.
    """

    weights: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"]
    shift: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]
    normalized: bool
    penalty: float

    def scores(self, features: Float[Tensor, "M D"]) -> Float[Tensor, "M C"]:
        """Logits."""
        features = normalize(features, dim=-1) if self.normalized else features
        return ((features - self.shift) / self.scale) @ self.weights.T + self.bias

    @classmethod
    def fit(
        cls,
        features: Float[Tensor, "N D"],
        labels: Int64[Tensor, " N"],
        classes: int,
        penalty: float,
        scaling: Scaling = "standardize",
        start: LinearProbe | None = None,
    ) -> LinearProbe:
        """The probe of one penalty.

        Args:
            classes: C; classes without samples get a score below all others.
            scaling: `standardize` to mean 0 and deviation 1 in each dimension, `normalize` to length 1, or `none`.
            start: a probe of the same features to start from.

        Raises:
            ValueError: all samples are of one class.
        """
        normalized = scaling == "normalize"
        features = (normalize(features, dim=-1) if normalized else features).float()
        shift, scale = torch.zeros(features.shape[1]), torch.ones(features.shape[1])
        if scaling == "standardize":
            shift, scale = features.mean(0), features.std(0, correction=0)
            scale = torch.where(scale > 1e-6 * scale.max(), scale, 1.0)
        present = labels.unique()
        if len(present) < 2:
            raise ValueError(
                f"A probe needs samples of two classes; all {len(labels)} are of class {labels[0]}: take more data."
            )
        # With two classes scikit-learn fits one row w = w_1 - w_0, whose square is twice that of both rows together.
        strength = penalty / 2 if len(present) == 2 else penalty
        model: Any = LogisticRegression(C=1 / (strength * len(labels)), max_iter=MAX_ITERATIONS, warm_start=True)
        if start is not None:
            model.coef_, model.intercept_ = start.weights[present].numpy(), start.bias[present].numpy()
            model.classes_ = present.numpy()
            if len(present) == 2:  # scikit-learn keeps one row for two classes
                model.coef_, model.intercept_ = np.diff(model.coef_, axis=0), np.diff(model.intercept_)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # tiny penalties need not converge to be compared
            model.fit(((features - shift) / scale).numpy(), labels.numpy())
        found, intercept = (torch.as_tensor(value, dtype=torch.float32) for value in (model.coef_, model.intercept_))
        if len(present) == 2:
            found, intercept = torch.cat([-found, found]) / 2, torch.cat([-intercept, intercept]) / 2
        weights, bias = torch.zeros(classes, features.shape[1]), torch.full((classes,), -1e9)
        weights[present], bias[present] = found, intercept
        return cls(weights, bias, shift, scale, normalized, penalty)

    @classmethod
    def fit_best(
        cls,
        features: Float[Tensor, "N D"],
        labels: Int64[Tensor, " N"],
        classes: int,
        scaling: Scaling = "standardize",
        validation: tuple[Float[Tensor, "V D"], Int64[Tensor, " V"]] | None = None,
        seed: int = 0,
    ) -> LinearProbe:
        """The probe whose penalty does best on validation samples, fitted again on all samples.

        Seven penalties between 1e-6 and 1e2 are tried, then ever nearer neighbours of the best, as
        CLIP_benchmark does.

        Args:
            validation: features and labels; a fifth of each class is held out if None.
            seed: of that split.
        """
        everything, every_label = features, labels
        if validation is None:
            held = held_out(labels, HELD_OUT, seed)
            validation = features[held], labels[held]
            features, labels = features[~held], labels[~held]
        else:
            everything, every_label = torch.cat([features, validation[0]]), torch.cat([labels, validation[1]])
        tried: dict[int, tuple[float, float]] = {}
        probe: LinearProbe | None = None

        def attempt(place: int) -> None:
            nonlocal probe
            probe = cls.fit(features, labels, classes, float(PENALTIES[place]), scaling, start=probe)
            logits = probe.scores(validation[0])
            right = (logits.argmax(1) == validation[1]).double().mean().item()
            tried[place] = (right, -nll_loss(log_softmax(logits, 1), validation[1]).item())

        for place in range(len(PENALTIES) - 1, -1, -COARSE):  # from strong to weak: each starts near its solution
            attempt(place)
        step = COARSE // 2
        while step:
            best = max(tried, key=lambda place: tried[place])
            for place in (best + step, best - step):
                if 0 <= place < len(PENALTIES) and place not in tried:
                    attempt(place)
            step //= 2
        best = max(tried, key=lambda place: tried[place])
        return cls.fit(everything, every_label, classes, float(PENALTIES[best]), scaling)


def held_out(labels: Int64[Tensor, " N"], share: float, seed: int = 0) -> Tensor:
    """A mask of so large a share of each class, drawn at random; at least one sample of each class stays."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = _place_in_class(labels[order])
    sizes = labels.bincount()[labels[order]]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order] = place < (sizes * share).round().clamp(max=sizes - 1)
    return mask


def few_shot(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    test_features: Float[Tensor, "M D"],
    test_labels: Int64[Tensor, " M"],
    classes: int,
    shots: Sequence[int],
    draws: int = 5,
    scaling: Scaling = "standardize",
    seed: int = 0,
) -> dict[str, float]:
    """Linear probes with k samples a class.

    The penalty is chosen on up to four further samples a class (CoOp, Zhou et al. 2022: as many as shots, at most
    four), which the probe is not fitted on.

    Returns:
        `few_shot@k/acc1`, the mean over draws, and `few_shot@k/deviation`.

    Raises:
        ValueError: a class has fewer than k + 1 samples.
    """
    found = {}
    for k in shots:
        if (smallest := int(labels.bincount()[labels].min())) < k + 1:
            raise ValueError(f"{k} shots need {k + 1} samples of each class; one has {smallest}.")
        accuracies = []
        for draw in range(draws):
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed + draw))
            place = _place_in_class(labels[order])
            fitted, validated = order[place < k], order[(place >= k) & (place < k + min(k, 4))]
            best = LinearProbe.fit_best(
                features[fitted], labels[fitted], classes, scaling, (features[validated], labels[validated])
            ).penalty
            probe = LinearProbe.fit(features[fitted], labels[fitted], classes, best, scaling)
            accuracies.append((probe.scores(test_features).argmax(1) == test_labels).double().mean().item())
        found[f"few_shot@{k}/acc1"] = float(np.mean(accuracies))
        found[f"few_shot@{k}/deviation"] = float(np.std(accuracies))
    return found


def _place_in_class(labels: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """The how-manieth of its class each sample is."""
    order = labels.argsort(stable=True)
    firsts = labels.bincount().cumsum(0) - labels.bincount()
    place = torch.empty_like(labels)
    place[order] = torch.arange(len(labels)) - firsts[labels[order]]
    return place


# Neighbours -----------------------------------------------------------------------------------------------------


def knn_scores(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    test_features: Float[Tensor, "M D"],
    classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "M C"]:
    """Votes of the k nearest neighbours by cosine, each of weight exp(cosine / temperature).

    Wu et al. 2018, arXiv 1805.01978, section 3.4.

    Args:
        k: neighbours, cut to N.
        temperature: a small one makes the nearest of them count most.
    """
    bank = normalize(features.float(), dim=-1)
    votes = []
    for some in normalize(test_features.float(), dim=-1).split(max(1, 2**24 // len(bank))):
        cosines, nearest = (some @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = ((cosines - 1) / temperature).exp()
        votes.append(torch.zeros(len(some), classes).scatter_add_(1, labels[nearest], weights))
    return torch.cat(votes)
