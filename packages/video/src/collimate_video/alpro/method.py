"""ALPRO as a method; see the package's docstring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from collimate.distributed import LOCAL
from collimate.encoders import Bert, Encoder, LinearProjection, projections_for
from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.losses.composition import composed
from collimate.losses.masked_tokens import (
    MaskedTokens,
    choose_tokens,
    hide_tokens,
    mean_of_chosen,
    told_by_text,
)
from collimate.losses.matching import draw_negatives, matching_accuracy, matching_loss, negative_weights
from collimate.processing import Processor, Tokenizer
from collimate.training import Method
from collimate_video.alpro.crops import cropped, draw_boxes
from collimate_video.alpro.entities import EntityPrompter, inside, stands_still
from collimate_video.alpro.official import entity_weights, fill, read_official
from collimate_video.alpro.prompter import Prompter
from collimate_video.timesformer import pooled_over_time

MODALITIES = ("video", "text")


@composed(
    similarity="cosine; a head on fused tokens",
    targets="own pair",
    negatives="all others of all ranks; one hard one of the rank, fused",
)
class ALPRO(Method):
    """A video tower and a BERT whose upper layers read the tokens of both.

    A batch holds `video` and `text`. For tests, it may also hold what is else drawn: `negative_video` and
    `negative_text`, the index in the batch of each text's wrong video and each video's wrong text, (B,); and
    `masked_text`, (B, L), with `masked_labels`, -100 where no token is to be told; `boxes`, (B, h, w) bool, True for
    the patches inside of the crop; and `still`, (B,) bool, which videos are pictures.

    With the gradient cache, towers, masked modelling and fusion run in chunks; the tokens of the whole batch are kept.

    Args:
        video_encoder: the video tower, with tokens on a grid (time, height, width), such as `TimeSformer` or
            `FrameEncoder`.
        text_encoder: of the video tower's width, with layers that fuse but no cross-attention, and a token head unless
            `mask_rate` is 0.
        video_processor: how videos become the tower's input.
        tokenizer: how texts become ids; BERT's.
        embed_dim: the width of the joint space.
        pretrained: weights to begin with: a released file, or a folder of a saved ALPRO.
        temperature: τ at the start.
        temperature_bounds: τ is held between them.
        mask_rate: the share of tokens that masked modelling asks for; 0 goes without it, as in fine-tuning.
        prompter: what names crops for prompting entity modelling; None goes without it, as in fine-tuning.
        hardness_warmup: optimizer steps in which matching's negatives become hard, from any at first; ours, for fusion
            layers of random weights. 0, as published: the hard ones from the start.

    Attributes:
        temp: τ, which divides, under its published name.

    Raises:
        ValueError: the towers do not fit each other or the mask rate.
    """

    modalities = MODALITIES

    def __init__(
        self,
        video_encoder: Encoder,
        text_encoder: Bert,
        video_processor: Processor,
        tokenizer: Tokenizer,
        embed_dim: int = 256,
        pretrained: str | None = None,
        temperature: float = 0.07,
        temperature_bounds: tuple[float, float] = (0.001, 0.5),
        mask_rate: float = 0.15,
        prompter: EntityPrompter | None = None,
        hardness_warmup: int = 0,
    ) -> None:
        super().__init__()
        check_towers(video_encoder, text_encoder)
        _check_masking(text_encoder, mask_rate)
        self.processors = {"video": video_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"video": video_encoder, "text": text_encoder})
        heads = {name: LinearProjection(tower.width, embed_dim, bias=True) for name, tower in self.encoders.items()}  # type: ignore[arg-type]
        self.projections = projections_for(self.encoders, embed_dim, **heads)
        self.itm_head = nn.Linear(text_encoder.width, 2)
        self.temp = nn.Parameter(torch.tensor(temperature))
        self.temperature_bounds, self.mask_rate = temperature_bounds, mask_rate
        self.prompter, self.hardness_warmup = prompter, hardness_warmup
        if prompter is not None:
            hidden = 2 * text_encoder.width  # modeling/alpro_models.py
            last = nn.Linear(hidden, len(prompter.entities))
            self.mpm_head = nn.Sequential(nn.Linear(text_encoder.width, hidden), nn.ReLU(), last)
        if pretrained is not None:
            fill(self, pretrained)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """log(1/τ), as the step log and other methods have it."""
        return -self.temp.log()

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """`pooled` lies in the joint space; `tokens` are what fusion reads, for `rerank`."""
        encoding = self._tower(modality, inputs, mask)
        return encoding.replace(pooled=self.projections[modality](encoding.pooled))

    def rerank(self, video: Encoding, text: Encoding) -> Float[Tensor, " pairs"]:
        """How surely text i belongs to video i; see `collimate.evaluation.reranking`.

        The logarithm of the odds: it ranks as the published probability does, but without ties where that is rounded.
        """
        rows = {"video_tokens": video.tokens, "text_tokens": text.tokens, "text_mask": text.token_mask}
        logits = self._match(rows)["logits"]
        return logits[:, 1] - logits[:, 0]

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        self.temp.clamp_(*self.temperature_bounds)

    # The step ---------------------------------------------------------------------------------------------

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What is computed sample by sample: both towers, masked modelling, and what crops show."""
        video = self._tower("video", self.processors["video"].finish(batch["video"]))
        text = self._tower("text", batch["text"], self.processors["text"].mask(batch["text"]))
        found = {
            "video": self.projections["video"](video.pooled),
            "text": self.projections["text"](text.pooled),
            "video_tokens": video.tokens,
            "text_tokens": text.tokens,
            "text_mask": text.token_mask,
        }
        if self.mask_rate:
            found |= self._masked_modelling(batch, text.token_mask, video)
        if self.prompter is not None:
            found |= self._named_crops(batch, video)
        return found  # type: ignore[return-value]

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        video, text = (normalize(embeddings[name], dim=1) for name in MODALITIES)
        matched = self._matched(embeddings, (text @ video.T / self.temp).detach(), batch)
        logits, true = matched["logits"], len(video)
        terms = {"vtc": clip_loss(video, text, 1 / self.temp), "vtm": matching_loss(logits, true)}
        self.statistics = {"accuracy/matching": matching_accuracy(logits, true)}
        if self.mask_rate:
            count = embeddings["masked_count"]
            terms["mlm"] = mean_of_chosen(embeddings["masked_loss"], count, LOCAL)
            self.statistics["accuracy/masked"] = mean_of_chosen(embeddings["masked_right"], count, LOCAL)
        if self.prompter is not None:
            kept = embeddings["entities_kept"]
            losses = cross_entropy(matched["entities"][:true].float(), embeddings["entities"], reduction="none")
            terms["pem"] = mean_of_chosen(losses * kept, kept.long())
            self.statistics["entities/kept"] = kept.float().mean()
        return terms

    def _tower(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """A tower's own encoding, as fusion reads it."""
        encoding = self.encoders[modality](inputs, mask)
        return pooled_over_time(encoding).pooled_first() if modality == "video" else encoding

    def _masked_modelling(self, batch: dict[str, Any], mask: Bool[Tensor, "B L"], video: Encoding) -> dict[str, Tensor]:
        """Of each sample, the sum of its masked tokens' losses, how many they are, and how many are told rightly."""
        text, bert = self._masked_text(batch, mask), self._bert
        fused = bert.fuse_joined(bert(text.ids, mask), video)
        assert fused.tokens is not None
        logits = bert.token_logits(fused.tokens[:, : mask.shape[1]][text.chosen])
        return told_by_text(logits, text)

    def _masked_text(self, batch: dict[str, Any], mask: Bool[Tensor, "B L"]) -> MaskedTokens:
        """The texts with some tokens hidden, never [CLS] and [SEP]; as drawn here, or as the batch holds them."""
        if "masked_text" in batch:
            return MaskedTokens(batch["masked_text"], batch["masked_labels"])
        last = mask.sum(1, keepdim=True) - 1
        eligible = mask & (torch.arange(mask.shape[1], device=mask.device) < last)
        eligible[:, 0] = False
        tokenizer: Any = self.processors["text"]
        chosen = choose_tokens(eligible, self.mask_rate)
        vocabulary = self._bert.embeddings.word_embeddings.num_embeddings
        return hide_tokens(batch["text"], chosen, tokenizer.mask_id, vocabulary)

    def _named_crops(self, batch: dict[str, Any], video: Encoding) -> dict[str, Tensor]:
        """The box of each clip's crop, what the crop shows by the teacher, and whether that counts."""
        assert self.prompter is not None
        if video.grid is None:
            raise ValueError(
                "Prompting entity modelling reads tokens in a box: the video tower must give them on a grid."
            )
        clips, grid = batch["video"], (video.grid[0], video.grid[1])
        boxes = batch["boxes"] if "boxes" in batch else draw_boxes(len(clips), grid).to(clips.device)
        still = batch["still"] if "still" in batch else stands_still(clips)
        found = self.prompter(cropped(clips, boxes), still)
        return {"boxes": boxes.flatten(1), "entities": found.labels, "entities_kept": found.kept}

    def _matched(
        self, embeddings: dict[str, Tensor], by_text: Float[Tensor, "n n"], batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        """What `_match` gives for true pairs, texts with wrong videos, and videos with wrong texts."""
        videos = texts = own = torch.arange(len(by_text), device=by_text.device)
        # The last batch of validation may be one sample: there are true pairs alone.
        if self.training or len(own) > 1:
            hardness = self.warmed_up(self.hardness_warmup)
            wrong_video, wrong_text = (
                batch[name] if name in batch else draw_negatives(negative_weights(logits, hardness=hardness))
                for name, logits in (("negative_video", by_text), ("negative_text", by_text.T))
            )
            videos, texts = torch.cat([own, wrong_video, own]), torch.cat([own, own, wrong_text])
        names = {"video_tokens": videos, "text_tokens": texts, "text_mask": texts}
        names |= {} if self.prompter is None else {"boxes": videos}
        rows = {name: embeddings[name][index] for name, index in names.items()}
        with self.tower_precision():
            return self.in_chunks(self._match, rows)

    def _match(self, rows: dict[str, Any]) -> dict[str, Tensor]:
        """The logits of pairs, one a row, and those of the entities in their boxes."""
        dtype = self.itm_head.weight.dtype
        video, text = rows["video_tokens"].to(dtype), rows["text_tokens"].to(dtype)
        fused = self._bert.fuse_joined(Encoding(text[:, 0], text, rows["text_mask"]), Encoding(video[:, 0], video))
        found = {"logits": self.itm_head(fused.pooled)}
        if "boxes" in rows:
            assert fused.tokens is not None
            found["entities"] = self.mpm_head(inside(fused.tokens, rows["boxes"]))
        return found

    @property
    def _bert(self) -> Any:
        return self.encoders["text"]

    # Weights ----------------------------------------------------------------------------------------------

    @classmethod
    def from_official(
        cls,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor],
        video_processor: Processor | None = None,
        tokenizer: Tokenizer | None = None,
        heads: int | None = None,
        fusion_layer: int | None = None,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        entities: Sequence[str] | str | None = None,
        **options: Any,
    ) -> ALPRO:
        """From the released code's weights, pre-trained or fine-tuned for retrieval.

        Args:
            checkpoint: a file, or a state dict.
            video_processor: frames squashed to the weights' size, as many as they have positions for, if None.
            tokenizer: `bert-base-uncased`'s, of 30 tokens, if None; downloaded unless cached.
            heads: attention heads of both towers; one for each 64 of the width if None.
            fusion_layer: the first layer of the BERT that fuses; the first of the upper half if None.
            dropout: of the BERT, in training.
            drop_path: of the video tower, in training.
            entities: what the teacher of a pre-trained model tells apart, as of `EntityPrompter`, in the order of its
                head; the teacher and the head that tells entities are left out if None.
            options: further arguments of the constructor.

        Raises:
            CheckpointError: these are no such weights; names what is missing or has no place.
        """
        arguments, weights = read_official(
            checkpoint, video_processor, tokenizer, heads, fusion_layer, dropout, drop_path, options
        )
        if entities is not None:
            bert: Any = arguments["text_encoder"]
            teacher = Prompter.from_official(checkpoint, video_processor, tokenizer, heads, bert.fusion_layer)
            arguments["prompter"] = EntityPrompter(teacher, entities)
            weights |= entity_weights(checkpoint, bert.fusion_layer)
        method = cls(**arguments)
        fill(method, weights)
        return method.eval()


def check_towers(video: Encoder, text: Bert) -> None:
    """Whether the upper layers of the BERT can read texts and videos together.

    Raises:
        ValueError: they cannot.
    """
    if text.cross_width is not None or text.fusion_layer == len(text.layers) or text.width != video.width:
        raise ValueError(
            f"ALPRO's BERT reads texts and videos together: build it with fusion_layer, without cross_width, and of "
            f"the video tower's width, {video.width}; it has fusion_layer={text.fusion_layer} of {len(text.layers)}, "
            f"cross_width={text.cross_width} and width={text.width}."
        )


def _check_masking(text: Bert, mask_rate: float) -> None:
    if not 0 <= mask_rate < 1:
        raise ValueError(f"mask_rate is a share of the tokens, from 0 to below 1, not {mask_rate}.")
    if bool(mask_rate) != (text.cls is not None):
        raise ValueError(
            "Masked modelling and the token head go together: mask_rate above 0 and token_head=True, or neither."
        )
