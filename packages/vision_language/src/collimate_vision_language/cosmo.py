"""COSMO: contrast and captions, the contrast on plain pairs only.

Wang et al. 2024, arXiv 2401.00849, section 3; showlab/cosmo. A text tower reads text alone and causally; layers above
it look at the picture too and tell each next word. With x the pictures' vectors and y the texts', s = exp(t), and w the
words of a text of a picture v,

    L = λ_lm mean_t -log p(w_t | w_<t, v) + λ_con 1/2 [ mean_i CE(s <x_i, y_.>, i) + mean_j CE(s <x_., y_j>, j) ].

Data come plain, a picture with its caption, and interleaved, pictures in running text. The contrast leaves out the
latter, whose texts say too little of one picture. Each kind has a weight: 2 in the paper for both (`loss_weights`).

Departures: towers and decoder of any size, from random weights or others' (the paper's text half is a language model,
and a resampler stands behind its frozen CLIP tower: put the tower into `collimate.encoders.Frozen` for that); one
picture to each passage of running text; the text's vector is the tower's own, where a learnt query pools it in the
paper; s starts at 1/0.07, where the code's 1.22 is nearly uniform; samples of equal captions are no negatives of each
other, which the code means to see to by setting some losses to 0.

Shape legend: B samples, L tokens of a text, P of a picture, W width of the text tower, V vocabulary, K words told.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from collimate.data import Caption, CaptionChoice, OneCaption
from collimate.data.decoding import check_text
from collimate.encoders import Encoder, Projection, projections_for
from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.losses.composition import composed
from collimate.losses.masked_tokens import masked_token_losses, mean_of_chosen
from collimate.losses.negatives import text_ids
from collimate.processing import Processor, Tokenizer
from collimate.training import Method

INTERLEAVED = "interleaved"
"""The kind of a caption that is running text around the picture."""


class PlainCaption(CaptionChoice):
    """Any caption but running text, drawn at random; a sample may have none."""

    optional = True

    def __call__(self, captions: Sequence[Caption]) -> str | None:
        texts = [caption.text for caption in captions if caption.kind != INTERLEAVED and caption.text.strip()]
        return check_text(random.choice(texts)) if texts else None


class CaptionDecoder(nn.Module):
    """Layers over a causal text tower that look at a picture, and a head that tells the next word.

    Args:
        width: W.
        image_width: of the picture's tokens.
        vocab_size: V.
        layers, heads: of the transformer.
    """

    def __init__(self, width: int, image_width: int, vocab_size: int, layers: int = 4, heads: int = 8) -> None:
        super().__init__()
        self.picture = nn.Linear(image_width, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(
        self, text: Float[Tensor, "B L W"], picture: Float[Tensor, "B P Wi"], told: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "K V"]:
        """Logits of what follows the tokens at which `told` is True."""
        later = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool, device=text.device).triu(1)
        seen, hidden = self.picture(picture), text
        for layer in self.layers:
            hidden = layer(hidden, seen, tgt_mask=later)
        return self.head(self.norm(hidden[told]))


@composed(
    similarity="cosine",
    targets="own pair",
    weights="plain pairs only",
    negatives="captions and pictures of other plain pairs of all ranks",
)
class COSMO(Method):
    """An image and a text tower that find each other's samples, and a decoder that writes their captions.

    A batch's `text` is a caption, of any kind but `interleaved`; `passage` a running text around the picture, of the
    kind `interleaved` in a sample's `captions.json`. A sample has either or both.

    Args:
        image_encoder: the image tower; has tokens.
        text_encoder: the text tower; has tokens, of which none sees a later one.
        image_processor: how pictures become the image tower's input.
        tokenizer: how texts become the text tower's input.
        embed_dim: D, the width of the joint space; 512 as published.
        image_projection: the image tower's vectors into the joint space; one matrix if None.
        text_projection: as for pictures.
        decoder_layers, decoder_heads: of the decoder.
        init_logit_scale: s at the start.
        max_logit_scale: s is held between 1 and this.

    Raises:
        ValueError: a token of the text tower sees later ones, so that words would be told by themselves.
    """

    modalities = ("image", "text")
    captions = MappingProxyType(
        {
            "text": PlainCaption(),
            "passage": OneCaption(kinds=(INTERLEAVED,), optional=True),
        }
    )

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        image_processor: Processor,
        tokenizer: Tokenizer,
        embed_dim: int = 512,
        image_projection: Projection | None = None,
        text_projection: Projection | None = None,
        decoder_layers: int = 4,
        decoder_heads: int = 8,
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        _check_causal(text_encoder, tokenizer.vocab_size)
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        self.decoder = CaptionDecoder(
            text_encoder.width, image_encoder.width, tokenizer.vocab_size, decoder_layers, decoder_heads
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # t, the logarithm
        self.max_logit_scale = max_logit_scale

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The vectors of picture and caption; and of each text the sum of its words' losses, and how many they are."""
        picture, text = self._tower("image", batch["image"]), self._tower("text", batch["text"])
        found = {
            "image": self._projected("image", picture.pooled),
            "text": self._projected("text", text.pooled),
            **self._told("caption", text, picture, batch["text"], _given(batch, "text")),
        }
        if "passage" in batch:
            passage = self._tower("text", batch["passage"])
            found |= self._told("passage", passage, picture, batch["passage"], _given(batch, "passage"))
        return found

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        plain = _given(batch, "text")  # ranks may have unequally many
        image, text = embeddings["image"][plain], embeddings["text"][plain]
        contrast = clip_loss(image, text, self.logit_scale.exp(), ids=text_ids(batch["text"])[plain])
        kinds = [kind for kind in ("caption", "passage") if f"{kind}_loss" in embeddings]
        told = {kind: mean_of_chosen(embeddings[f"{kind}_loss"], embeddings[f"{kind}_count"]) for kind in kinds}
        return {"contrast": contrast, **told}

    def _tower(self, modality: str, inputs: Tensor) -> Encoding:
        processor, inputs = self.processors[modality], inputs.to(self.device)
        return self.encoders[modality](processor.finish(inputs), processor.mask(inputs))

    def _projected(self, modality: str, vectors: Tensor) -> Tensor:
        projection: Any = self.projections[modality]
        return projection(vectors)

    def _told(
        self, kind: str, text: Encoding, picture: Encoding, ids: Int64[Tensor, "B L"], given: Bool[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """The losses of each text's words but the first, which nothing precedes."""
        assert text.tokens is not None
        assert picture.tokens is not None
        length = text.tokens.shape[1] - 1  # towers may stop at the end of the longest text
        told = text.token_mask[:, 1:] & given.to(ids.device)[:, None]
        logits = self.decoder(text.tokens[:, :-1], picture.tokens, told)
        losses = masked_token_losses(logits, ids.to(self.device)[:, 1 : 1 + length][told])
        none = losses.new_zeros(len(told))
        return {f"{kind}_loss": none.index_add(0, told.nonzero()[:, 0], losses), f"{kind}_count": told.sum(1)}


def _given(batch: dict[str, Any], key: str) -> Bool[Tensor, " B"]:
    """Whether each sample has a text; all have where nobody says."""
    return batch.get(f"{key}_given", torch.ones(len(batch[key]), dtype=torch.bool, device=batch[key].device))


@torch.no_grad()
def _check_causal(encoder: Encoder, vocab_size: int) -> None:
    ids = torch.tensor([[1, 2, 3, 4, vocab_size - 1]] * 2)  # the last is the end for towers that look for it
    ids[1, 3] = 5
    training = encoder.training
    tokens = encoder.eval()(ids, torch.ones_like(ids, dtype=torch.bool)).tokens
    encoder.train(training)
    if tokens is None or not torch.allclose(tokens[0, :3], tokens[1, :3], atol=1e-5):
        raise ValueError(
            f"{type(encoder).__name__} lets tokens see later ones, or has none: captions are told word by word, so "
            "take a causal text tower, such as OpenClipTextEncoder without no_causal_mask."
        )
