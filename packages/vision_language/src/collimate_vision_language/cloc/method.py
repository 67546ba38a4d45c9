"""CLOC: contrastive localized language-image pre-training.

Chen et al. 2025, arXiv 2410.02746 (v2); no code or weights were published.

CLIP's two towers f_I, f_T, and a prompter that turns the tokens f'_I(x) of a picture and a prompt, a box l or a text t,
into a vector z in the space of texts. Of a picture's regions (l_m, y_m), M are drawn at each step. With t_m = f_T(y_m),

    z_m = P Prompter(l_m, f'_I(x))          l'_m = Head(P Prompter(t_m, f'_I(x)))
    L = L_CLIP + λ (L_CLOC + L_g)           λ = the share of the pictures that have a region,

L_CLOC the contrast of all z with all t of the batches of all ranks, L_g the squared error of the boxes: see
`collimate.losses.regions`, and `prompters` for the prompter. Gradients run through everything, also from L_g into f_T.

What the paper leaves open, and is chosen here:
- f'_I(x) are the tokens after the tower's last norm, the class token among them.
- The matrix P is the prompter's own. The head, two layers with a GELU between, reads the projected, not normalised z
  (`box_head_input`); boxes are shares of the picture, and the head's answer is not bounded.
- Region and picture share the scale of the logits, as the formulas do (`own_region_scale`).

Departures:
- The paper's towers pool by attention; here each tower pools as it is made to.
- The paper tells texts apart by a T5 tokenizer; here by the one that is given.

The filter of similar texts has no floor. To a new text tower all texts are alike, so that L_CLOC is 0 until L_CLIP has
set captions apart; and a small tower that learns too fast can keep it low by making texts alike. The statistic
`regions/negatives kept` tells; `similar` nearer to 1 leaves out equal words alone.

λ is that of a batch: with `accumulate_grad_batches`, each of these has its own. The `GradientCache` callback takes that
of the whole.

Shape legend: B pictures, M regions a picture, T tokens of a picture, W width of the tokens, L tokens of a text, D joint
width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.checkpoints.files import CheckpointError, read_state_dict
from collimate.checkpoints.open_clip import read_open_clip
from collimate.checkpoints.two_towers import objective_names
from collimate.data import RegionChoice
from collimate.encoders import Encoder, LinearProjection, MLPProjection, Projection, projections_for
from collimate.encoding import Encoding
from collimate.losses import clip_loss, region_losses
from collimate.losses.composition import composed
from collimate.losses.regions import SIMILAR, kept_share, share_with_regions
from collimate.processing import Processor
from collimate.training import Method
from collimate.training.gradient_cache import embed_in_chunks
from collimate_vision_language.cloc.prompters import AttentionPrompter, Prompter


@composed(
    similarity="cosine; of prompted regions with phrases",
    targets="own pair; own phrase",
    negatives="all others of all ranks; phrases that are not alike",
)
class CLOC(Method):
    """CLIP's two towers, and a prompter by which a picture's regions have vectors of their own.

    A batch may hold `regions`, `region_text` and `region_given` (see `collimate.data.Preparation`); without them it has
    no regions. An encoded picture has as its tokens what prompts look at, in the tower's width.

    Args:
        image_encoder: the image tower; it has tokens. A prompter knows of their places what they hold themselves: those
            of a ViT have positions.
        text_encoder: the tower of captions, of the regions' texts and of prompts.
        image_processor: how pictures become the image tower's input. The paper's does not crop: `resize="longest"`.
        tokenizer: how texts become the text tower's input.
        embed_dim: D, the width of the joint space.
        image_projection: the image tower's vectors into the joint space; one matrix if None.
        text_projection: the text tower's vectors into the joint space; one matrix if None.
        prompter: what turns prompts into vectors; `AttentionPrompter` if None.
        region_projection: P, the prompter's vectors into the joint space; one matrix if None.
        grounding: whether a head finds the boxes of texts (L_g). Only prompters that take texts can.
        box_head_input: what the head reads: the `projected` vectors, or the prompter's own, `pooled`.
        similar: regions whose texts have a cosine above it are no negatives of each other; None lets all be.
        own_region_scale: whether L_CLOC has a logit scale of its own.
        init_logit_scale: s at the start.
        max_logit_scale: s is held between 1 and this.
        prompts_at_a_time: of all pictures of a batch, which bounds memory: what is more goes in parts, each computed
            again in the backward pass. A prompt takes T (W + 4 W) numbers a few times over.

    Raises:
        ValueError: the prompter is of another width than the image tower, or takes no texts for the grounding.
    """

    modalities = ("image", "text")
    regions = RegionChoice(4)  # M: CLOC, section 5

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        image_processor: Processor,
        tokenizer: Processor,
        embed_dim: int = 512,
        image_projection: Projection | None = None,
        text_projection: Projection | None = None,
        prompter: Prompter | None = None,
        region_projection: Projection | None = None,
        grounding: bool = True,
        box_head_input: Literal["projected", "pooled"] = "projected",
        similar: float | None = SIMILAR,
        own_region_scale: bool = False,
        init_logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
        prompts_at_a_time: int = 64,
    ) -> None:
        super().__init__()
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        self.projections = projections_for(self.encoders, embed_dim, image=image_projection, text=text_projection)
        self.prompter = prompter or AttentionPrompter(image_encoder.width, embed_dim)
        _check(image_encoder, self.prompter, grounding, prompts_at_a_time)
        self.region_projection = region_projection or LinearProjection(self.prompter.width, embed_dim)
        read = {"projected": embed_dim, "pooled": self.prompter.width}[box_head_input]
        self.box_head = MLPProjection(read, 4) if grounding else None
        self.box_head_input = box_head_input
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_logit_scale)))  # the logarithm of s
        self.region_logit_scale = nn.Parameter(self.logit_scale.detach().clone()) if own_region_scale else None
        self.max_logit_scale = max_logit_scale
        self.similar, self.prompts_at_a_time = similar, prompts_at_a_time

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        projection: Any = self.projections[modality]
        encoding = self.encoders[modality](inputs, mask)
        if modality == "text":
            return projection.project(encoding)
        if encoding.tokens is None:
            raise ValueError(f"{type(self.encoders['image']).__name__} has no tokens for prompts to look at.")
        return self.prompter.tokens(encoding).replace(pooled=projection(encoding.pooled))

    # Training -------------------------------------------------------------------------------------------------

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`image` and `text` (B, D), `region` and `region_text` (B, M, D) and, with grounding, `box` (B, M, 4).

        Rows of regions that are not there hold zeros.
        """
        regions = _regions(batch)
        image = self.encode("image", batch["image"])
        texts = self.encode("text", torch.cat([batch["text"], regions.text[regions.given]])).pooled
        text, phrases = texts.split([len(batch["text"]), len(texts) - len(batch["text"])])
        region_text = _placed(phrases, regions.given)
        having = regions.given.any(1)
        if not having.any():  # one picture is prompted in any case, so that ranks agree on who has gradients: of zeros
            having = torch.arange(len(having), device=having.device) == 0
        assert image.tokens is not None
        rows = {"tokens": image.tokens[having], "boxes": regions.boxes[having], "texts": region_text[having]}
        found = self._prompted_in_parts(rows | {"grid": image.grid})
        vectors = {name: _placed(value, having) for name, value in found.items()}
        return {"image": image.pooled, "text": text, "region_text": region_text, **vectors}

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        regions, scale = _regions(batch), self.logit_scale.exp()
        region_scale = scale if self.region_logit_scale is None else self.region_logit_scale.exp()
        region, text = embeddings["region"], embeddings["region_text"]
        added = region_losses(
            region, text, regions.given, region_scale, embeddings.get("box"), regions.boxes, self.similar
        )
        self.statistics = {
            "regions/share of pictures": share_with_regions(regions.given),
            "regions/a picture": regions.given.sum(1).float().mean(),
        }
        if self.similar is not None:
            self.statistics["regions/negatives kept"] = kept_share(text[regions.given], self.similar)
        clip = clip_loss(embeddings["image"], embeddings["text"], scale)
        return {"clip": clip, **{name: term for name, term in added._asdict().items() if term is not None}}

    # Prompts --------------------------------------------------------------------------------------------------

    def prompt(
        self, image: Encoding, prompts: Float[Tensor, "*B M 4"] | Encoding | Sequence[str]
    ) -> Float[Tensor, "B M D"]:
        """The vectors of prompts in pictures, in the space of texts, not normalised.

        Args:
            image: B pictures, as `encode("image", ...)` gives them.
            prompts: boxes, x0, y0, x1, y1 as shares, 0 to 1, of the processed picture: (B, M, 4), or (M, 4) for the
                same in all pictures; or M texts, or what `encode("text", ...)` makes of them, asked of each picture.

        Raises:
            ValueError: a box is none, or texts are asked of a prompter that takes boxes alone.
        """
        return self.region_projection(self._pooled(image, prompts))

    def ground(self, image: Encoding, texts: Encoding | Sequence[str]) -> Float[Tensor, "B M 4"]:
        """Where in each picture the thing is that a text speaks of: a box in shares of the processed picture.

        Args: as of `prompt`.

        Raises:
            ValueError: the method has no head for boxes.
        """
        if self.box_head is None:
            raise ValueError("This CLOC was built without grounding: it finds no boxes.")
        return self._box(self._pooled(image, texts))

    def localization_map(self, image: Encoding, text: Encoding) -> Float[Tensor, "N T L"]:
        """The cosine of each text with what a box holds that is a cell of the grid and half a cell on all sides."""
        if image.grid is None or len(image.grid) != 2:
            raise ValueError(f"{type(self.encoders['image']).__name__} has no grid of tokens to make a map of.")
        vectors, texts = self.prompt(image, _cells(*image.grid)), text.pooled.to(self.device)
        return normalize(texts.float(), dim=-1) @ normalize(vectors.float(), dim=-1).mT

    def _pooled(self, image: Encoding, prompts: Tensor | Encoding | Sequence[str]) -> Float[Tensor, "B M W"]:
        if image.tokens is None or image.tokens.shape[2] != self.prompter.width:
            raise ValueError("Prompts look at a picture's tokens: pass what `encode('image', ...)` gives.")
        if not isinstance(prompts, Tensor):
            texts = prompts if isinstance(prompts, Encoding) else self.encode("text", list(prompts))
            by, vectors = self.prompter.by_texts, texts.pooled.expand(len(image.tokens), -1, -1)
        else:
            by, vectors = self.prompter.by_boxes, _checked(prompts).expand(len(image.tokens), -1, -1)
        tokens, vectors = image.tokens.to(self.device), vectors.to(self.device)
        if not vectors.shape[1]:
            return tokens.new_zeros(len(tokens), 0, self.prompter.width)
        step = max(1, self.prompts_at_a_time // max(1, vectors.shape[1]))
        rows = []
        for some, own in zip(tokens.split(step), vectors.split(step), strict=True):
            seen = self.prompter.see(some, image.grid)
            rows.append(torch.cat([by(seen, part) for part in own.split(self.prompts_at_a_time, 1)], 1))
        return torch.cat(rows)

    def _prompted_in_parts(self, rows: dict[str, Any]) -> dict[str, Tensor]:
        pictures, regions = rows["boxes"].shape[:2]
        step = max(1, self.prompts_at_a_time // regions)
        return self._prompted(rows) if pictures <= step else embed_in_chunks(self._prompted, rows, step, self)

    def _prompted(self, rows: dict[str, Any]) -> dict[str, Tensor]:
        """The vectors of some pictures' regions and, with grounding, the boxes that are found for their texts."""
        seen = self.prompter.see(rows["tokens"], rows["grid"])
        found = {"region": self.region_projection(self.prompter.by_boxes(seen, rows["boxes"]))}
        if self.box_head is not None:
            found["box"] = self._box(self.prompter.by_texts(seen, rows["texts"]))
        return found

    def _box(self, pooled: Float[Tensor, "B M W"]) -> Float[Tensor, "B M 4"]:
        assert self.box_head is not None
        return self.box_head(self.region_projection(pooled) if self.box_head_input == "projected" else pooled)

    @classmethod
    def from_open_clip(
        cls,
        model: str | Mapping[str, Any] | nn.Module,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        prompter: str | PathLike[str] | Mapping[str, Tensor] | None = None,
        **processors: Processor,
    ) -> CLOC:
        """From an open_clip model; see `collimate.checkpoints.open_clip.read_open_clip`.

        Args:
            model, checkpoint, processors: as there.
            prompter: weights of the prompter and its heads, as an export to open_clip has them in
                `collimate_rest.safetensors`; they begin anew if None. The paper finds that a CLIP with a new prompter,
                trained for another 100,000 steps, stays far behind one that had it from the start.

        Raises:
            CheckpointError: the weights do not fit, or cannot be read.
        """
        method = read_open_clip(model, checkpoint, **processors).build(cls)
        if prompter is not None:
            given = dict(prompter) if isinstance(prompter, Mapping) else read_state_dict(prompter)
            if differing := sorted(given.keys() ^ set(objective_names(method.state_dict()))):
                raise CheckpointError(f"These are no weights of CLOC's prompter: {', '.join(differing[:3])} differ.")
            method.load_state_dict(given, strict=False)
        return method


class _Regions(NamedTuple):
    """Of a batch: boxes, their texts, and which of the rows are regions."""

    boxes: Float[Tensor, "B M 4"]
    text: Int64[Tensor, "B M L"]
    given: Bool[Tensor, "B M"]


def _regions(batch: dict[str, Any]) -> _Regions:
    """A batch's regions; one row a picture, that is none, where it has no such keys."""
    if "regions" in batch:
        return _Regions(batch["regions"], batch["region_text"], batch["region_given"])
    text = batch["text"]
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=text.device).expand(len(text), 1, 4)
    return _Regions(whole, text[:, None], torch.zeros(len(text), 1, dtype=torch.bool, device=text.device))


def _placed(rows: Float[Tensor, "n ..."], places: Bool[Tensor, "*places"]) -> Float[Tensor, "*placed"]:
    """Rows where a mask is True, in its order, and zeros elsewhere."""
    found = rows.new_zeros(*places.shape, *rows.shape[1:])
    found[places] = rows
    return found


def _cells(height: int, width: int) -> Float[Tensor, "L 4"]:
    """A box about each cell of a grid, row by row."""
    row, column = (torch.arange(height * width) // width), (torch.arange(height * width) % width)
    corners = torch.stack([column - 0.5, row - 0.5, column + 1.5, row + 1.5], 1)
    return (corners / torch.tensor([width, height, width, height])).clamp(0, 1)


def _checked(boxes: Float[Tensor, "*B M 4"]) -> Float[Tensor, "*B M 4"]:
    if boxes.ndim not in (2, 3) or boxes.shape[-1] != 4:
        raise ValueError(f"Boxes are (pictures, boxes, 4) or (boxes, 4); got {tuple(boxes.shape)}.")
    wrong = ~((boxes >= 0) & (boxes <= 1)).all(-1) | (boxes[..., 2:] <= boxes[..., :2]).any(-1)
    if wrong.any():
        raise ValueError(
            f"A box is x0 < x1, y0 < y1 in shares, 0 to 1, of the processed picture; got {boxes[wrong][0].tolist()}. "
            "Divide pixels by the picture's sides, and clip to it."
        )
    return boxes


def _check(image_encoder: Encoder, prompter: Prompter, grounding: bool, prompts_at_a_time: int) -> None:
    if prompter.width != image_encoder.width:
        raise ValueError(f"The prompter is of width {prompter.width}, the image tower of {image_encoder.width}.")
    if grounding and not prompter.takes_texts:
        raise ValueError(f"{type(prompter).__name__} takes no texts, which grounding needs: set `grounding` to false.")
    if prompts_at_a_time < 1:
        raise ValueError(f"prompts_at_a_time is at least 1, not {prompts_at_a_time}.")
