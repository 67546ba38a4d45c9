"""A detector of a room's objects: VoteNet, as scene-language models have it before them.

Qi et al. 2019, VoteNet, arXiv 1904.09664; the head and the weights of terms as in leolyj/3D-VLP (Jin et al. 2023,
CVPR). See `collimate_3d.proposals.voting` and `collimate_3d.proposals.objectives`;

    L = 10 (L_vote + 0.1 L_objectness + 20 L_faces + 0.1 L_classes)        (the weights are `optimization.loss_weights`)

What it finds becomes a scene of predicted objects (`collimate_3d.proposals.source`), on which `SceneGraphVLP` trains
and is judged by overlap.

Departures: 3D-VLP trains its detector further while it learns language; here the detector is trained first, and then
stays what it is, as in 3D-VisTA, so that every scene is read once. Points have colours and height, no image features.

Shape legend: B rooms, M proposals, G objects.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from collimate.encoding import Encoding
from collimate.training import Method
from collimate.training.optimization import Optimization
from collimate_3d.graphs.geometry import box_overlap
from collimate_3d.pointnet2 import Seeds, VoteNetBackbone
from collimate_3d.proposals.objectives import assignment, detection_losses
from collimate_3d.proposals.processing import CHANNELS, RoomProcessor
from collimate_3d.proposals.voting import Proposals, VoteHead

WEIGHTS = {"vote": 10.0, "objectness": 1.0, "faces": 200.0, "classes": 1.0}  # 3D-VLP


class Found(NamedTuple):
    """Objects found in a room, the surest first.

    Attributes:
        boxes: centre and extents, in metres.
        labels: classes by their numbers.
        scores: how sure it is that there is an object, from 0 to 1.
    """

    boxes: Float[np.ndarray, "M 6"]
    labels: Int64[np.ndarray, " M"]
    scores: Float[np.ndarray, " M"]


class SceneDetector(Method):
    """VoteNet with distances to faces; see the module. A batch holds `room`.

    Args:
        encoder: rooms to seeds; its channels are 7.
        room_processor: how rooms become inputs; its classes are those that are told.
        proposals: M, 256 in VoteNet.
        radius: of a group of votes, in metres.
        neighbours: votes of a group at most.
        proposal_width: of a proposal's features.
        least_score: of what is found.
        overlap: of two boxes that are found, at most (IoU).

    Raises:
        ValueError: the encoder reads points of other channels.
    """

    modalities = ("room",)

    def __init__(
        self,
        encoder: VoteNetBackbone,
        room_processor: RoomProcessor,
        proposals: int = 256,
        radius: float = 0.3,
        neighbours: int = 16,
        proposal_width: int = 128,
        least_score: float = 0.5,
        overlap: float = 0.25,
    ) -> None:
        super().__init__()
        if encoder.channels != CHANNELS:
            raise ValueError(f"Points have {CHANNELS} numbers; build the encoder with channels={CHANNELS}.")
        self.processors = {"room": room_processor}
        self.encoders = nn.ModuleDict({"room": encoder})
        classes = len(room_processor.classes)
        self.head = VoteHead(encoder.width, classes, proposals, radius, neighbours, proposal_width)
        self.least_score, self.overlap = least_score, overlap
        self.optimization = Optimization(loss_weights=dict(WEIGHTS))

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """The room's seeds; tokens are their features."""
        return self.encoders[modality](self._room(inputs).points)

    def propose(self, inputs: Float[Tensor, "B W 8"]) -> tuple[Proposals, Seeds]:
        """Proposals of rooms as the processor makes them, and the seeds that voted for them."""
        encoder: Any = self.encoders["room"]
        seeds = encoder.seeds(self._room(inputs).points)
        return self.head(seeds), seeds

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        found, seeds = self.propose(batch["room"])
        return {**found._asdict(), "seed": seeds.index}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        room = self._room(batch["room"])
        found = Proposals(*(embeddings[name] for name in Proposals._fields))
        _, positive = assignment(found.centers, room.boxes, room.given)
        right = (found.objectness.argmax(-1) == 1) == positive
        self.statistics = {"accuracy/objectness": right.float().mean(), "positive": positive.float().mean()}
        seed_object = room.object.gather(1, embeddings["seed"].long())
        return detection_losses(found, seed_object, room.boxes, room.given, room.labels)

    @torch.no_grad()
    def detect(self, inputs: Float[Tensor, "B W 8"]) -> list[Found]:
        """What is in rooms, as the processor makes them; of boxes that overlap the surest."""
        found, _ = self.propose(inputs.to(self.device))
        scores, boxes = found.objectness.softmax(-1)[..., 1].float().cpu(), found.boxes.float().cpu()
        labels = found.classes.argmax(-1).cpu()
        return [self._kept(*each) for each in zip(boxes, labels, scores, strict=True)]

    def _kept(self, boxes: Tensor, labels: Tensor, scores: Tensor) -> Found:
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= self.least_score]
        order = order[surest(boxes[order], self.overlap)]
        return Found(boxes[order].numpy(), labels[order].numpy(), scores[order].numpy())

    def _room(self, inputs: Tensor) -> Any:
        processor: Any = self.processors["room"]
        return processor.unpacked(inputs)


def surest(boxes: Float[Tensor, "M 6"], overlap: float) -> Bool[Tensor, " M"]:
    """Which boxes are kept, of those that stand before the ones they overlap by more; boxes come the surest first."""
    covers = (box_overlap(boxes[:, None], boxes[None]) > overlap).triu(1)
    kept = torch.ones(len(boxes), dtype=torch.bool)
    for place in range(len(boxes)):
        if kept[place]:
            kept &= ~covers[place]
    return kept
