"""TCL as a method; see the package's docstring."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.distributed import LOCAL
from collimate.encoders import Bert, Encoder, LinearProjection, projections_for
from collimate.encoders.bert_maps import cross_attention_maps
from collimate.encoding import Encoding
from collimate.losses import FeatureQueue, Leading, SharedLabels, Targets
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
from collimate.training import Method, follow, momentum_copy
from collimate_vision_language.tcl.alignment import Locals, Pair, alignment_losses, pooled_grid
from collimate_vision_language.tcl.official import fill, read_official

MODALITIES = ("image", "text")


@composed(
    similarity="cosine; of pooled with local vectors",
    targets="own pair, softened by a momentum model; own view",
    negatives="all others of all ranks, and a queue",
)
class TCL(Method):
    """A picture tower and a BERT, whose upper layers fuse both, taught by copies of themselves that follow slowly.

    A batch holds `image`, `image_view` (another draw of its augmentation; `image` stands in where there is none, as in
    validation), `text` and, with `image_ids`, `id`. For tests, it may also hold what is else drawn: `negative_image`
    and `negative_text`, the index in the batch of each text's wrong picture and each picture's wrong text, (B,); and
    `masked_text`, (B, L), with `masked_labels`, -100 where no token is to be told.

    With the gradient cache, towers, masked modelling and fusion run in chunks; the tokens of the whole batch are kept.

    Args:
        image_encoder: the picture tower; with a grid of tokens for the local term. `pooled` is its class token.
        text_encoder: with cross-attention to the picture tower's width, and a token head unless `mask_rate` is 0.
        image_processor: how pictures become the tower's input.
        tokenizer: how texts become ids; BERT's.
        embed_dim: D, the width of the joint space.
        pretrained: weights to begin with: a released file, or a folder of a saved TCL. Positions are interpolated to
            the picture tower's size. What fine-tuning does not use is left out.
        queue_size: Q. As published, many batches of all ranks together.
        momentum: m.
        alpha: α, the share of soft targets.
        alpha_warmup: optimizer steps in which α grows from 0; published, those of the first epoch.
        temperature: τ at the start.
        temperature_bounds: τ is held between them; None holds it nowhere, as in the released fine-tuning.
        contrast_weight: of each of the three contrastive terms: 1/3 as in the released code, 1 as in the paper.
        local_grid: the picture's patches are pooled to so many windows along each edge.
        mask_rate: the share of tokens that masked modelling asks for; 0 goes without it, as in fine-tuning.
        image_ids: samples of one picture are all positives of each other, and never negatives in matching.
        hardness_warmup: optimizer steps in which matching's negatives become hard, from any at first; ours, for fusion
            layers of random weights. 0, as published: the hard ones from the start.

    Attributes:
        temp: τ, which divides, under its published name.

    Raises:
        ValueError: the towers do not fit each other or the mask rate.
    """

    modalities = MODALITIES
    views = MappingProxyType({"image_view": "image"})

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Bert,
        image_processor: Processor,
        tokenizer: Tokenizer,
        embed_dim: int = 256,
        pretrained: str | None = None,
        queue_size: int = 65536,
        momentum: float = 0.995,
        alpha: float = 0.4,
        alpha_warmup: int = 0,
        temperature: float = 0.07,
        temperature_bounds: tuple[float, float] | None = (0.001, 0.5),
        contrast_weight: float = 1 / 3,
        local_grid: int = 4,
        mask_rate: float = 0.15,
        image_ids: bool = False,
        hardness_warmup: int = 0,
    ) -> None:
        super().__init__()
        check_towers(image_encoder, text_encoder, mask_rate)
        self.processors = {"image": image_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({"image": image_encoder, "text": text_encoder})
        heads = {name: LinearProjection(tower.width, embed_dim, bias=True) for name, tower in self.encoders.items()}  # type: ignore[arg-type]
        self.projections = projections_for(self.encoders, embed_dim, **heads)
        self.itm_head = nn.Linear(text_encoder.width, 2)
        self.temp = nn.Parameter(torch.tensor(temperature))
        self.momentum_encoders = momentum_copy(self.encoders)
        self.momentum_projections = momentum_copy(self.projections)
        self.queue = FeatureQueue(queue_size, dict.fromkeys(MODALITIES, embed_dim))
        self.momentum, self.alpha, self.alpha_warmup = momentum, alpha, alpha_warmup
        self.temperature_bounds, self.contrast_weight = temperature_bounds, contrast_weight
        self.local_grid, self.mask_rate, self.image_ids = local_grid, mask_rate, image_ids
        self.hardness_warmup = hardness_warmup
        self.also = ("id",) if image_ids else ()
        if pretrained is not None:
            fill(self, pretrained)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """log(1/τ), as the step log and other methods have it."""
        return -self.temp.log()

    @property
    def softness(self) -> float:
        """α at this step."""
        return self.alpha * self.warmed_up(self.alpha_warmup)

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """`pooled` lies in the joint space; `tokens` are the tower's own, the class token first, for `rerank`."""
        encoding = self.encoders[modality](inputs, mask)
        encoding = encoding.pooled_first() if modality == "image" else encoding
        return encoding.replace(pooled=self.projections[modality](encoding.pooled))

    def rerank(self, image: Encoding, text: Encoding) -> Float[Tensor, " pairs"]:
        """The logit that text i belongs to picture i; see `collimate.evaluation.reranking`."""
        rows = {"image_tokens": image.tokens, "text_tokens": text.tokens, "text_mask": text.token_mask}
        return self._match(rows)["logits"][:, 1]

    def localization_map(self, image: Encoding, text: Encoding) -> Float[Tensor, "N T L"]:
        """Where the fusion encoder looks to see that a text belongs to a picture: its cross-attention by gradient."""
        bert: Any = self.encoders["text"]
        layer = (len(bert.layers) - bert.fusion_layer - 1) // 2  # the third of six: salesforce/ALBEF, Grounding.py
        maps = cross_attention_maps(bert, lambda fused: self.itm_head(fused.pooled)[:, 1], image, text, layer)
        return maps[:, :, image.prefix :]

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        if self.temperature_bounds is not None:
            self.temp.clamp_(*self.temperature_bounds)
        follow(self.momentum_encoders, self.encoders, self.momentum)
        follow(self.momentum_projections, self.projections, self.momentum)

    # The step ---------------------------------------------------------------------------------------------

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What is computed sample by sample: both towers, their copies, and masked modelling."""
        views = {
            name: self.processors["image"].finish(batch.get(name, batch["image"])) for name in ("image", "image_view")
        }
        mask = self.processors["text"].mask(batch["text"])
        patches = self.encoders["image"](views["image"])
        text = self.encoders["text"](batch["text"], mask)
        found = {
            "image": self.projections["image"](patches.pooled),
            "text": self.projections["text"](text.pooled),
            "image_tokens": patches.pooled_first().tokens,
            "text_tokens": text.tokens,
            "text_mask": text.token_mask,
        }
        with torch.no_grad():
            taught = self.momentum_encoders["image"](views["image_view"])
            found |= self._momentum_features(taught, self.momentum_encoders["text"](batch["text"], mask))
        if self.mask_rate:
            found |= self._masked_modelling(batch, text.token_mask, patches.pooled_first(), taught.pooled_first())
        return found

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        features, momentum = (
            Pair(*(normalize(embeddings[f"{name}{suffix}"], dim=1) for name in MODALITIES)) for suffix in ("", "_key")
        )
        keys = Pair(*(torch.cat([getattr(momentum, name), self.queue[name].float()]) for name in MODALITIES))
        local = Locals(embeddings["image_local"], embeddings["text_local"], embeddings["text_mask"][:, 1:])
        ids = self._ids(batch)
        scale = 1 / self.temp
        aligned = alignment_losses(
            features, momentum, keys, local, scale, self._positives(ids, len(local.text)), self.softness
        )
        if self.training:
            self.queue.add(ids, image=momentum.image, text=momentum.text)
        matching, accuracy = self._matching(embeddings, features, momentum, scale, ids, batch)
        terms = {
            "cma": self.contrast_weight * aligned.cross_modal,
            "imc": self.contrast_weight * aligned.intra_modal,
            "lmi": self.contrast_weight * aligned.local,
            "itm": matching,
        }
        self.statistics = {
            **{f"contrast/{name}": value.detach() for name, value in aligned._asdict().items()},
            "similarity": torch.linalg.vecdot(*features).mean().detach(),
            "queue_fill": self.queue.fill,
            "alpha": torch.tensor(self.softness),
            "accuracy/matching": accuracy,
        }
        if self.mask_rate:
            count = embeddings["masked_count"]
            terms["mlm"] = mean_of_chosen(embeddings["masked_loss"], count, LOCAL)
            self.statistics["accuracy/masked"] = mean_of_chosen(embeddings["masked_right"], count, LOCAL)
        return terms

    def _momentum_features(self, image: Encoding, text: Encoding) -> dict[str, Tensor]:
        """The keys, and the locals: patches and words, without [CLS], of unit length; patches are pooled after that."""
        to_joint = self.momentum_projections
        assert image.tokens is not None
        assert text.tokens is not None
        patches = normalize(to_joint["image"](image.tokens).float(), dim=2)
        return {
            "image_key": to_joint["image"](image.pooled),
            "text_key": to_joint["text"](text.pooled),
            "image_local": pooled_grid(patches, image.grid, self.local_grid),
            "text_local": normalize(to_joint["text"](text.tokens[:, 1:]).float(), dim=2),
        }

    def _masked_modelling(
        self, batch: dict[str, Any], mask: Bool[Tensor, "B L"], image: Encoding, taught: Encoding
    ) -> dict[str, Tensor]:
        """Of each sample, the sum of its masked tokens' losses, how many they are, and how many are told rightly."""
        text = self._masked_text(batch, mask)
        logits = self._token_logits(self.encoders["text"], text, mask, image)
        with torch.no_grad():
            soft = self._token_logits(self.momentum_encoders["text"], text, mask, taught)
        return told_by_text(logits, text, soft, self.softness)

    def _masked_text(self, batch: dict[str, Any], mask: Bool[Tensor, "B L"]) -> MaskedTokens:
        """The texts with some tokens hidden, never [CLS]; as drawn here, or as the batch holds them."""
        if "masked_text" in batch:
            return MaskedTokens(batch["masked_text"], batch["masked_labels"])
        eligible = mask.clone()
        eligible[:, 0] = False
        bert, tokenizer = self.encoders["text"], self.processors["text"]
        assert isinstance(bert, Bert)
        assert isinstance(tokenizer, Tokenizer)
        chosen = choose_tokens(eligible, self.mask_rate)
        return hide_tokens(batch["text"], chosen, tokenizer.mask_id, bert.embeddings.word_embeddings.num_embeddings)

    def _token_logits(self, bert: Any, text: MaskedTokens, mask: Tensor, image: Encoding) -> Float[Tensor, "K V"]:
        """What a BERT takes the hidden tokens for, having seen the picture."""
        return bert.token_logits(bert.fuse(bert(text.ids, mask), image).tokens[text.chosen])

    def _ids(self, batch: dict[str, Any]) -> Int64[Tensor, " n"] | None:
        if not self.image_ids:
            return None
        if "id" not in batch:
            raise ValueError("TCL with image_ids needs the key `id` in a batch: which samples are of one picture.")
        return batch["id"]

    def _positives(self, ids: Tensor | None, count: int) -> Targets:
        return Leading(count) if ids is None else SharedLabels(ids, torch.cat([ids, self.queue.ids]))

    def _matching(
        self,
        embeddings: dict[str, Tensor],
        features: Pair,
        momentum: Pair,
        scale: Tensor,
        ids: Tensor | None,
        batch: dict[str, Any],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss and the accuracy over true pairs, texts with wrong pictures, and pictures with wrong texts."""
        images = texts = own = torch.arange(len(features.image), device=scale.device)
        # The last batch of validation may be one sample, also one that is repeated: there are true pairs alone.
        if self.training or len(own if ids is None else ids.unique()) > 1:
            hardness = self.warmed_up(self.hardness_warmup)
            by_text = negative_weights(scale * features.text @ momentum.image.T, ids, hardness)
            by_image = negative_weights(scale * features.image @ momentum.text.T, ids, hardness)
            wrong_image = batch["negative_image"] if "negative_image" in batch else draw_negatives(by_text)
            wrong_text = batch["negative_text"] if "negative_text" in batch else draw_negatives(by_image)
            images, texts = torch.cat([own, wrong_image, own]), torch.cat([own, own, wrong_text])
        rows = {name: embeddings[name][images if name == "image_tokens" else texts] for name in FUSED}
        with self.tower_precision():
            logits = self.in_chunks(self._match, rows)["logits"]
        return matching_loss(logits, len(own)), matching_accuracy(logits, len(own))

    def _match(self, rows: dict[str, Any]) -> dict[str, Tensor]:
        """The logits of pairs, one a row."""
        dtype = self.itm_head.weight.dtype
        image, text = rows["image_tokens"].to(dtype), rows["text_tokens"].to(dtype)
        bert: Any = self.encoders["text"]
        fused = bert.fuse(Encoding(text[:, 0], text, rows["text_mask"]), Encoding(image[:, 0], image))
        return {"logits": self.itm_head(fused.pooled)}

    # Weights ----------------------------------------------------------------------------------------------

    @classmethod
    def from_official(
        cls,
        checkpoint: str | PathLike[str] | Mapping[str, Tensor],
        image_processor: Processor | None = None,
        tokenizer: Tokenizer | None = None,
        image_size: int | None = None,
        image_heads: int | None = None,
        text_heads: int | None = None,
        dropout: float = 0.1,
        **options: Any,
    ) -> TCL:
        """From the released code's weights, pre-trained or fine-tuned; those of ALBEF have the same form.

        Fine-tuned ones know the ids of pictures, and come as what fine-tunes: `image_ids`, no masked modelling,
        temperature free.

        Args:
            checkpoint: a file, or a state dict.
            image_processor: CLIP's mean, squashed to the picture's size, if None.
            tokenizer: `bert-base-uncased`'s, of 25 tokens of cleaned captions, if None; downloaded unless cached.
            image_size: the side of pictures in pixels, to which positions are interpolated; the weights' own if None.
            image_heads, text_heads: attention heads; one for each 64 of a tower's width if None.
            dropout: of the BERT, in training.
            options: further arguments of the constructor.

        Raises:
            CheckpointError: these are no such weights; names what is missing or has no place.
        """
        arguments, weights = read_official(
            checkpoint, image_processor, tokenizer, image_size, image_heads, text_heads, dropout, options
        )
        method = cls(**arguments)
        fill(method, weights)
        return method.eval()


FUSED = ("image_tokens", "text_tokens", "text_mask")


def check_towers(image: Encoder, text: Bert, mask_rate: float) -> None:
    """Refuse towers that do not fit each other, or the share of tokens that masked modelling asks for.

    Raises:
        ValueError: says what does not fit.
    """
    if text.cross_width != image.width:
        raise ValueError(
            f"TCL's BERT attends to pictures: build it with fusion_layer and cross_width={image.width}, the width of "
            f"the image tower; its cross_width is {text.cross_width}."
        )
    if not 0 <= mask_rate < 1:
        raise ValueError(f"mask_rate is a share of the tokens, from 0 to below 1, not {mask_rate}.")
    if mask_rate and text.cls is None:
        raise ValueError("Masked modelling needs a token head: build Bert with token_head=True, or set mask_rate to 0.")
    if not mask_rate and text.cls is not None:
        raise ValueError(
            "Without masked modelling nothing trains the token head: build Bert without token_head, or set mask_rate."
        )
