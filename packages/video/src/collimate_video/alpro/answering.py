"""ALPRO answers questions about videos, by choosing among the answers that it was taught.

Li et al. 2022, arXiv 2112.09583, section 4 (open-ended question answering); salesforce/ALPRO, src/modeling/
alpro_models.py (AlproForSequenceClassification). With [CLS] of the fused question and video,

    logits = W_2 relu(W_1 [CLS] + b_1) + b_2,

of hidden width twice the BERT's, taught by the cross entropy with the one right answer.

Departures: questions whose answer is none of the labels are left out by the importer, in training and in tests, where
the released code trains on a label of -1 and counts them as wrong; it prints their share.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from collimate.encoders import Bert, Encoder
from collimate.encoding import Encoding
from collimate.processing import ClassLabels, Processor, Tokenizer
from collimate.training import Classifier
from collimate_video.alpro.method import check_towers
from collimate_video.alpro.official import fill, towers_of
from collimate_video.timesformer import pooled_over_time

ANSWER = "answer"


class ALPROAnswers(Classifier):
    """A video tower and a BERT whose upper layers read question and video; a classifier of answers.

    A batch holds `video`, the question as `text`, and `labels`.

    Args:
        video_encoder: the video tower, with tokens on a grid (time, height, width).
        text_encoder: of the video tower's width, with layers that fuse but no cross-attention.
        labels: the answers; exclusive.
        video_processor: how videos become the tower's input.
        tokenizer: how questions become ids; BERT's.
        pretrained: weights of the towers: a released file, pre-trained or fine-tuned for answering, or a folder of a
            saved ALPRO.

    Raises:
        ValueError: the labels are not exclusive, or the towers do not fit each other.
        CheckpointError: the weights are not of these towers.
    """

    modalities = ("video", "text")
    joint = MappingProxyType({ANSWER: ("video", "text")})

    def __init__(
        self,
        video_encoder: Encoder,
        text_encoder: Bert,
        labels: ClassLabels,
        video_processor: Processor,
        tokenizer: Tokenizer,
        pretrained: str | None = None,
    ) -> None:
        if not labels.exclusive:
            raise ValueError("A question has one answer here: give ClassLabels with exclusive: true.")
        check_towers(video_encoder, text_encoder)
        super().__init__(video_encoder, labels, video_processor, "video")
        self.modalities = type(self).modalities
        self.processors["text"] = tokenizer
        self.encoders["text"] = text_encoder
        if pretrained is not None:
            fill(self, towers_of(pretrained, self.state_dict()))

    def new_head(self, width: int, labels: ClassLabels, dropout: float) -> nn.Module:
        hidden = 2 * width  # src/modeling/alpro_models.py
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, len(labels)))

    @property
    def judged(self) -> str:
        return ANSWER

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"logits": self.logits(self.encode_joint(ANSWER, batch))}

    def encode_joint(self, name: str, inputs: dict[str, Tensor]) -> Encoding:
        """The fused question and video; `pooled` is [CLS]."""
        video = pooled_over_time(self.encode("video", inputs["video"])).pooled_first()
        bert: Any = self.encoders["text"]
        return bert.fuse_joined(self.encode("text", inputs["text"]), video)
