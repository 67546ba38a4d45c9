"""Questions on scenes, answered out of a list: ScanQA's task as a fine-tuning of `SceneGraphVLP`.

Azuma et al. 2022, ScanQA, arXiv 2112.10482. With the objects that have read the question and the words of the question
that have seen the objects, the logits of the answers are

    y = head([mean of the objects, mean of the words]),        loss: binary cross entropy, summed over the answers.

The answers are those of the training questions (8864 in ScanQA). The head's form is ours.

Shape legend: B questions, M objects, L words, K answers, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from collimate.encoding import Encoding
from collimate.losses.softmax import global_mean
from collimate.processing import ClassLabels
from collimate.training import Method
from collimate_3d.scene_graph_vlp.fusion import head
from collimate_3d.scene_graph_vlp.method import SceneGraphVLP, mean_of_rows
from collimate_3d.scenes.processing import unpacked_scenes


class SceneAnswers(Method):
    """A scene-language model with a head of answers. A sample has `scene.npz`, a question as `txt`, and `labels.json`.

    Args:
        model: what it is built on.
        answers: the list of answers, several of which may be right.
        dropout: of the head, in training.
        pretrained: a folder of a trained `SceneGraphVLP` of the same sizes, with whose weights to begin.

    Raises:
        ValueError: answers exclude each other.
    """

    modalities = ("scene", "text")

    def __init__(
        self, model: SceneGraphVLP, answers: ClassLabels, dropout: float = 0.1, pretrained: str | None = None
    ) -> None:
        super().__init__()
        if answers.exclusive:
            raise ValueError("Several answers to a question may be right: build ClassLabels with exclusive=False.")
        self.processors = {"scene": model.processors["scene"], "text": model.processors["text"], "labels": answers}
        self.model = model
        self.answer_head = head(2 * model.graph.width, len(answers), dropout)
        if pretrained is not None:
            from collimate.checkpoints import load

            model.load_state_dict(load(pretrained).state_dict())

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.model(modality, inputs, mask)

    def answer_logits(
        self, scene: Float[Tensor, "B M W"], question: Int64[Tensor, "B L"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B K"]:
        """y of each question on its scene, as the processors make them."""
        seen = unpacked_scenes(scene)
        nodes, text = self.model.nodes(seen, self.model.objects(seen)), self.model.encoders["text"](question, mask)
        words = self.model.word_features(text.tokens)
        objects = mean_of_rows(self.model.objects_read(nodes, words, mask), seen.given)
        told = mean_of_rows(self.model.words_see(words, nodes, seen.given), mask)
        return self.answer_head(torch.cat([objects, told], -1))

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        mask = self.processors["text"].mask(batch["text"])
        assert mask is not None
        return {"logits": self.answer_logits(batch["scene"], batch["text"], mask)}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        logits, targets = embeddings["logits"], batch["labels"].float()
        right = targets.gather(1, logits.argmax(1, keepdim=True))
        self.statistics = {"accuracy/answers": (right > 0).float().mean()}
        losses = binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        return {"answers": global_mean(losses, None, None)}
