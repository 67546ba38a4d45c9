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

from jaxtyping import Float
from torch import Tensor

from collimate.checkpoints.files import CheckpointError
from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.processing import ClassLabels, Processor
from collimate.training import Classifier
from collimate_audio.augmentations import Mixup, SpectrogramMasks
from collimate_audio.beats import BEATs, BeatsHead, masked_mean
from collimate_audio.draws import noise_of, seed_step
from collimate_audio.filter_bank import FilterBank
from collimate_audio.pretraining import check_front_end
from collimate_audio.trained import trained_encoder


class AudioClassifier(Classifier):
    """An audio encoder that is fine-tuned to tell classes.

    What it was taught is part of it: `classify` and `collimate audio classify` answer with the names of `labels`, in
    whose order the outputs stand. Validation logs `metrics`, the same on any number of ranks.

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
        if label_smoothing and mixup is not None:
            raise ValueError(
                "label_smoothing belongs to the softmax of exclusive classes without mixup; the binary cross entropy "
                "has none: set it to 0."
            )
        if pretrained is not None:
            _fill(encoder, pretrained)
        if isinstance(processor, FilterBank):
            check_front_end(encoder.processor, processor, "encoder")
        super().__init__(encoder, labels, processor, "audio", head_dropout, label_smoothing)
        self.one_label = labels.exclusive and mixup is None
        self.mixup, self.masks, self.seed = mixup, masks, seed

    def new_head(self, width: int, labels: ClassLabels, dropout: float) -> BeatsHead:
        return BeatsHead(width, len(labels), labels.names, dropout)

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

    def logits(self, encoding: Encoding) -> Float[Tensor, "B K"]:
        """y of each clip; for an encoder without tokens, of its pooled vector."""
        if encoding.tokens is None:
            encoding = Encoding(encoding.pooled, encoding.pooled[:, None])
        return self.head(encoding)

    def metrics(self, scores: Float[Tensor, "N K"], targets: Float[Tensor, "N K"]) -> dict[str, float]:
        """What fine-tuned models of sound are compared by.

        Returns:
            For clips of one class each, `acc1` and `mean_per_class_recall`, which is called unweighted accuracy where
            emotions are recognized. Else `mAP`, the mean average precision over the classes that occur; `mAUC`, the
            mean area under the ROC curve; and d' = sqrt(2) Phi^-1(mAUC).
        """
        found = super().metrics(scores, targets)
        if "mAUC" in found:
            area = found["mAUC"]
            found["d_prime"] = math.sqrt(2) * NormalDist().inv_cdf(area) if 0 < area < 1 else math.nan
        return found

    # Training ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        seed_step(batch, self.seed)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return super().training_step(batch if self.mixup is None else self.mixup(batch), batch_idx)

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
