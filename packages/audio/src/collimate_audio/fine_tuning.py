"""Fine-tuning on labelled sound: an audio encoder and a linear classifier of its tokens.

Chen et al. 2023, BEATs, arXiv 2212.09058, section 3.4: h_t the tokens of a clip that are no padding, its logits are

    y = mean_t (W h_t + b),

taught by the cross entropy of softmax(y) where a clip has exactly one class, by the binary cross entropy of sigmoid(y)
where it may have several, or where clips are mixed.

The paper does not publish its code for this, nor all of its settings; recipes name the source of each number. Where it
multiplies gradients by r before each layer, `optimization.layer_decay` here gives layers learning rates of their own:
Adam divides by a gradient's size, and so undoes the former.

Shape legend: B clips, N samples, F frames, M mel bands, L tokens, D width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from collimate import distributed
from collimate.checkpoints.files import CheckpointError
from collimate.distributed import Group
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.evaluation.metrics import classification_metrics, multilabel_metrics
from collimate.processing import ClassLabels, Processor
from collimate.training import Method
from collimate_audio.augmentations import Mixup, SpectrogramMasks
from collimate_audio.beats import BEATs, BeatsHead, masked_mean
from collimate_audio.draws import noise_of, seed_step
from collimate_audio.filter_bank import FilterBank
from collimate_audio.pretraining import check_front_end
from collimate_audio.trained import trained_encoder


def one_label_loss(
    logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], label_smoothing: float = 0.0, group: Group = None
) -> Float[Tensor, ""]:
    """Softmax cross entropy, the mean over the clips of all ranks.

    Args:
        targets: of each clip the one class, as 0 and 1.
        label_smoothing: the share of the target that all classes share.
    """
    return _mean(functional.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none"), group)


def several_labels_loss(
    logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], group: Group = None
) -> Float[Tensor, ""]:
    """Binary cross entropy with the sigmoid, the mean over classes and over the clips of all ranks.

    Args:
        targets: between 0 and 1, as of mixed clips.
    """
    return _mean(functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1), group)


def sound_metrics(scores: Float[Tensor, "N K"], targets: Float[Tensor, "N K"], exclusive: bool) -> dict[str, float]:
    """What fine-tuned models are compared by.

    Returns:
        For clips of one class each, `acc1` and `mean_per_class_recall`, which is called unweighted accuracy where
        emotions are recognized. Else `mAP`, the mean average precision over the classes that occur; `mAUC`, the mean
        area under the ROC curve; and d' = sqrt(2) Phi^-1(mAUC).
    """
    if exclusive:
        found = classification_metrics(scores, targets.argmax(1))
        return {name: found[name] for name in ("acc1", "mean_per_class_recall")}
    found = multilabel_metrics(scores, targets)
    area = found["auroc"]
    d_prime = math.sqrt(2) * NormalDist().inv_cdf(area) if 0 < area < 1 else math.nan
    return {"mAP": found["mean_average_precision_of_present"], "mAUC": area, "d_prime": d_prime}


class AudioClassifier(Method):
    """An audio encoder that is fine-tuned to tell classes.

    What it was taught is part of it: `classify` and `collimate audio classify` answer with the names of `labels`, in
    whose order the outputs stand. Validation logs `sound_metrics`, the same on any number of ranks.

    Args:
        encoder: what is fine-tuned, with the dropout of this training; `collimate.encoders.Frozen` around
            `collimate_audio.trained_encoder` for a linear probe.
        labels: the classes. If they are `exclusive`, each clip has exactly one.
        processor: how sounds become the encoder's input.
        head_dropout: of the tokens before the classifier.
        label_smoothing: of the cross entropy of exclusive classes.
        mixup: mixes clips of a batch; the loss then is the binary cross entropy in any case.
        masks: hides frames and bands.
        seed: of the draws.
        pretrained: where the weights of a BEATs come from, as `trained_encoder` takes it: a folder, a .ckpt, or a
            published .pt. What is saved has its weights beside it, and does not need this again.

    Raises:
        CheckpointError: the pre-trained encoder is of other sizes.
        ValueError: labels are to be smoothed where the loss is the binary one; or the encoder was trained with another
            front end.
    """

    modalities = ("audio",)

    def __init__(
        self,
        encoder: Encoder,
        labels: ClassLabels,
        processor: Processor,
        head_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        mixup: Mixup | None = None,
        masks: SpectrogramMasks | None = None,
        seed: int = 0,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        self.one_label = labels.exclusive and mixup is None
        if label_smoothing and not self.one_label:
            raise ValueError(
                "label_smoothing belongs to the softmax of exclusive classes without mixup; the binary cross entropy "
                "has none: set it to 0."
            )
        if pretrained is not None:
            _fill(encoder, pretrained)
        if isinstance(processor, FilterBank):
            check_front_end(encoder.processor, processor, "encoder")
        self.processors = {"audio": processor, "labels": labels}
        self.encoders = nn.ModuleDict({"audio": encoder})
        self.head = BeatsHead(encoder.width, len(labels), labels.names, head_dropout)
        self.label_smoothing, self.mixup, self.masks, self.seed = label_smoothing, mixup, masks, seed
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def labels(self) -> ClassLabels:
        """What the outputs stand for."""
        return self.processors["labels"]  # type: ignore[return-value]

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        encoding = self.encoders[modality](inputs, mask)
        if encoding.tokens is None:
            return encoding
        return encoding.replace(pooled=masked_mean(encoding.tokens, encoding.mask))

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The logits of each clip, (B, K); in training, of its filter bank with masks.

        Args:
            batch: `audio`, (B, N); and, where masks are to be certain ones, `mask_noise`, (B, masks, 2).
        """
        processor, audio = self.processors["audio"], batch["audio"]
        frames, bank = processor.mask(audio), processor.finish(audio)
        if self.training and self.masks is not None:
            noise = batch.get("mask_noise")
            noise = noise_of(batch, self.seed, bank, *self.masks.draws) if noise is None else noise
            bank = self.masks(bank, frames, noise)
        return {"logits": self.logits(self("audio", bank, frames))}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        logits, targets = embeddings["logits"], batch["labels"].float()
        best = logits.argmax(1, keepdim=True)
        self.statistics = {"best class/right": (targets.gather(1, best) > 0).float().mean()}
        if self.one_label:
            return {"classification": one_label_loss(logits, targets, self.label_smoothing)}
        return {"classification": several_labels_loss(logits, targets)}

    def logits(self, encoding: Encoding) -> Float[Tensor, "B K"]:
        """y of each clip; for an encoder without tokens, of its pooled vector."""
        if encoding.tokens is None:
            encoding = Encoding(encoding.pooled, encoding.pooled[:, None])
        return self.head(encoding)

    def probabilities(self, encoding: Encoding) -> Float[Tensor, "B K"]:
        """Of each class; those of exclusive classes sum to 1."""
        logits = self.logits(encoding).float()
        return logits.softmax(1) if self.labels.exclusive else logits.sigmoid()

    @torch.inference_mode()
    def classify(self, sounds: Sequence[Any], top: int = 5) -> list[dict[str, float]]:
        """The likeliest classes of sounds with their probabilities, the best first.

        Args:
            sounds: whatever the processor takes: paths, bytes, waveforms with their rates.
            top: how many classes of each.
        """
        from collimate.evaluation.features import evaluating

        with evaluating(self):
            found = self.probabilities(self.encode("audio", sounds)).cpu()
        best = found.topk(min(top, found.shape[1]))
        return [
            {self.labels.names[number]: value for number, value in zip(numbers, values, strict=True)}
            for numbers, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    # Training ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        seed_step(batch, self.seed)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return super().training_step(batch if self.mixup is None else self.mixup(batch), batch_idx)

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
        found = {**terms, **sound_metrics(logits.cpu(), targets.cpu(), self.labels.exclusive)}
        self.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=False)

    @classmethod
    def from_official(
        cls, checkpoint: str | PathLike[str] | Mapping[str, Any], other_names: Sequence[str] | None = None
    ) -> AudioClassifier:
        """A published fine-tuned checkpoint of BEATs, with its head and its classes in their own order.

        Args:
            checkpoint: the file, or the dictionary that it holds.
            other_names: what the classes are called besides the checkpoint's MIDs.

        Raises:
            CheckpointError: it is damaged, not of BEATs, or not fine-tuned.
        """
        encoder, head = BEATs.from_official(checkpoint), BeatsHead.from_official(checkpoint)
        names = head.labels or [str(number) for number in range(head.predictor.out_features)]
        model = cls(encoder, ClassLabels(names, other_names), FilterBank(), head.dropout.p)
        model.head.load_state_dict(head.state_dict())
        return model.eval()


def _fill(encoder: Encoder, source: str) -> None:
    """Give an encoder the weights and the front end of a trained one."""
    trained = trained_encoder(source)
    try:
        encoder.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        sizes = {name: value for name, value in trained.config()["init_args"].items() if isinstance(value, int)}
        raise CheckpointError(
            f"{source} is of other sizes than the encoder of the recipe. It is BEATs with "
            f"{', '.join(f'{name} {value}' for name, value in sizes.items() if not isinstance(value, bool))}: give the "
            f"encoder these. ({str(error).splitlines()[-1].strip()})"
        ) from error
    encoder.processor = trained.processor


def _mean(each: Float[Tensor, " B"], group: Group) -> Float[Tensor, ""]:
    """The mean over the clips of all ranks, as the mean over ranks of what each returns."""
    return each.sum() * distributed.global_share(distributed.row_counts(each, group))
