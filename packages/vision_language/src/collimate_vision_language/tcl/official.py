"""Weights of the released code (uta-smile/TCL, and salesforce/ALBEF before it) by their names."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]
from torch import Tensor

from collimate.checkpoints.files import CheckpointError, read_safetensors, read_state_dict, tidy
from collimate.checkpoints.folder import WEIGHTS
from collimate.checkpoints.two_towers import Rename, to_ours
from collimate.encoders import Bert, TimmImageEncoder
from collimate.encoders.bert_weights import official_bert_weights
from collimate.losses.queue import NO_ID
from collimate.processing import HuggingFaceTokenizer, ImageProcessor, Processor, Tokenizer
from collimate.training import Method

NAMES = (
    Rename("visual_encoder.", "encoders.image.model."),
    Rename("visual_encoder_m.", "momentum_encoders.image.model."),
    Rename("text_encoder.", "encoders.text."),
    Rename("text_encoder_m.", "momentum_encoders.text."),
    Rename("vision_proj.", "projections.image.linear."),
    Rename("vision_proj_m.", "momentum_projections.image.linear."),
    Rename("text_proj.", "projections.text.linear."),
    Rename("text_proj_m.", "momentum_projections.text.linear."),
    Rename("itm_head.", "itm_head."),
    Rename("temp", "temp"),
    Rename("image_queue", "queue.image_features", transposed=True),
    Rename("text_queue", "queue.text_features", transposed=True),
    Rename("idx_queue", "queue.ids"),
    Rename("queue_ptr", "queue.added"),
)
BERTS = ("text_encoder.", "text_encoder_m.")
POSITIONS = ("encoders.image.model.pos_embed", "momentum_encoders.image.model.pos_embed")
TOWERS = "encoders."
HEAD_WIDTH = 64  # of every released tower


def read_official(
    checkpoint: str | PathLike[str] | Mapping[str, Tensor],
    image_processor: Processor | None,
    tokenizer: Tokenizer | None,
    image_size: int | None,
    image_heads: int | None,
    text_heads: int | None,
    dropout: float,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of a TCL of these weights' sizes, and the weights under its names.

    Raises:
        CheckpointError: these are no such weights.
    """
    theirs = tidy(dict(checkpoint)) if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)
    weights = named(theirs)
    try:
        image, size = _image_tower(weights, image_size, image_heads)
        tuned = "queue.ids" in weights
        masked = "encoders.text.cls.predictions.bias" in weights and options.get("mask_rate", 1) != 0
        return {
            "image_encoder": image,
            "text_encoder": _bert(weights, text_heads, dropout, masked, image.width),
            "image_processor": image_processor or ImageProcessor(size, resize="squash"),
            "tokenizer": tokenizer or HuggingFaceTokenizer("bert-base-uncased", 25, "caption"),
            "embed_dim": len(weights["projections.image.linear.weight"]),
            "queue_size": len(weights["queue.image_features"]),
            **({} if masked else {"mask_rate": 0.0}),
            **({"image_ids": True, "temperature_bounds": None} if tuned else {}),
            **options,
        }, weights
    except KeyError as error:
        raise CheckpointError(
            f"These are no weights of TCL in the released code's names: {error} is missing."
        ) from error


def named(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released code's weights under the names of `TCL`.

    Raises:
        CheckpointError: there are weights that have no place there.
    """
    plain = {name: value for name, value in theirs.items() if not name.startswith(BERTS)}
    for prefix in BERTS:
        plain |= {f"{prefix}{name}": value for name, value in official_bert_weights(theirs, prefix).items()}
    weights = to_ours(plain, NAMES)
    if "queue.added" in weights:  # a place; a released queue is full
        weights["queue.added"] = weights["queue.added"].reshape(()) + len(weights["queue.image_features"])
    if "queue.ids" in weights:
        weights["queue.ids"] = weights["queue.ids"].flatten()
    return weights


def fill(method: Method, source: str | Mapping[str, Tensor]) -> None:
    """Give a TCL the weights of another, with its own size of pictures.

    The released code moves the momentum copies at the beginning of a step and saves between two, so that its files lack
    the last move: it is made here.

    What may be absent, or is left out where the method has no use for it: the token head, the ids of a queue, a queue
    of another length; and momentum copies, which then begin as copies.

    Args:
        method: a TCL.
        source: a released file; its weights, by the names of `TCL`; or a folder that `save` wrote of a TCL.

    Raises:
        CheckpointError: other weights are missing or too many, or of another shape.
    """
    what = "the weights" if isinstance(source, Mapping) else source
    released = isinstance(source, Mapping) or not Path(source).is_dir()
    source = _read(source)
    own = method.state_dict()
    weights = _fitted(source, own)
    if "queue.image_features" in weights and weights["queue.image_features"].shape != own["queue.image_features"].shape:
        weights = {name: value for name, value in weights.items() if not name.startswith("queue.")}
    elif "queue.image_features" in weights:
        weights.setdefault("queue.ids", torch.full_like(own["queue.ids"], NO_ID))
    weights = {name: value for name, value in weights.items() if name in own or ".text.cls." not in name}
    weights = {name: value for name, value in own.items() if _may_be_absent(name)} | _copies(weights) | weights
    _compare(what, own, weights)
    method.load_state_dict(weights)
    if released:
        method.after_optimizer_step()


def fill_towers(method: Method, source: str) -> None:
    """Give a method of the same two towers, `encoders`, those of a TCL; all else of it stays as it is.

    Args:
        method: with a picture tower of any size of pictures, and a BERT without a token head.
        source: a released file, or a folder that `save` wrote of a TCL.

    Raises:
        CheckpointError: weights of the towers are missing or too many, or of another shape.
    """
    own = {name: value for name, value in method.state_dict().items() if name.startswith(TOWERS)}
    weights = {name: value for name, value in _fitted(_read(source), own).items() if name.startswith(TOWERS)}
    weights = {name: value for name, value in weights.items() if ".text.cls." not in name}
    _compare(source, own, weights)
    method.load_state_dict(weights, strict=False)


def _read(source: str | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of `TCL`, of what `fill` takes."""
    if isinstance(source, Mapping):
        return dict(source)
    return read_safetensors(Path(source) / WEIGHTS) if Path(source).is_dir() else named(read_state_dict(source))


def _fitted(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose positions are those of the method's own size of pictures."""
    resized = {name: _resized(weights[name], own[name]) for name in POSITIONS if name in weights and name in own}
    return {**weights, **resized}


def _compare(what: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    wrong = [*(own.keys() ^ weights.keys()), *(n for n in own.keys() & weights if own[n].shape != weights[n].shape)]
    if wrong:
        raise CheckpointError(
            f"{what}: not those of this TCL. Missing, without a place here, or of another shape: "
            f"{', '.join(sorted(wrong)[:4])} ({len(wrong)} in all)."
        )


def _may_be_absent(name: str) -> bool:
    return name.startswith("queue.") or ".text.cls.predictions." in name


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The momentum copies as they begin."""
    return {
        f"momentum_{name}": value for name, value in weights.items() if name.startswith(("encoders.", "projections."))
    }


def _resized(positions: Tensor, like: Tensor) -> Tensor:
    """Position embeddings for another grid; bicubic, without antialiasing, as the released code does."""
    side = round((like.shape[1] - 1) ** 0.5)
    return resample_abs_pos_embed(positions, [side, side], num_prefix_tokens=1, antialias=False)


def _image_tower(
    weights: Mapping[str, Tensor], image_size: int | None, heads: int | None
) -> tuple[TimmImageEncoder, int]:
    prefix = "encoders.image.model."
    width, _, patch, _ = weights[prefix + "patch_embed.proj.weight"].shape
    size = image_size or patch * round((weights[prefix + "pos_embed"].shape[1] - 1) ** 0.5)
    sizes = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": len({name.split(".")[4] for name in weights if name.startswith(prefix + "blocks.")}),
        "num_heads": heads or width // HEAD_WIDTH,
        "mlp_ratio": len(weights[prefix + "blocks.0.mlp.fc1.bias"]) / width,
    }
    return TimmImageEncoder("vit_base_patch16_224", image_size=size, model_args=sizes), size


def _bert(weights: Mapping[str, Tensor], heads: int | None, dropout: float, token_head: bool, cross_width: int) -> Bert:
    prefix = "encoders.text."
    vocab_size, width = weights[prefix + "embeddings.word_embeddings.weight"].shape
    layers = {int(name.split(".")[4]) for name in weights if name.startswith(prefix + "encoder.layer.")}
    fusing = {int(name.split(".")[4]) for name in weights if name.startswith(prefix) and ".crossattention." in name}
    if not fusing:
        raise CheckpointError("These weights have no cross-attention: they are of a BERT that fuses nothing.")
    return Bert(
        vocab_size=vocab_size,
        context_length=len(weights[prefix + "embeddings.position_embeddings.weight"]),
        width=width,
        layers=len(layers),
        heads=heads or width // HEAD_WIDTH,
        hidden=len(weights[prefix + "encoder.layer.0.intermediate.dense.bias"]),
        fusion_layer=min(fusing),
        cross_width=cross_width,
        token_head=token_head,
        dropout=dropout,
    )
