"""ConVIRT: images and sentences, each direction with a weight of its own.

Zhang et al. 2020, Contrastive learning of medical visual representations from paired images and text, arXiv
2010.00747, equations 2 to 4. With unit vectors v_i of images and u_j of texts and the temperature τ,

    L = mean_i [ λ CE_i(<v_i, u_.> / τ) + (1 - λ) CE_i(<v_., u_i> / τ) ],    λ = 0.75, τ = 0.1.

The softmax runs over the samples of all ranks with exact gradients, where published code keeps to one device. The most
used unofficial code runs its text head without gradient; here both heads learn, as in the paper. Texts are drawn as
sentences by `collimate_medical.sentences.OneSentence`.

Shape legend: n samples of this rank, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from collimate.data.captions import CaptionChoice
from collimate.distributed import Group
from collimate.encoders import Encoder, MLPProjection, Projection, projections_for
from collimate.losses import symmetric_info_nce_losses
from collimate.losses.composition import composed
from collimate.losses.softmax import global_mean
from collimate.processing import Processor
from collimate.training import Method
from collimate_medical.sentences import OneSentence

IMAGE_SHARE = 0.75  # λ, section 3.2
TEMPERATURE = 0.1  # section 3.2


def convirt_loss(
    image: Float[Tensor, "n D"],
    text: Float[Tensor, "n D"],
    logit_scale: Float[Tensor, ""] | float = 1 / TEMPERATURE,
    image_share: float = IMAGE_SHARE,
    group: Group = None,
    **options: Any,
) -> Float[Tensor, ""]:
    """The contrast of images with texts, weighed against that of texts with images; pair i is (image i, text i).

    Args:
        image, text: this rank's features, any floating dtype, normalised inside.
        logit_scale: 1/τ, not its logarithm.
        image_share: λ, from 0 to 1.
        group: the ranks that contrast with each other.
        options: keyword arguments of `symmetric_info_nce_losses`: ids, mask, targets, queues, normalize.

    Raises:
        ValueError: `image_share` is no share.
    """
    if not 0 <= image_share <= 1:
        raise ValueError(f"image_share lies between 0 and 1; got {image_share:g}.")
    losses = symmetric_info_nce_losses(image, text, logit_scale, group=group, **options)
    by_image, by_text = (global_mean(each, None, group) for each in losses)
    return image_share * by_image + (1 - image_share) * by_text


@composed(
    similarity="cosine",
    targets="own pair",
    weights="of the two directions, λ and 1 - λ",
    negatives="all others of all ranks",
)
class ConVIRT(Method):
    """Two towers and, on each, two layers with a ReLU between.

    A batch holds `xray` and `text`, a sentence of the report.

    Args:
        xray_encoder: the image tower; a ResNet-50 in the paper.
        text_encoder: the text tower; ClinicalBERT in the paper.
        xray_processor: how X-rays become the image tower's input.
        tokenizer: how texts become the text tower's input.
        embed_dim: D; 512 in the paper.
        logit_scale: 1/τ, which does not learn.
        image_share: λ.
        captions: which texts; one sentence of any caption unless given.
        text_projection: the text tower's vectors into the joint space; the two layers if None.
    """

    modalities = ("xray", "text")

    def __init__(
        self,
        xray_encoder: Encoder,
        text_encoder: Encoder,
        xray_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 512,
        logit_scale: float = 1 / TEMPERATURE,
        image_share: float = IMAGE_SHARE,
        captions: CaptionChoice | None = None,
        text_projection: Projection | None = None,
    ) -> None:
        super().__init__()
        self.processors = {"xray": xray_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"xray": xray_encoder, "text": text_encoder})
        self.projections = projections_for(
            self.encoders,
            embed_dim,
            xray=MLPProjection(xray_encoder.width, embed_dim, activation="relu"),
            text=text_projection or MLPProjection(text_encoder.width, embed_dim, activation="relu"),
        )
        self.logit_scale, self.image_share = logit_scale, image_share
        self.captions: Mapping[str, CaptionChoice] = {"text": captions or OneSentence()}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        loss = convirt_loss(embeddings["xray"], embeddings["text"], self.logit_scale, self.image_share)
        return {"convirt": loss}
