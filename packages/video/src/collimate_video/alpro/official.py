"""Weights of the released code (salesforce/ALPRO, and its port in salesforce/LAVIS) by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from collimate_video.timesformer_weights import HEAD_WIDTH, official_settings, official_weights, resize_tables

NAMES = (
    Rename("visual_encoder.model.", "encoders.video."),
    Rename("text_encoder.", "encoders.text."),
    Rename("vision_proj.", "projections.video.linear."),
    Rename("text_proj.", "projections.text.linear."),
    Rename("itm_head.", "itm_head."),
    Rename("classifier.", "head."),  # of models that answer questions
    Rename("temp", "temp"),
)
VIDEO, BERT = "visual_encoder.model.", "text_encoder."
PROMPTER, ENTITY_HEAD = "prompter.", "mpm_head."  # the teacher, and the head that tells what it names
PROMPTS = ("video_prompt_feat", "image_prompt_feat")
UNREAD = ("itm_head.", "text_encoder.cls.")  # which the teacher has, but nothing reads
TOKEN_HEAD = "encoders.text.cls.predictions."
OPTIONAL = (TOKEN_HEAD, PROMPTER, ENTITY_HEAD)
HEAD = ("0.weight", "0.bias", "2.weight", "2.bias")


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
    theirs = _read(checkpoint)
    with _telling_what_is_missing():
        weights = named(theirs)
        masked = TOKEN_HEAD + "bias" in weights and options.get("mask_rate", 1) != 0
        bert = _bert(weights, heads, fusion_layer, dropout, masked)
        arguments = _towers(theirs, VIDEO, video_processor, tokenizer, heads, drop_path)
        arguments |= {"text_encoder": bert, "embed_dim": len(weights["projections.video.linear.weight"])}
        return arguments | ({} if masked else {"mask_rate": 0.0}) | dict(options), weights


def read_prompter(
    checkpoint: str | PathLike[str] | Mapping[str, Tensor],
    video_processor: Processor | None,
    tokenizer: Tokenizer | None,
    heads: int | None,
    fusion_layer: int | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same for a `Prompter`, whose BERT has text layers only.

    Raises:
        CheckpointError: these are no such weights.
    """
    theirs = _read(checkpoint)
    with _telling_what_is_missing():
        weights = named_prompter(theirs, fusion_layer)
        layers = _layers(weights)
        arguments = _towers(theirs, _prefix(theirs) + VIDEO, video_processor, tokenizer, heads, 0.0)
        arguments |= {"text_encoder": _bert(weights, heads, layers, 0.0, token_head=False)}
        return arguments | {"embed_dim": len(weights["projections.video.linear.weight"])}, weights


def entity_weights(checkpoint: str | PathLike[str] | Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """What a pre-trained ALPRO has for its entities, under the names of one with an `EntityPrompter`.

    Args:
        layers: of the text, which the teacher's BERT has.

    Raises:
        CheckpointError: it has none: it was fine-tuned, or is no ALPRO.
    """
    theirs = _read(checkpoint)
    with _telling_what_is_missing():
        found = {f"{PROMPTER}{PROMPTER}{name}": value for name, value in named_prompter(theirs, layers).items()}
        found |= {PROMPTER + name: theirs[PROMPTER + name] for name in PROMPTS if PROMPTER + name in theirs}
        return found | {f"{ENTITY_HEAD}{rest}": theirs[f"{ENTITY_HEAD}{rest}"] for rest in HEAD}


def named(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released code's weights under the names of `ALPRO`.

    Raises:
        CheckpointError: there are weights that have no place there.
    """
    plain = {name: value for name, value in theirs.items() if not name.startswith((VIDEO, BERT, PROMPTER, ENTITY_HEAD))}
    plain |= {f"{VIDEO}{name}": value for name, value in official_weights(theirs, VIDEO).items()}
    plain |= {f"{BERT}{name}": value for name, value in official_bert_weights(theirs, BERT).items()}
    return to_ours(plain, NAMES)


def named_prompter(theirs: Mapping[str, Tensor], layers: int | None = None) -> dict[str, Tensor]:
    """The released code's weights of a prompter, alone or within an ALPRO, under the names of `Prompter`.

    Args:
        layers: of its BERT that are kept; the lower half if None.

    Raises:
        CheckpointError: there are weights that have no place there.
    """
    prefix = _prefix(theirs)
    own = {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}
    own = {name: value for name, value in own.items() if not name.startswith((*UNREAD, *PROMPTS))}
    weights = named(own)
    layers = _layers(weights) // 2 if layers is None else layers
    return {name: value for name, value in weights.items() if _layer(name) < layers}


def fill(
    method: Method,
    source: str | Mapping[str, Tensor],
    named: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = named,
) -> None:
    """Give an ALPRO the weights of another, or a prompter those of another.

    A token head, and what tells entities, may be absent, or is left out where the method has none. Positions of another
    number of places or frames are resized to the method's.

    Args:
        method: an ALPRO or a prompter.
        source: a released file; its weights, by the names of the method; or a folder that `save` wrote of such a one.
        named: from a released file's names to those of the method.

    Raises:
        CheckpointError: other weights are missing or too many, or of another shape.
    """
    what = "the weights" if isinstance(source, Mapping) else source
    source = _weights(source, named) if isinstance(source, str) else source
    own = method.state_dict()
    weights = {name: value for name, value in source.items() if name in own or not name.startswith(OPTIONAL)}
    weights = {name: value for name, value in own.items() if name.startswith(OPTIONAL)} | weights
    resize_tables(weights, own, "encoders.video.")
    wrong = [*(own.keys() ^ weights.keys()), *(n for n in own.keys() & weights if own[n].shape != weights[n].shape)]
    if wrong:
        raise CheckpointError(
            f"{what}: not those of this {type(method).__name__}. Missing, without a place here, or of another shape: "
            f"{', '.join(sorted(wrong)[:4])} ({len(wrong)} in all)."
        )
    method.load_state_dict(weights)


def towers_of(source: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The towers of what was pre-trained or fine-tuned, and its head of answers; that of `own` where it has none.

    Args:
        source: a released file, or a folder that `save` wrote.
        own: the weights of the method that is to be filled.

    Raises:
        CheckpointError: there are other weights.
    """
    found = _weights(source, named)
    found = {
        name: value
        for name, value in found.items()
        if name.startswith(("encoders.", "head.")) and not name.startswith(TOKEN_HEAD.removesuffix("predictions."))
    }
    return {name: value for name, value in own.items() if name.startswith("head.")} | found


def _weights(source: str, named: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
    folder = Path(source)
    return read_safetensors(folder / WEIGHTS) if folder.is_dir() else named(read_state_dict(source))


def _read(checkpoint: str | PathLike[str] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return tidy(dict(checkpoint)) if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)


@contextmanager
def _telling_what_is_missing() -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise CheckpointError(
            f"These are no weights of ALPRO in the released code's names: {error} is missing."
        ) from error


def _prefix(theirs: Mapping[str, Tensor]) -> str:
    """What the names of a prompter's weights begin with, within an ALPRO or alone."""
    return PROMPTER if any(name.startswith(PROMPTER + VIDEO) for name in theirs) else ""


def _layers(weights: Mapping[str, Tensor]) -> int:
    return 1 + max((_layer(name) for name in weights), default=-1)


def _layer(name: str) -> int:
    """The number of the layer of the BERT that a weight belongs to; -1 for none."""
    return int(name.split(".")[4]) if name.startswith("encoders.text.encoder.layer.") else -1


def _towers(
    theirs: Mapping[str, Tensor],
    prefix: str,
    video_processor: Processor | None,
    tokenizer: Tokenizer | None,
    heads: int | None,
    drop_path: float,
) -> dict[str, Any]:
    sizes = official_settings(official_weights(theirs, prefix))
    images = ImageProcessor(sizes["image_size"], resize="squash")
    return {
        "video_encoder": TimeSformer(**sizes | {"heads": heads or sizes["heads"], "drop_path": drop_path}),
        "video_processor": video_processor or VideoProcessor(sizes["frames"], images),
        "tokenizer": tokenizer or HuggingFaceTokenizer("bert-base-uncased", 30),
    }


def _bert(
    weights: Mapping[str, Tensor], heads: int | None, fusion_layer: int | None, dropout: float, token_head: bool
) -> Bert:
    prefix = "encoders.text."
    vocab_size, width = weights[prefix + "embeddings.word_embeddings.weight"].shape
    layers = _layers(weights)
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
