"""Dialog2Flow: utterances lie as near as their labels mean alike.

Burdisso et al. 2024, arXiv 2410.18481, section 3.2; idiap/dialog2flow. A batch holds pairs of utterances (a_i, p_i) of
one label (act and slots, as `inform date`), and a frozen sentence encoder reads the labels' texts, e_i. With unit
vectors, τ = 0.05 and τ' = 0.35,

    y_ij = softmax_j( <e_i, e_j> / τ' )        L = 1/2 [ CE(<a_i, p_j> / τ, y) + CE(<p_i, a_j> / τ, y) ].

The pairs come of `data.sampling: PerLabel(samples=2)`. Of the released models this trains `single`, with one label an
utterance; `joint` has a loss for acts and one for slots. Labels of no meaning: `SupCon` with one view.

Departures: labels come equally often, where the code takes each utterance as an anchor once an epoch; the contrast runs
over the pairs of all ranks with exact gradients, where the code multiplies a loss without them. The head is dropped
after training, as published.

Shape legend: n utterances of this rank, L tokens, D width of the head's space, E of the label encoder.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from collimate.encoders import Encoder, Frozen, MLPProjection, Projection
from collimate.encoding import Encoding
from collimate.losses import soft_label_loss
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method
from collimate.training.pairs import side_by_side


@composed(
    similarity="cosine",
    targets="softmax of the cosines of label texts",
    negatives="utterances of all others of all ranks",
)
class Dialog2Flow(Method):
    """A text tower trained on labelled utterances.

    Args:
        text_encoder: the tower.
        tokenizer: how utterances become its input.
        label_encoder: reads the labels' texts; it is frozen here.
        label_tokenizer: how these become its input.
        head: the tower's vectors into the space of the loss; two layers with a ReLU to 128 dimensions if None.
        temperature: τ.
        label_temperature: τ'.
    """

    modalities = ("text",)

    def __init__(
        self,
        text_encoder: Encoder,
        tokenizer: Processor,
        label_encoder: Encoder,
        label_tokenizer: Processor,
        head: Projection | None = None,
        temperature: float = 0.05,
        label_temperature: float = 0.35,
    ) -> None:
        super().__init__()
        self.processors = {"text": tokenizer, "labels": label_tokenizer}
        self.encoders = nn.ModuleDict({"text": text_encoder})
        self.label_encoder = label_encoder if isinstance(label_encoder, Frozen) else Frozen(label_encoder)
        self.head = head or MLPProjection(text_encoder.width, 128, activation="relu")  # [C], but for biases
        self.temperature, self.label_temperature = temperature, label_temperature

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        labels = batch["labels"].to(self.device)
        meaning = self.label_encoder(labels, self.processors["labels"].mask(labels))
        return {"text": self.head(self.encode("text", batch["text"]).pooled), "labels": meaning.pooled}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        anchor, positive = side_by_side(embeddings["text"], batch["labels"])
        meaning = embeddings["labels"][::2]
        loss = soft_label_loss(anchor, positive, meaning, self.temperature, self.label_temperature)
        return {"label": loss}
