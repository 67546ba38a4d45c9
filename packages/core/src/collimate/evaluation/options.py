"""The options that many verbs have, written once: a verb takes `**options: Unpack[Measured]` and hands them on.

An option that is not given is not handed on, so that its default stands in one place, at the function that uses it. The
command line shows the descriptions of a class's own docstring, which therefore repeats those of its base.
"""

from __future__ import annotations

from typing import Literal, TypedDict

Precision = Literal["float32", "bfloat16", "float16"]


class Reading(TypedDict, total=False):
    """How samples are read and encoded.

    Args:
        batch_size: samples encoded at a time; 64 unless given.
        num_workers: processes that read and decode; 0, the default, reads in this one.
        device: `auto`, the default, is the first GPU where there is one, else the CPU.
        precision: of the encoders; float32 unless given.
    """

    batch_size: int
    num_workers: int
    device: str
    precision: Precision


class Measured(Reading, total=False):
    """How samples are read and encoded, how many, and how sure the numbers are.

    Args:
        batch_size: samples encoded at a time; 64 unless given.
        num_workers: processes that read and decode; 0, the default, reads in this one.
        device: `auto`, the default, is the first GPU where there is one, else the CPU.
        precision: of the encoders; float32 unless given.
        limit: at most so many samples, spread over the data; all unless given.
        resamples: of the bootstrap intervals; 1000 unless given.
    """

    limit: int | None
    resamples: int
