"""A share of the labelled frames, for learning from few labels."""

from __future__ import annotations

import math

import numpy as np


def label_subset(frames: int, fraction: float, seed: int = 0) -> list[int]:
    """The places of a random share of the frames, in order; at least one.

    The shares of one seed contain one another: what 5 % hold, 20 % hold too.

    Args:
        frames: how many there are.
        fraction: from 0, excluded, to 1.

    Raises:
        ValueError: the fraction is none.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"A fraction of the frames lies above 0 and at most at 1; got {fraction}.")
    count = max(1, math.floor(fraction * frames + 0.5))
    return sorted(np.random.default_rng(seed).permutation(frames)[:count].tolist())
