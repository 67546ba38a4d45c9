"""TCL tells whether a statement holds of two pictures: NLVR2's task.

After Li et al. 2021, ALBEF, arXiv 2107.07651, and Yang et al. 2022, TCL, arXiv 2202.10401. Each fusion layer reads the
left picture, then the right one, and of the statement's last [CLS]

    logits = W_2 relu(W_1 [CLS] + b_1) + b_2,        taught by the cross entropy with holds, or does not.

Departures: the papers double each fusion layer, begin both with the same weights, and let them share the keys and
values of their cross-attention; here both are one layer, so that a pre-trained TCL is all that is needed. The papers'
epoch of assigning texts to one of two pictures beforehand, and momentum distillation, are left out.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from collimate.data.decoding import IMAGES, register_modality
from collimate.encoders import Bert, Encoder
from collimate.encoding import Encoding
from collimate.processing import ClassLabels, Processor, Tokenizer
from collimate.training import Classifier
from collimate_vision_language.tcl.method import check_towers
from collimate_vision_language.tcl.official import fill_towers

PAIR, SIDES = "pair", ("left", "right")

for side in SIDES:
    register_modality(side, *(f"{side}.{extension}" for extension in IMAGES))


class TCLPairs(Classifier):
    """A picture tower and a BERT whose upper layers read a statement beside two pictures; true or not.

    A batch holds the pictures `left` and `right`, the statement as `text`, and `labels`.

    Args:
        image_encoder: the tower of both pictures.
        text_encoder: with cross-attention to the picture tower's width, without a token head.
        labels: what the statement may do; exclusive.
        image_processor: how pictures become the tower's input.
        tokenizer: how statements become ids; BERT's.
        pretrained: weights of the towers: a released file of a pre-trained TCL or ALBEF, or a folder of a saved TCL.

    Raises:
        ValueError: the labels are not exclusive, or the towers do not fit each other.
        CheckpointError: the weights are not of these towers.
    """

    modalities = (*SIDES, "text")
    joint = MappingProxyType({PAIR: modalities})

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Bert,
        labels: ClassLabels,
        image_processor: Processor,
        tokenizer: Tokenizer,
        pretrained: str | None = None,
    ) -> None:
        if not labels.exclusive:
            raise ValueError("A statement holds or does not: give ClassLabels with exclusive: true.")
        check_towers(image_encoder, text_encoder, mask_rate=0)
        super().__init__(image_encoder, labels, image_processor, "image")
        self.modalities = type(self).modalities
        self.processors = {**dict.fromkeys(SIDES, image_processor), "text": tokenizer, "labels": labels}
        self.encoders["text"] = text_encoder
        self.head = self.new_head(text_encoder.width, labels, 0.0)
        if pretrained is not None:
            fill_towers(self, pretrained)

    def new_head(self, width: int, labels: ClassLabels, dropout: float) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(labels)))  # ALBEF, model_nlvr.py

    @property
    def judged(self) -> str:
        return PAIR

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders["image" if modality in SIDES else modality](inputs, mask)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"logits": self.logits(self.encode_joint(PAIR, batch))}

    def encode_joint(self, name: str, inputs: dict[str, Tensor]) -> Encoding:
        """The statement that has read both pictures; `pooled` is [CLS]."""
        bert: Any = self.encoders["text"]
        pictures = [self.encode(side, inputs[side]).pooled_first() for side in SIDES]
        text = self.encode("text", inputs["text"])
        tokens = text.tokens
        for layer in bert.layers[bert.fusion_layer :]:
            for picture in pictures:
                tokens = layer(tokens, text.mask, picture.tokens, picture.mask)
        assert tokens is not None
        return Encoding(tokens[:, 0], tokens, text.mask)
