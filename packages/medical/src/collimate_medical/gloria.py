"""GLoRIA: images with reports, and the words of a report with the regions of an image that they speak of.

Huang et al. 2021, GLoRIA, ICCV 2021; marshuang80/gloria. With the regions v_br of image b and the words q_tw of
text t,

    a_btrw = softmax_r(τ1 softmax_w(v_br q_tw)),    c_btw = Σ_r a_btrw v_br,
    S_bt = τ3 log Σ_w exp(τ2 cos(c_btw, q_tw)),     G_bt = τ3 cos(v_b, q_t) of the pooled vectors,
    L = CE(S) + CE(S^T) + CE(G) + CE(G^T),          τ1 = 4, τ2 = 5, τ3 = 10.

The inner softmax, over the words of the text, is the released code's; the paper's equation has the outer one alone.
For zero-shot classification the code compares by (cos(v_b, q_t) + τ2 max_w cos(c_btw, q_tw)) / 2, with the words
from the second slot on.

Departures: the words of all ranks are contrasted with, with exact gradients; the code leaves out what lies beyond a
text's words by cutting, here a mask says it, so that zero-shot similarities count words where the code counts the
characters of the text. `GLoRIA`'s regions and words are the tokens of its towers' last layers: the paper takes an
earlier layer of a ResNet for regions, and sums the pieces of a word and four layers of its text tower.

Shape legend: n images and m texts of this rank, M texts of all ranks, R regions, W word slots, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, pad

from collimate import distributed
from collimate.distributed import Group
from collimate.encoders import Encoder, LinearProjection
from collimate.encoding import Encoding
from collimate.losses import clip_loss, symmetric_info_nce_of_scores
from collimate.losses.composition import composed
from collimate.processing import Processor
from collimate.training import Method

COSINE_EPS = 1e-8  # gloria/loss/gloria_loss.py


class Temperatures(NamedTuple):
    """τ1 to τ3; each multiplies."""

    regions: float = 4.0  # configs/chexpert_pretrain_config.yaml, as the next two
    words: float = 5.0
    pairs: float = 10.0


class GloriaLosses(NamedTuple):
    """CE(S) + CE(S^T) and CE(G) + CE(G^T); GLoRIA's loss is their sum."""

    local: Float[Tensor, ""]
    pooled: Float[Tensor, ""]


def gloria_losses(
    image: Float[Tensor, "n D"],
    text: Float[Tensor, "n D"],
    regions: Float[Tensor, "n R D"],
    words: Float[Tensor, "n W D"],
    word_mask: Bool[Tensor, "n W"],
    temperatures: Temperatures = Temperatures(),  # noqa: B008
    group: Group = None,
) -> GloriaLosses:
    """Both contrasts of a batch; pair i is (image i, text i).

    Args:
        image, text: this rank's pooled features, any floating dtype, normalised inside.
        regions, words: the locals, not normalised. All ranks have equally many word slots.
        word_mask: True where a slot holds a word; each text has one at least.
        temperatures: τ1, τ2 and τ3.
        group: the ranks that contrast with each other.

    Raises:
        ValueError: a text has no word, or the shapes do not fit.
    """
    counts = distributed.row_counts(words, group)
    scores = local_scores(
        regions,
        distributed.gather(words, group, counts),
        distributed.gather(word_mask, group, counts),
        temperatures,
    )
    local = symmetric_info_nce_of_scores(scores, scores.T, 1.0, key_counts=counts, group=group)
    return GloriaLosses(2 * local, 2 * clip_loss(image, text, temperatures.pairs, group=group))


@composed(
    similarity="cosine; of words with the regions that they attend to",
    targets="own pair",
    negatives="all others of all ranks",
)
class GLoRIA(Method):
    """Two towers that give tokens, each with a matrix for its vector and one for its tokens.

    A batch holds `xray` and `text`. Classification compares by the mean of both cosines (`zero_shot_similarity`).

    Args:
        xray_encoder: the image tower; a ResNet-50 in the paper.
        text_encoder: the text tower; BioClinicalBERT in the paper.
        xray_processor: how X-rays become the image tower's input.
        tokenizer: how reports become the text tower's input.
        embed_dim: D; 768 in the paper.
        region_temperature, word_temperature, pair_temperature: τ1, τ2 and τ3.

    Raises:
        ValueError: a tower gives no tokens, as the first batch is encoded.
    """

    modalities = ("xray", "text")

    def __init__(
        self,
        xray_encoder: Encoder,
        text_encoder: Encoder,
        xray_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 768,
        region_temperature: float = Temperatures().regions,
        word_temperature: float = Temperatures().words,
        pair_temperature: float = Temperatures().pairs,
    ) -> None:
        super().__init__()
        self.processors = {"xray": xray_processor, "text": tokenizer}
        towers: dict[str, Encoder] = {"xray": xray_encoder, "text": text_encoder}
        self.encoders = nn.ModuleDict(towers)
        self.projections, self.local_projections = (
            nn.ModuleDict({name: LinearProjection(tower.width, embed_dim) for name, tower in towers.items()})
            for _ in range(2)
        )
        self.temperatures = Temperatures(region_temperature, word_temperature, pair_temperature)

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        encoding = self.encoders[modality](inputs, mask)
        if encoding.tokens is None:
            raise ValueError(f"{type(self.encoders[modality]).__name__} gives no tokens, which GLoRIA compares.")
        local = self.local_projections[modality](encoding.tokens)
        return encoding.replace(pooled=self.projections[modality](encoding.pooled), tokens=local)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, text = (self.encode(modality, batch[modality]) for modality in self.modalities)
        assert image.tokens is not None
        assert text.tokens is not None
        missing = batch["text"].shape[1] - text.tokens.shape[1]  # towers cut common padding
        return {
            "xray": image.pooled,
            "text": text.pooled,
            "regions": image.tokens,
            "words": pad(text.tokens, (0, 0, 0, missing)),
            "word_mask": pad(text.token_mask, (0, missing)),
        }

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        image, text, regions, words, mask = (
            embeddings[name] for name in ("xray", "text", "regions", "words", "word_mask")
        )
        return dict(gloria_losses(image, text, regions, words, mask, self.temperatures)._asdict())

    def similarity(self, query: Encoding, key: Encoding) -> Float[Tensor, "Q K"]:
        """`zero_shot_similarity`, whichever side the images are on: they alone lie on a grid.

        Raises:
            ValueError: an Encoding has no tokens, or both or neither have a grid.
        """
        if query.tokens is None or key.tokens is None or (query.grid is None) == (key.grid is None):
            raise ValueError("GLoRIA compares the tokens of images, which lie on a grid, with those of texts.")
        if query.grid is None:
            return self.similarity(key, query).T
        pooled, regions, words = query.pooled.float(), query.tokens.float(), key.tokens.float()
        return zero_shot_similarity(pooled, key.pooled.float(), regions, words, key.token_mask)


def local_scores(
    regions: Float[Tensor, "n R D"],
    words: Float[Tensor, "M W D"],
    word_mask: Bool[Tensor, "M W"],
    temperatures: Temperatures = Temperatures(),  # noqa: B008
) -> Float[Tensor, "n M"]:
    """S: how well the words of each text are found in each image.

    One text at a time, so that n R W numbers of attention are made at once.
    """
    _check(regions, words, word_mask)
    columns = []
    for text, real in zip(words, word_mask, strict=True):
        matches = temperatures.words * _word_matches(regions, text[real], temperatures.regions)
        columns.append(temperatures.pairs * matches.logsumexp(1))
    return torch.stack(columns, 1)


def word_attention(
    regions: Float[Tensor, "n R D"], words: Float[Tensor, "W D"], sharpness: float = Temperatures().regions
) -> Float[Tensor, "n W R"]:
    """a: where each word of one text looks in each image; over the regions it sums to 1.

    Args:
        words: the words alone, no padding.
        sharpness: τ1.
    """
    over_words = torch.einsum("nrd,wd->nrw", regions, words).softmax(2)
    return (sharpness * over_words).softmax(1).mT


def zero_shot_similarity(
    image: Float[Tensor, "n D"],
    text: Float[Tensor, "M D"],
    regions: Float[Tensor, "n R D"],
    words: Float[Tensor, "M W D"],
    word_mask: Bool[Tensor, "M W"],
) -> Float[Tensor, "n M"]:
    """The similarity by which GLoRIA classifies: the mean of the pooled cosine and of `zero_shot_local_similarity`."""
    pooled = cosine_similarity(image[:, None], text[None], dim=2, eps=COSINE_EPS)
    return (pooled + zero_shot_local_similarity(regions, words, word_mask)) / 2


def zero_shot_local_similarity(
    regions: Float[Tensor, "n R D"], words: Float[Tensor, "M W D"], word_mask: Bool[Tensor, "M W"]
) -> Float[Tensor, "n M"]:
    """τ2 times the best word's cosine, with the published τ1 and τ2.

    Args:
        word_mask: True for the words that count; GLoRIA's code leaves the first slot, [CLS], out.
    """
    _check(regions, words, word_mask)
    standard = Temperatures()
    columns = [
        standard.words * _word_matches(regions, text[real], standard.regions).amax(1)
        for text, real in zip(words, word_mask, strict=True)
    ]
    return torch.stack(columns, 1)


def _word_matches(regions: Tensor, words: Tensor, sharpness: float) -> Float[Tensor, "n W"]:
    """The cosine of each word of one text with what it looks at in each image."""
    seen = word_attention(regions, words, sharpness) @ regions
    return cosine_similarity(seen, words[None], dim=2, eps=COSINE_EPS)


def _check(regions: Tensor, words: Tensor, word_mask: Tensor) -> None:
    if regions.ndim != 3 or words.ndim != 3 or regions.shape[2] != words.shape[2]:
        raise ValueError(
            f"Regions are (images, regions, width) and words (texts, slots, width) of one width; got "
            f"{tuple(regions.shape)} and {tuple(words.shape)}."
        )
    if word_mask.shape != words.shape[:2]:
        raise ValueError(f"The mask of words is {tuple(word_mask.shape)}, the words are {tuple(words.shape)}.")
    if not bool(word_mask.any(1).all()):
        text = int((~word_mask.any(1)).nonzero()[0])
        raise ValueError(f"Text {text} has no word: leave out the samples of empty reports.")
