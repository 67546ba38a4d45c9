"""BEATs' two kinds of training: masked label prediction, and the distillation of the tokenizer that makes the labels.

Chen et al. 2023, BEATs: audio pre-training with acoustic tokenizers, arXiv 2212.09058, sections 3.2 and 3.3. Both in
turns: `collimate_audio.iterate`. The objectives stand in `collimate_audio.masked_patches` and
`collimate_audio.tokenizers`; here they meet batches, ranks and checkpoints.

Draws (masks, dropout, the start and the restart of codes) are functions of the samples' places in the stream: a run
that was stopped and goes on makes those that it would have made. Masks are the same on one rank and on many.

Shape legend: B clips, N samples, C masks of each clip, F frames, M mel bands, L patches, K labels, Q width of a code,
T width of the teacher's output.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from collimate.encoding import Encoding
from collimate.losses.masked_tokens import UNSCORED
from collimate.training import Method
from collimate_audio.beats import BEATs, BeatsHead
from collimate_audio.codebook import code_counts, perplexity
from collimate_audio.draws import noise_of, seed_step
from collimate_audio.filter_bank import FilterBank
from collimate_audio.masked_patches import MASK_RATIO, LabelPredictor, hide_patches, label_accuracy, masked_label_loss
from collimate_audio.tokenizers import AcousticTokenizer, BeatsTokenizer, Estimator, distillation_loss

LABELS, LABELLED_BY = "patch_labels", "patch_labels_by"
"""Keys of samples from `labels:<folder>`: the label of each patch, int16 (L,), and `label_key` of what made them."""


class BeatsPretraining(Method):
    """Masked label prediction: from a quarter of a clip's patches, the labels of the others are told.

    Labels come from a frozen tokenizer, which sees exactly the filter bank that the encoder sees; or, without one, with
    the samples of `labels:<folder>`, where `collimate audio tokenize` wrote them. Such labels are those of the
    unchanged beginning of each clip: they are refused under another front end, or where clips are augmented.

    Args:
        encoder: what is trained.
        predictor: of the labels; only for training.
        processor: how sounds become the encoder's input.
        tokenizer: makes the labels; None where samples bring theirs.
        mask_ratio: ρ, the share of patches that is hidden.
        masks: C; so many masks of each clip are predicted in a step, with one front end and one pass of the tokenizer.
            One in the paper.
        label_smoothing: 0 in the paper, 0.1 in ESPnet.
        in_place: patches know where in the clip they stand; not so in ESPnet, see `BEATs.visible`.
        seed: of the draws.

    Raises:
        ValueError: predictor and encoder, or predictor and tokenizer, do not fit, or the tokenizer was trained with
            another front end.
    """

    modalities = ("audio",)
    shardable = False  # its encoder reads the patches that are visible, a part at a time

    def __init__(
        self,
        encoder: BEATs,
        predictor: LabelPredictor,
        processor: FilterBank,
        tokenizer: AcousticTokenizer | None = None,
        mask_ratio: float = MASK_RATIO,
        masks: int = 1,
        label_smoothing: float = 0.0,
        in_place: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if masks < 1:
            raise ValueError(f"masks is the number of masks of each clip, at least 1; got {masks}.")
        check_predictor(predictor, encoder, tokenizer)
        if tokenizer is not None:
            check_front_end(tokenizer.processor, processor, "tokenizer")
        self.processors = {"audio": processor}
        self.encoders = nn.ModuleDict({"audio": encoder})
        self.predictor = predictor
        self.tokenizer = None if tokenizer is None else tokenizer.requires_grad_(False).eval()
        self.mask_ratio, self.masks, self.label_smoothing = mask_ratio, masks, label_smoothing
        self.in_place, self.seed = in_place, seed
        self.also = (LABELS, LABELLED_BY) if tokenizer is None else ()

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def train(self, mode: bool = True) -> BeatsPretraining:
        super().train(mode)
        if self.tokenizer is not None:
            self.tokenizer.eval()
        return self

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The logits of all patches, (B, C, L, K), which of them are scored, (B, C, L), and their labels, (B, L).

        Args:
            batch: `audio`, (B, N); where there is no tokenizer, `patch_labels`, (B, L); and, where masks are to be
                certain ones, `noise`, (B, C, L), of which the smallest numbers stay visible.
        """
        processor, encoder = self._audio
        frames, bank = processor.mask(batch["audio"]), processor.finish(batch["audio"])
        labels = self.labels(batch, bank, frames)
        real: Tensor = encoder.token_mask(bank, frames) & (labels != UNSCORED)
        noise = batch.get("noise")
        noise = noise_of(batch, self.seed, bank, self.masks, real.shape[1]) if noise is None else noise
        real, bank = real.repeat_interleave(self.masks, 0), bank.repeat_interleave(self.masks, 0)
        visible = hide_patches(noise.flatten(0, 1), real, self.mask_ratio)
        tokens = encoder.visible(bank, visible.indices, visible.mask, self.in_place)
        logits = self.predictor(tokens, visible, real)
        clones = (-1, self.masks)
        return {"logits": logits.unflatten(0, clones), "hidden": visible.hidden.unflatten(0, clones), "labels": labels}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        logits, hidden = (embeddings[name].flatten(0, 1) for name in ("logits", "hidden"))
        labels = embeddings["labels"].repeat_interleave(self.masks, 0)
        accuracy = label_accuracy(logits, labels, hidden)
        counts = code_counts(embeddings["labels"], logits.shape[2])
        self.statistics = {
            "masked/accuracy": accuracy.accuracy,
            "masked/majority": accuracy.majority,
            "labels/perplexity": perplexity(counts),
            "labels/used": (counts > 0).float().mean(),
        }
        return {"label": masked_label_loss(logits, labels, hidden, self.label_smoothing)}

    def labels(
        self, batch: dict[str, Any], bank: Float[Tensor, "B F M"], frames: Bool[Tensor, "B F"] | None
    ) -> Int64[Tensor, "B L"]:
        """The labels of a batch, from the tokenizer or the batch; what lies beyond its longest clip is left out.

        Raises:
            ValueError: the batch's were made with another front end, or are more than the predictor knows.
        """
        if self.tokenizer is not None:
            return self.tokenizer.labels(bank, frames)
        processor, encoder = self._audio
        own = label_key(processor, encoder.patch_size, self.predictor.labels)
        for made in set(batch.get(LABELLED_BY, ())) - {own}:
            raise ValueError(
                f"The labels are not for this encoder: {_difference(made, own)}. Write them anew with a tokenizer that "
                "was trained with this front end (`collimate audio tokenize`), or give the recipe their settings."
            )
        steps, bands = encoder.grid(bank)
        return batch[LABELS][:, : steps * bands].long()

    @property
    def _audio(self) -> tuple[Any, Any]:
        """The front end and the encoder."""
        return self.processors["audio"], self.encoders["audio"]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.tokenizer is None and "audio" in (getattr(self.trainer.datamodule, "augmentations", None) or {}):  # type: ignore[attr-defined]
            raise ValueError(
                "The samples' labels are those of the unchanged beginning of each clip, so data.augmentations cannot "
                "change `audio`: take it out, or give the model a tokenizer, which labels what the encoder sees."
            )

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        seed_step(batch, self.seed)


class BeatsDistillation(Method):
    """The self-distilled tokenizer: from its codes alone, an estimator is to tell what a teacher makes of each patch.

    Of the method, `encoders["audio"]` is the tokenizer. The teacher is frozen and in evaluation mode: the encoder of
    the iteration before, whose last layer is told, or, with the head that it was fine-tuned with, the logits of each
    patch.

    Codes move once with each batch of training, of all ranks together, and begin with the k-means of the first one;
    with `accumulate_grad_batches` that is several times a step. The `GradientCache` callback makes them that of the
    whole batch.

    Args:
        tokenizer: what is trained.
        teacher: what it is taught by.
        estimator: tells the teacher's output; only for training.
        processor: how sounds become the input of both.
        head: of a fine-tuned teacher, whose logits are the target then, as in the paper; ESPnet's target is always the
            last layer.
        seed: of the draws.

    Raises:
        ValueError: the parts do not fit, or one was trained with another front end.
    """

    modalities = ("audio",)

    def __init__(
        self,
        tokenizer: BeatsTokenizer,
        teacher: BEATs,
        estimator: Estimator,
        processor: FilterBank,
        head: BeatsHead | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_estimator(estimator, tokenizer, teacher, head)
        check_front_end(teacher.processor, processor, "teacher")
        check_front_end(tokenizer.processor, processor, "tokenizer")
        self.processors = {"audio": processor}
        self.encoders = nn.ModuleDict({"audio": tokenizer})
        self.estimator = estimator
        self.teacher = teacher.requires_grad_(False).eval()
        self.head = None if head is None else head.requires_grad_(False).eval()
        self.seed = seed

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def train(self, mode: bool = True) -> BeatsDistillation:
        super().train(mode)
        self.teacher.eval()
        if self.head is not None:
            self.head.eval()
        return self

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The tokenizer's vectors before they are quantized, (B, L, Q), the target, (B, L, T), and what is real."""
        processor: Any = self.processors["audio"]
        frames, bank = processor.mask(batch["audio"]), processor.finish(batch["audio"])
        vectors, real = self.encoders["audio"].encodings(bank, frames)  # type: ignore[operator]
        return {"vectors": vectors, "target": self.target(bank, frames), "real": real}

    @torch.no_grad()
    def target(self, bank: Float[Tensor, "B F M"], frames: Bool[Tensor, "B F"] | None) -> Float[Tensor, "B L T"]:
        """h of each patch."""
        tokens = self.teacher(bank, frames).tokens
        return tokens if self.head is None else self.head.token_logits(tokens)

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        quantizer: Any = self.encoders["audio"].quantize
        real = embeddings["real"]
        quantized = quantizer(embeddings["vectors"], real)
        with self.tower_precision():
            rows = {"vectors": quantized.vectors, "real": real}
            estimated = self.in_chunks(lambda part: {"o": self.estimator(part["vectors"], part["real"])}, rows)["o"]
        counts = code_counts(quantized.codes, len(quantizer.codebook))
        self.statistics = {
            "codes/perplexity": perplexity(counts),
            "codes/used": (counts > 0).float().mean(),
            "codes/lasting": perplexity(quantizer.usage),
        }
        return {
            "distillation": distillation_loss(estimated, embeddings["target"], real),
            "quantizer": quantized.loss,
        }

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        seed_step(batch, self.seed)


def label_key(processor: FilterBank, patch_size: int, codes: int) -> str:
    """What labels must agree on with the encoder that learns from them, as one line of JSON."""
    return json.dumps({**processor.config()["init_args"], "patch_size": patch_size, "codes": codes}, sort_keys=True)


def check_front_end(trained: Any, processor: FilterBank, what: str) -> None:
    """Whether a network that comes with a front end is given the same one, but for the length of clips.

    Raises:
        ValueError: it is not; says what differs.
    """
    if trained is None:
        return
    one, other = (
        json.dumps({name: value for name, value in each.config()["init_args"].items() if name != "seconds"})
        for each in (trained, processor)
    )
    if one != other:
        raise ValueError(
            f"The {what} was trained with another front end: {_difference(one, other)}. Give the method's processor "
            f"the {what}'s settings."
        )


def check_predictor(predictor: LabelPredictor, encoder: BEATs, tokenizer: AcousticTokenizer | None) -> None:
    """Raises:
    ValueError: encoder, predictor and tokenizer do not fit together; says which numbers must be equal.
    """
    if predictor.encoder_width != encoder.width:
        raise ValueError(
            f"The predictor takes tokens of {predictor.encoder_width} numbers, the encoder makes {encoder.width}: set "
            "predictor.encoder_width to the encoder's width."
        )
    if tokenizer is None:
        return
    if predictor.labels != tokenizer.codes:
        raise ValueError(
            f"The predictor tells {predictor.labels} labels, the tokenizer makes {tokenizer.codes}: set "
            "predictor.labels to the tokenizer's codes."
        )
    if tokenizer.patch_size != encoder.patch_size:
        raise ValueError(
            f"The tokenizer labels patches of {tokenizer.patch_size} by {tokenizer.patch_size}, the encoder has "
            f"{encoder.patch_size} by {encoder.patch_size}: they must be the same patches."
        )


def check_estimator(estimator: Estimator, tokenizer: BeatsTokenizer, teacher: BEATs, head: BeatsHead | None) -> None:
    """Raises:
    ValueError: tokenizer, estimator and teacher do not fit together; says which numbers must be equal.
    """
    if estimator.code_width != tokenizer.width:
        raise ValueError(
            f"The estimator takes codes of {estimator.code_width} numbers, the tokenizer's have {tokenizer.width}: set "
            "estimator.code_width to the tokenizer's width."
        )
    wanted = teacher.width if head is None else head.predictor.out_features
    if estimator.target_width != wanted:
        told = "last layer" if head is None else "logits"
        raise ValueError(
            f"The estimator tells {estimator.target_width} numbers of each patch, the teacher's {told} has {wanted}: "
            "set estimator.target_width to that."
        )
    if tokenizer.patch_size != teacher.patch_size:
        raise ValueError(
            f"The tokenizer's patches are {tokenizer.patch_size} by {tokenizer.patch_size}, the teacher's "
            f"{teacher.patch_size} by {teacher.patch_size}: they must be the same patches."
        )


def _difference(one: str, other: str) -> str:
    """The settings in which two lines of JSON differ."""
    first, second = json.loads(one), json.loads(other)
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return ", ".join(f"{name} is {first.get(name)} there and {second.get(name)} here" for name in names)
