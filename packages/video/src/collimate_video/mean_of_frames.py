"""The mean over frames of an image-text model: the yardstick of every video model.

Luo et al. 2021, CLIP4Clip, arXiv 2104.08860, section 3.3 (mean pooling). With v_t the joint vector of frame t, not yet
normalised, and y that of a text,

    z = 1/T sum_t v_t / |v_t|,    score = <z, y> / (|z| |y|).

Nothing is learned for it, so that any image-text model can be evaluated on videos as it is; trained on, it is CLIP on
clips, with CLIP's loss.

Departures: the paper's code normalises z once more in the loss, as the score does; so does this.

Shape legend: B clips, T frames, S side in pixels, D joint width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.checkpoints.open_clip import read_open_clip
from collimate.checkpoints.two_towers import ImageTextMethod, TwoTowers
from collimate.encoders import Encoder, Projection, projections_for
from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.losses.composition import composed
from collimate.processing import ImageProcessor, Processor
from collimate.training import Method
from collimate_video.processor import VideoProcessor
from collimate_video.sampling import SegmentCentres


@composed(
    similarity="cosine with the mean of frames",
    targets="own pair",
    negatives="all others of all ranks",
)
class MeanOfFrames(Method):
    """An image and a text tower, of which the first sees every frame of a clip on its own.

    Args:
        image_encoder: the image tower.
        text_encoder: the text tower.
        video_processor: how videos become clips of frames that the image tower takes.
        tokenizer: how texts become the text tower's input.
        embed_dim: D.
        image_projection: the image tower's vectors into the joint space; one matrix if None.
        text_projection: the text tower's vectors into the joint space; one matrix if None.
        init_logit_scale: s at the start.
        max_logit_scale: s is held between 1 and this.
    """

    modalities = ("video", "text")

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        video_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 512,
        image_projection: Projection | None = None,
        text_projection: Projection | None = None,
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.processors = {"video": video_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))
        self.max_logit_scale = max_logit_scale

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        if modality != "video":
            return super().forward(modality, inputs, mask)
        seen = super().forward("image", inputs.flatten(0, 1)).pooled
        return Encoding(normalize(seen, dim=-1).unflatten(0, inputs.shape[:2]).mean(1))

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"clip": clip_loss(embeddings["video"], embeddings["text"], self.logit_scale.exp())}

    @classmethod
    def from_image_text(cls, method: ImageTextMethod, frames: int = 8) -> MeanOfFrames:
        """Of an image-text method, such as CLIP or SigLIP, whose towers become this one's.

        Args:
            method: with the joint space of an image and a text tower.
            frames: T, taken from the middle of T equal parts of each video.

        Raises:
            ValueError: the method is no such, or its pictures are not processed by an `ImageProcessor`.
        """
        if not isinstance(method, ImageTextMethod) or not {"image", "text"} <= method.encoders.keys():
            raise ValueError(f"Frames need a method with an image and a text tower; {type(method).__name__} has not.")
        weights = method.state_dict()
        towers = TwoTowers(
            {
                "image_encoder": method.encoders["image"],
                "text_encoder": method.encoders["text"],
                "video_processor": _clips(method.processors["image"], frames),
                "tokenizer": method.processors["text"],
                "embed_dim": _joint_width(method),
                "image_projection": method.projections["image"],
                "text_projection": method.projections["text"],
            },
            {name: value for name, value in weights.items() if name.startswith(("encoders.", "projections."))}
            | {"logit_scale": weights["logit_scale"]},
        )
        return towers.build(cls)

    @classmethod
    def from_open_clip(
        cls,
        model: str | Mapping[str, Any] | nn.Module,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        frames: int = 8,
    ) -> MeanOfFrames:
        """Of an open_clip model; see `collimate.checkpoints.open_clip.read_open_clip` and `from_image_text`."""
        towers = read_open_clip(model, checkpoint)
        arguments = dict(towers.arguments)
        arguments["video_processor"] = _clips(arguments.pop("image_processor"), frames)
        return TwoTowers(arguments, towers.weights).build(cls)


def _clips(images: Any, frames: int) -> VideoProcessor:
    if not isinstance(images, ImageProcessor):
        raise ValueError(f"Frames are processed by an ImageProcessor, not by a {type(images).__name__}.")
    return VideoProcessor(frames, images, SegmentCentres())


def _joint_width(method: Any) -> int:
    """D, from what the text tower makes of its own example."""
    with torch.inference_mode():
        return method.encode("text", ["a video"]).pooled.shape[-1]
