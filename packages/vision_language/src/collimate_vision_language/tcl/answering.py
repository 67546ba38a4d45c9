"""TCL answers questions about pictures, by choosing among the answers that it was taught.

After Li et al. 2021, ALBEF, arXiv 2107.07651, and Yang et al. 2022, TCL, arXiv 2202.10401 (visual question answering).
With [CLS] of the question that has read the picture, and a vector of logits with an entry for each answer,

    logits = W_2 relu(W_1 [CLS] + b_1) + b_2,

taught by the binary cross entropy with what each answer is worth: of ten annotators, c gave it, and the measure of the
VQA data sets (Goyal et al. 2017, arXiv 1612.00837), the mean over all choices of nine of them, is

    worth(c) = min(1, 0.3 c).

Departure: the papers generate the answer by a decoder of six layers that begins with the weights of the fusion layers,
and rank a list of 3128 by its likelihood. A classifier over that list needs no decoder and answers in one pass, as
do METER and ALPRO; it cannot say what is not on the list, which the papers' ranking cannot either. Without momentum
distillation.

Shape legend: B questions, K answers.
"""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collimate.data.classes import labels_of
from collimate.encoders import Bert, Encoder
from collimate.encoding import Encoding
from collimate.processing import ClassLabels, Processor, Tokenizer
from collimate.training import Classifier
from collimate_vision_language.tcl.method import check_towers
from collimate_vision_language.tcl.official import fill_towers

ANSWER = "answer"
WORTH = 0.3  # of an annotator's voice, up to 1 in all: arXiv 1612.00837


class AnswerScores(ClassLabels):
    """What each answer of the list is worth, by how many annotators gave it. A sample's labels are all they said.

    Args:
        names: the answers, or a file that has one a line.
        other_names: as of `ClassLabels`.
    """

    def __init__(self, names: list[str] | str, other_names: list[str] | None = None) -> None:
        super().__init__(names, other_names, exclusive=False)

    def __call__(self, raw: Any) -> Float[Tensor, " K"]:
        """min(1, 0.3 c) of an answer that occurs c times in the labels.

        Raises:
            Undecodable: an answer is not on the list.
        """
        worth = torch.zeros(len(self))
        for number, count in Counter(self.number(label) for label in labels_of(raw)).items():
            worth[number] = min(1.0, WORTH * count)
        return worth

    def config(self) -> dict[str, Any]:
        config = super().config()
        config["init_args"].pop("exclusive", None)
        return config


class TCLAnswers(Classifier):
    """A picture tower and a BERT whose upper layers read a question beside the picture; a classifier of answers.

    A batch holds `image`, the question as `text`, and `labels`.

    Args:
        image_encoder: the picture tower.
        text_encoder: with cross-attention to the picture tower's width, without a token head.
        labels: the answers.
        image_processor: how pictures become the tower's input.
        tokenizer: how questions become ids; BERT's.
        pretrained: weights of the towers: a released file of a pre-trained TCL or ALBEF, or a folder of a saved TCL.

    Raises:
        ValueError: the towers do not fit each other.
        CheckpointError: the weights are not of these towers.
    """

    modalities = ("image", "text")
    joint = MappingProxyType({ANSWER: ("image", "text")})

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Bert,
        labels: AnswerScores,
        image_processor: Processor,
        tokenizer: Tokenizer,
        pretrained: str | None = None,
    ) -> None:
        check_towers(image_encoder, text_encoder, mask_rate=0)
        super().__init__(image_encoder, labels, image_processor, "image")
        self.modalities = type(self).modalities
        self.processors["text"] = tokenizer
        self.encoders["text"] = text_encoder
        self.head = self.new_head(text_encoder.width, labels, 0.0)
        if pretrained is not None:
            fill_towers(self, pretrained)

    def new_head(self, width: int, labels: ClassLabels, dropout: float) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, len(labels)))

    @property
    def judged(self) -> str:
        return ANSWER

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"logits": self.logits(self.encode_joint(ANSWER, batch))}

    def encode_joint(self, name: str, inputs: dict[str, Tensor]) -> Encoding:
        """The question that has read the picture; `pooled` is [CLS]."""
        bert: Any = self.encoders["text"]
        picture = self.encode("image", inputs["image"]).pooled_first()
        return bert.fuse(self.encode("text", inputs["text"]), picture)

    def metrics(self, scores: Float[Tensor, "B K"], targets: Float[Tensor, "B K"]) -> dict[str, float]:
        """`vqa_accuracy`: what the likeliest answers are worth, their mean."""
        return {"vqa_accuracy": float(targets.gather(1, scores.argmax(1, keepdim=True)).mean())}
