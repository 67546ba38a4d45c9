"""Supervised classification: an encoder and a linear classifier of what it pools.

With h the pooled vector of a sample, its logits are y = W h + b, taught by the cross entropy of softmax(y) where a
sample has exactly one class, by the binary cross entropy of sigmoid(y) where it may have several.

It is the baseline that pre-training is measured against, and what fine-tunes a pre-trained encoder.

Shape legend: B samples, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from collimate import distributed
from collimate.distributed import Group
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.evaluation.metrics import classification_metrics, multilabel_metrics
from collimate.processing import ClassLabels, Processor
from collimate.training.method import Method


def one_label_loss(
    logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], label_smoothing: float = 0.0, group: Group = None
) -> Float[Tensor, ""]:
    """Softmax cross entropy, the mean over the samples of all ranks.

    Args:
        targets: of each sample the one class, as 0 and 1.
        label_smoothing: the share of the target that all classes share.
    """
    return _mean(functional.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none"), group)


def several_labels_loss(
    logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], group: Group = None
) -> Float[Tensor, ""]:
    """Binary cross entropy with the sigmoid, the mean over classes and over the samples of all ranks.

    Args:
        targets: between 0 and 1, as of mixed samples.
    """
    return _mean(functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1), group)


class Classifier(Method):
    """An encoder that is taught to tell classes.

    What it was taught is part of it: `classify` and the command of that name answer with the names of `labels`, in
    whose order the outputs stand. Validation logs `metrics`, the same on any number of ranks.

    Args:
        encoder: what is trained; `collimate.encoders.Frozen` around a trained one for a linear probe.
        labels: the classes. If they are `exclusive`, each sample has exactly one.
        processor: how samples become the encoder's input.
        modality: what the samples are.
        head_dropout: of the pooled vector before the classifier.
        label_smoothing: of the cross entropy of exclusive classes.

    Raises:
        ValueError: labels are to be smoothed where the loss is the binary one.
    """

    def __init__(
        self,
        encoder: Encoder,
        labels: ClassLabels,
        processor: Processor,
        modality: str = "image",
        head_dropout: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities, self.label_smoothing = (modality,), label_smoothing
        self.one_label = labels.exclusive
        if label_smoothing and not self.one_label:
            raise ValueError("label_smoothing belongs to the softmax of exclusive classes: set it to 0.")
        self.processors = {modality: processor, "labels": labels}
        self.encoders = nn.ModuleDict({modality: encoder})
        self.head: nn.Module = self.new_head(encoder.width, labels, head_dropout)
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []

    def new_head(self, width: int, labels: ClassLabels, dropout: float) -> nn.Module:
        """From (B, D) to logits (B, K), or whatever `logits` reads."""
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, len(labels)))

    @property
    def judged(self) -> str:
        """What answers are read off: the modality, or the name of a joint one."""
        return self.modalities[0]

    @property
    def labels(self) -> ClassLabels:
        """What the outputs stand for."""
        return self.processors["labels"]  # type: ignore[return-value]

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The logits of each sample, (B, K)."""
        (modality,) = self.modalities
        return {"logits": self.logits(self.encode(modality, batch[modality]))}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        logits, targets = embeddings["logits"], batch["labels"].float()
        best = logits.argmax(1, keepdim=True)
        self.statistics = {"best class/right": (targets.gather(1, best) > 0).float().mean()}
        if self.one_label:
            return {"classification": one_label_loss(logits, targets, self.label_smoothing)}
        return {"classification": several_labels_loss(logits, targets)}

    def logits(self, encoding: Encoding) -> Float[Tensor, "B K"]:
        """y of each sample."""
        return self.head(encoding.pooled)

    def probabilities(self, encoding: Encoding) -> Float[Tensor, "B K"]:
        """Of each class; those of exclusive classes sum to 1."""
        logits = self.logits(encoding).float()
        return logits.softmax(1) if self.labels.exclusive else logits.sigmoid()

    def metrics(self, scores: Float[Tensor, "N K"], targets: Float[Tensor, "N K"]) -> dict[str, float]:
        """What models of one modality are compared by.

        Returns:
            For samples of one class each, `acc1` and `mean_per_class_recall`; else `mAP`, the mean average precision
            over the classes that occur, and `mAUC`, the mean area under the ROC curve.
        """
        if self.labels.exclusive:
            found = classification_metrics(scores, targets.argmax(1))
            return {name: found[name] for name in ("acc1", "mean_per_class_recall")}
        found = multilabel_metrics(scores, targets)
        return {"mAP": found["mean_average_precision_of_present"], "mAUC": found["auroc"]}

    @torch.inference_mode()
    def classify(self, samples: Sequence[Any], top: int = 5) -> list[dict[str, float]]:
        """The likeliest classes of samples with their probabilities, the best first.

        Args:
            samples: whatever the processor takes, such as paths.
            top: how many classes of each.
        """
        from collimate.evaluation.features import evaluating

        (modality,) = self.modalities
        with evaluating(self):
            found = self.probabilities(self.encode(modality, samples)).cpu()
        best = found.topk(min(top, found.shape[1]))
        return [
            {self.labels.names[number]: value for number, value in zip(numbers, values, strict=True)}
            for numbers, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    # Validation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        embeddings, valid = self._embeddings(batch), batch["valid"]
        self._validated.append((embeddings["logits"].float()[valid], batch["labels"][valid], batch["index"][valid]))
        return {"embeddings": embeddings}

    def on_validation_epoch_end(self) -> None:
        logits, targets, index = (torch.cat(rows) for rows in zip(*self._validated, strict=True))
        self._validated.clear()
        logits, targets = (distributed.gather_ordered(rows, index) for rows in (logits, targets))
        if not len(logits):
            return
        terms = self._terms({"logits": logits}, {"labels": targets})
        found = {**terms, **self.metrics(logits.cpu(), targets.cpu())}
        self.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=False)


def _mean(each: Float[Tensor, " B"], group: Group) -> Float[Tensor, ""]:
    """The mean over the samples of all ranks, as the mean over ranks of what each returns."""
    return each.sum() * distributed.global_share(distributed.row_counts(each, group))
