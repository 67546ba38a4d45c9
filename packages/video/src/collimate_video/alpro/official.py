"""Weights of the released code (salesforce/ALPRO, and its port in salesforce/LAVIS) by their names."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from collimate.checkpoints.files import CheckpointError, read_safetensors, read_state_dict, tidy
from collimate.checkpoints.folder import WEIGHTS
from collimate.checkpoints.two_towers import Rename, to_ours
from collimate.encoders import Bert
from collimate.encoders.bert_weights import official_bert_weights
from collimate.processing import HuggingFaceTokenizer, ImageProcessor, Processor, Tokenizer
from collimate.training import Method
from collimate_video.processor import VideoProcessor
from collimate_video.timesformer import TimeSformer
from collimate_video.timesformer_weights import HEAD_WIDTH, official_settings, official_weights

NAMES = (
    Rename("visual_encoder.model.", "encoders.video."),
    Rename("text_encoder.", "encoders.text."),
    Rename("vision_proj.", "projections.video.linear."),
    Rename("text_proj.", "projections.text.linear."),
    Rename("itm_head.", "itm_head."),
    Rename("temp", "temp"),
)
VIDEO, BERT = "visual_encoder.model.", "text_encoder."
ELSEWHERE = ("prompter.", "mpm_head.")  # the teacher, and the head that tells what it names
TOKEN_HEAD = "encoders.text.cls.predictions."


def read_official(
    checkpoint: str | PathLike[str] | Mapping[str, Tensor],
    video_processor: Processor | None,
    tokenizer: Tokenizer | None,
    heads: int | None,
    fusion_layer: int | None,
    dropout: float,
    drop_path: float,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of an ALPRO of these weights' sizes, and the weights under its names.

    Raises:
        CheckpointError: these are no such weights.
    """
    theirs = tidy(dict(checkpoint)) if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)
    try:
        sizes = official_settings(official_weights(theirs, VIDEO))
        weights = named(theirs)
        masked = TOKEN_HEAD + "bias" in weights and options.get("mask_rate", 1) != 0
        images = ImageProcessor(sizes["image_size"], resize="squash")
        return {
            "video_encoder": TimeSformer(**sizes | {"heads": heads or sizes["heads"], "drop_path": drop_path}),
            "text_encoder": _bert(weights, heads, fusion_layer, dropout, masked),
            "video_processor": video_processor or VideoProcessor(sizes["frames"], images),
            "tokenizer": tokenizer or HuggingFaceTokenizer("bert-base-uncased", 30),
            "embed_dim": len(weights["projections.video.linear.weight"]),
            **({} if masked else {"mask_rate": 0.0}),
            **options,
        }, weights
    except KeyError as error:
        raise CheckpointError(
            f"These are no weights of ALPRO in the released code's names: {error} is missing."
        ) from error


def named(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released code's weights under the names of `ALPRO`.

    Raises:
        CheckpointError: there are weights that have no place there.
    """
    apart = (VIDEO, BERT, *ELSEWHERE)
    plain = {name: value for name, value in theirs.items() if not name.startswith(apart)}
    plain |= {f"{VIDEO}{name}": value for name, value in official_weights(theirs, VIDEO).items()}
    plain |= {f"{BERT}{name}": value for name, value in official_bert_weights(theirs, BERT).items()}
    return to_ours(plain, NAMES)


def fill(method: Method, source: str | Mapping[str, Tensor]) -> None:
    """Give an ALPRO the weights of another. A token head may be absent, or is left out where the method has none.

    Args:
        method: an ALPRO.
        source: a released file; its weights, by the names of `ALPRO`; or a folder that `save` wrote of an ALPRO.

    Raises:
        CheckpointError: other weights are missing or too many, or of another shape.
    """
    what = "the weights" if isinstance(source, Mapping) else source
    if isinstance(source, str):
        folder = Path(source)
        source = read_safetensors(folder / WEIGHTS) if folder.is_dir() else named(read_state_dict(source))
    own = method.state_dict()
    weights = {name: value for name, value in source.items() if name in own or not name.startswith(TOKEN_HEAD)}
    weights = {name: value for name, value in own.items() if name.startswith(TOKEN_HEAD)} | weights
    wrong = [*(own.keys() ^ weights.keys()), *(n for n in own.keys() & weights if own[n].shape != weights[n].shape)]
    if wrong:
        raise CheckpointError(
            f"{what}: not those of this ALPRO. Missing, without a place here, or of another shape: "
            f"{', '.join(sorted(wrong)[:4])} ({len(wrong)} in all)."
        )
    method.load_state_dict(weights)


def _bert(
    weights: Mapping[str, Tensor], heads: int | None, fusion_layer: int | None, dropout: float, token_head: bool
) -> Bert:
    prefix = "encoders.text."
    vocab_size, width = weights[prefix + "embeddings.word_embeddings.weight"].shape
    layers = len({int(name.split(".")[4]) for name in weights if name.startswith(prefix + "encoder.layer.")})
    return Bert(
        vocab_size=vocab_size,
        context_length=len(weights[prefix + "embeddings.position_embeddings.weight"]),
        width=width,
        layers=layers,
        heads=heads or max(1, width // HEAD_WIDTH),
        hidden=len(weights[prefix + "encoder.layer.0.intermediate.dense.bias"]),
        fusion_layer=layers // 2 if fusion_layer is None else fusion_layer,
        token_head=token_head,
        dropout=dropout,
    )
