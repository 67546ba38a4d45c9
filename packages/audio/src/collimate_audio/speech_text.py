"""Speech and text in one space of states, by CTC and optimal transport (Siamese pre-training).

Le et al. 2023, Pre-training for speech translation: CTC meets optimal transport, arXiv 2301.11716, section 3;
formiel/fairseq, examples/speech_text_siamese. With the states s of a clip and t of its transcript,

    L = w_ctc CTC(W s, transcript) + w_ot W_λ(s, t),

W_λ the debiased Sinkhorn divergence of the states with their places as one coordinate more, weighed by λ; see
`collimate.losses.transport`. Both encoders learn. Published weights are w_ctc = 1 and w_ot = 0.1, which recipes state
as `optimization.loss_weights`.

Departures: any audio encoder with tokens, and any text encoder, with projections where their widths differ; the blank
is an id of its own after the vocabulary, where fairseq uses the start of a sentence; characters or subwords where the
paper has phonemes; terms are the mean over clips, or, as published, the sum over clips by that of labels
(`per="label"`), for which w_ot is as published; with means over clips it should be tuned anew. Transport leaves out
clips in which a side has no state.

Shape legend: n clips of this rank, S states of speech, T of text, N labels, D width, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torchmetrics.text import WordErrorRate

from collimate import distributed
from collimate.encoders import Encoder, NoProjection, Projection, projections_for
from collimate.encoding import Encoding
from collimate.losses.softmax import global_mean
from collimate.losses.transport import ctc_losses, is_alignable, sinkhorn_divergences
from collimate.processing import Processor, Tokenizer
from collimate.training import Method
from collimate_audio.beats import masked_mean


class SiameseSpeechText(Method):
    """A speech encoder whose states recognise the transcript and come to lie where a text encoder's lie.

    Retrieval ranks by the cosine of the means of the states; with `--rerank K`, the K best anew by -W.

    Args:
        audio_encoder: the speech encoder; gives tokens.
        text_encoder: the encoder of transcripts; gives tokens.
        audio_processor: how sounds become its input.
        tokenizer: how transcripts become ids, which are also what CTC recognises.
        audio_projection: the states of speech into the space of both; where None, the states as they are, or one
            matrix where the widths differ.
        text_projection: those of text; none if None.
        position_weight: λ; 0 for none.
        blur, scaling: of the transport; published values unless given.
        normalize: bring states to unit length before the transport; the published runs do not.
        per: what the terms are divided by: `clip`, or `label`, as published.

    Attributes:
        head: from the states of speech to logits of the vocabulary and, last, the blank.
    """

    modalities = ("audio", "text")

    def __init__(
        self,
        audio_encoder: Encoder,
        text_encoder: Encoder,
        audio_processor: Processor,
        tokenizer: Tokenizer,
        audio_projection: Projection | None = None,
        text_projection: Projection | None = None,
        position_weight: float = 1.0,
        blur: float = 0.05,
        scaling: float = 0.5,
        normalize: bool = False,
        per: Literal["clip", "label"] = "clip",
    ) -> None:
        super().__init__()
        self.processors = {"audio": audio_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"audio": audio_encoder, "text": text_encoder})
        text_space: Projection = text_projection or NoProjection(text_encoder.width)
        width = text_space.dim
        if audio_projection is None and audio_encoder.width == width:
            audio_projection = NoProjection(width)
        self.projections = projections_for(self.encoders, width, audio=audio_projection, text=text_space)
        self.tokenizer, self.blank = tokenizer, tokenizer.vocab_size
        self.head = nn.Linear(width, tokenizer.vocab_size + 1)
        self.transport: dict[str, Any] = {
            "position_weight": position_weight,
            "blur": blur,
            "scaling": scaling,
            "normalize": normalize,
        }
        self.per = per
        self.word_error_rate = WordErrorRate()

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode finished inputs; `pooled` is the mean of the states.

        Raises:
            ValueError: the encoder gives no tokens.
        """
        encoding = super().forward(modality, inputs, mask)
        if encoding.tokens is None:
            raise ValueError(f"The {modality} encoder gives no tokens, and there is nothing to align without them.")
        return encoding.replace(pooled=masked_mean(encoding.tokens, encoding.mask))

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        found = {}
        for modality in self.modalities:
            encoding = self.encode(modality, batch[modality])
            found |= {modality: encoding.pooled, f"{modality}_states": encoding.tokens}
            found[f"{modality}_real"] = encoding.token_mask
        return found  # type: ignore[return-value]

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        speech, heard = embeddings["audio_states"], embeddings["audio_real"]
        labels, real = self.labels(batch["text"])
        ctc = ctc_losses(self.head(speech), labels, heard, real, blank=self.blank)
        transport = sinkhorn_divergences(
            speech, embeddings["text_states"], heard, embeddings["text_real"], **self.transport
        )
        self.statistics = {"unalignable": 1 - is_alignable(labels, heard, real).double().mean()}
        return {"ctc": self._reduced(ctc, real), "transport": self._reduced(transport, real)}

    def labels(self, ids: Int64[Tensor, "n L"]) -> tuple[Int64[Tensor, "n L"], Bool[Tensor, "n L"]]:
        """What CTC recognises of tokenized transcripts: no start, end or padding, in front; and which are real."""
        real = self.tokenizer.mask(ids) & (ids != self.tokenizer.end_id)
        if self.tokenizer.start_id is not None:
            real &= ids != self.tokenizer.start_id
        order = (~real).int().argsort(dim=1, stable=True)
        return ids.gather(1, order).masked_fill(~real.gather(1, order), 0), real.gather(1, order)

    def rerank(self, sample: Encoding, text: Encoding) -> Float[Tensor, " P"]:
        """-W of each pair; see `collimate.evaluation.reranking`."""
        assert sample.tokens is not None
        assert text.tokens is not None
        return -sinkhorn_divergences(sample.tokens, text.tokens, sample.mask, text.mask, **self.transport)

    def transcribe(self, sounds: Tensor | Sequence[Any]) -> list[str]:
        """What is said, greedily: the likeliest id of each state, repetitions and blanks left out.

        Args:
            sounds: raw, or a batch as the processor makes it.
        """
        encoding = self.encode("audio", sounds)
        assert encoding.tokens is not None
        return self._written(encoding.tokens, encoding.token_mask)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The losses, and the word error rate of greedy transcripts."""
        found = super().validation_step(batch, batch_idx)
        embeddings = found["embeddings"]
        rows = batch["valid"] if "valid" in batch else torch.ones(len(batch["text"]), dtype=torch.bool)
        written = self._written(embeddings["audio_states"].float(), embeddings["audio_real"])
        labels, real = self.labels(batch["text"])
        wanted = [self.tokenizer.decode(row[own].cpu()) for row, own in zip(labels, real, strict=True)]
        keep = rows.tolist()
        self.word_error_rate.update(
            [each for each, valid in zip(written, keep, strict=True) if valid],
            [each for each, valid in zip(wanted, keep, strict=True) if valid],
        )
        self.log("val/word_error_rate", self.word_error_rate, on_step=False, on_epoch=True, batch_size=len(keep))
        return found

    def _written(self, states: Float[Tensor, "n S D"], real: Bool[Tensor, "n S"]) -> list[str]:
        best = self.head(states).argmax(-1)
        changed = torch.ones_like(real)
        changed[:, 1:] = best[:, 1:] != best[:, :-1]
        kept = changed & real & (best != self.blank)
        return [self.tokenizer.decode(row[own].cpu()) for row, own in zip(best, kept, strict=True)]

    def _reduced(self, losses: Float[Tensor, " n"], real: Bool[Tensor, "n N"]) -> Float[Tensor, ""]:
        """This rank's share of the mean over the clips, or labels, of all ranks."""
        if self.per == "clip":
            return global_mean(losses, None, None)
        total = distributed.all_sum(real.sum().to(losses.dtype)).clamp_min(1)
        return distributed.world_size() * losses.sum() / total
