"""Which frames, and which patches, are padding, given which samples are.

The exact rule: a window of a padded clip is real where all of it lies in the clip. Those are the windows that the clip
has when it is alone, so that no clip's encoding depends on what it is batched with.

The official rule (microsoft/unilm, beats/BEATs.py, forward_padding_mask) is approximate: it cuts the mask into as many
equal pieces as there are windows and drops the rest, first samples for frames, then frames for patches, although these
lie 8 to a time step. A piece is real where any of it is. It is needed to get the numbers of the released code, and of
models that were fine-tuned with it.

Shape legend: B clips, N positions, P pieces, W windows.
"""

from __future__ import annotations

from math import gcd
from typing import Literal, TypeAlias, get_args

from jaxtyping import Bool
from torch import Tensor

PaddingRule: TypeAlias = Literal["exact", "official"]


def real_windows(mask: Bool[Tensor, "B N"], size: int, stride: int) -> Bool[Tensor, "B W"]:
    """Windows all of whose positions are real.

    Args:
        mask: True where a position is real.
        size, stride: of the windows, in positions; only whole ones count.
    """
    block = gcd(size, stride)  # windows are made of whole blocks, and share them
    blocks = mask[:, : mask.shape[1] // block * block].unflatten(1, (-1, block)).all(-1)
    return blocks.unfold(1, size // block, stride // block).all(-1)


def real_pieces(mask: Bool[Tensor, "B N"], count: int) -> Bool[Tensor, "B P"]:
    """The official rule: P = `count` equal pieces, real where any position is."""
    length = mask.shape[1] // count
    return mask[:, : mask.shape[1] - mask.shape[1] % count].unflatten(1, (count, length)).any(-1)


def checked_rule(rule: PaddingRule) -> PaddingRule:
    """The rule itself.

    Raises:
        ValueError: there is no such rule.
    """
    if rule not in get_args(PaddingRule):
        raise ValueError(f"padding is {' or '.join(map(repr, get_args(PaddingRule)))}, not {rule!r}.")
    return rule
