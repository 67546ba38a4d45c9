"""What earlier training left, as parts of later training. In a recipe each is the `class_path` of a part:

    tokenizer:
      class_path: collimate_audio.trained_tokenizer
      init_args: {source: runs/beats_tokenizer/model}

What is built from it is the plain part with its weights, so that checkpoints and model folders do not need the source.
"""

from __future__ import annotations

from typing import Any

from collimate.checkpoints import load
from collimate_audio.beats import BEATs, BeatsHead
from collimate_audio.tokenizers import AcousticTokenizer


def trained_encoder(source: str) -> BEATs:
    """The encoder in a folder, its own or that of a method that trained it; with its front end.

    Args:
        source: a folder, a .ckpt of a training run, or a hub id; or a checkpoint as BEATs' authors publish them (.pt),
            which says nothing of its front end: that of the paper is `FilterBank`'s own.

    Raises:
        TypeError: there is no such encoder in it.
    """
    return BEATs.from_official(source) if source.endswith(".pt") else BEATs.from_pretrained(source)


def trained_tokenizer(source: str) -> AcousticTokenizer:
    """The tokenizer in a folder: its own, or that of `BeatsDistillation` or `BeatsPretraining`; with its front end.

    Args:
        source: as for `trained_encoder`.

    Raises:
        TypeError: there is no tokenizer in it.
    """
    loaded = load(source)
    tokenizer: Any = getattr(loaded, "tokenizer", None)
    if isinstance(tokenizer, AcousticTokenizer):
        tokenizer.processor = loaded.processors["audio"]
        return tokenizer
    return AcousticTokenizer.from_pretrained(source)


def trained_head(source: str) -> BeatsHead:
    """The head of a fine-tuned model, whose logits a tokenizer may be taught.

    Args:
        source: as for `trained_encoder`, of a method that has a `head`.

    Raises:
        TypeError: there is no head in it.
    """
    head = getattr(load(source), "head", None)
    if not isinstance(head, BeatsHead):
        raise TypeError(f"{source} holds no head of BEATs: it is not fine-tuned on classes.")
    return head
