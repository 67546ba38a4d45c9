"""Contrast-limited adaptive histogram equalisation (CLAHE; Zuiderveld 1994, Graphics Gems IV), as scikit-image has it.

The picture is cut into tiles, an eighth of its side each. For each tile, a histogram of the grey values is clipped at a
limit, what was cut off is shared out over all bins, and its running sum maps grey values to new ones. Each pixel's new
value is interpolated between the maps of the four tiles whose middles surround it.

MoRE (svthapa/MoRE, utils/create_dataset.py) prepares X-rays so, on which its weights depend.

Shape legend: H W pixels, h w of a tile, K bins.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8

TILES = 8  # along each side
CLIP_LIMIT = 0.01  # of the pixels of a tile, in one bin
LEVELS, BINS = 2**14, 256


def equalized(picture: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """A grey picture with equalised contrast. One of a single value is black."""
    grey = picture.astype(np.float64)
    low, high = grey.min(), grey.max()
    if high == low:
        return np.zeros_like(picture)
    levels = np.round((grey - low) / (high - low) * (LEVELS - 1)).astype(np.int64)
    found = _interpolated(levels // (1 + LEVELS // BINS), [max(side // TILES, 1) for side in picture.shape])
    low, high = found.min(), found.max()
    if high == low:
        return np.zeros_like(picture)
    return ((found - low) / (high - low) * 255).astype(np.uint8)  # cut off, not rounded, as there


def _interpolated(bins: Int[np.ndarray, "H W"], tile: list[int]) -> Float[np.ndarray, "H W"]:
    """New grey values: each a mean of four tiles' maps, by how near their middles are."""
    (rows, columns), (height, width) = bins.shape, tile
    # Half a tile in front, and behind so much that the rest is a whole number of tiles and another half.
    ends = [(-side % size) + -(-size // 2) for side, size in zip(bins.shape, tile, strict=True)]
    padded = np.pad(bins, [(height // 2, ends[0]), (width // 2, ends[1])], mode="reflect")
    down, across = padded.shape[0] // height - 1, padded.shape[1] // width - 1
    inner = padded[height // 2 :, width // 2 :][: down * height, : across * width]
    tiles = inner.reshape(down, height, across, width).swapaxes(1, 2).reshape(down, across, -1)
    maps = np.pad(_maps(tiles), [(1, 1), (1, 1), (0, 0)], mode="edge")
    place = [np.arange(side) for side in (rows, columns)]
    tile_of = [(each + size // 2) // size for each, size in zip(place, tile, strict=True)]
    nearness = [(each + size // 2) % size / size for each, size in zip(place, tile, strict=True)]
    found = np.zeros(bins.shape, np.float32)
    for below in (0, 1):
        for right in (0, 1):
            mapped = maps[(tile_of[0] + below)[:, None], tile_of[1] + right, bins]
            share = np.abs(1 - below - nearness[0])[:, None] * np.abs(1 - right - nearness[1])
            found += (mapped * share).astype(np.float32)
    return np.floor(found)


def _maps(tiles: Int[np.ndarray, "y x n"]) -> Int[np.ndarray, "y x K"]:
    """The new grey value of each bin, for each tile."""
    pixels = tiles.shape[2]
    limit = max(int(CLIP_LIMIT * pixels), 1)
    histograms = [_clipped(np.bincount(tile, minlength=BINS), limit) for tile in tiles.reshape(-1, pixels)]
    sums = np.cumsum(np.stack(histograms), axis=1) * ((LEVELS - 1) / pixels)
    return np.minimum(sums, LEVELS - 1).astype(np.int64).reshape(*tiles.shape[:2], BINS)


def _clipped(histogram: Int[np.ndarray, " K"], limit: int) -> Int[np.ndarray, " K"]:
    """The histogram with at most so many pixels in a bin, and what was above shared out."""
    excess = int(np.maximum(histogram - limit, 0).sum())
    clipped = np.minimum(histogram, limit)
    each = excess // BINS
    raised = np.where(clipped < limit - each, clipped + each, clipped)
    raised = np.where(raised < limit - each, raised, limit)  # those just raised too, as there
    excess -= int((raised - clipped).sum())
    while excess > 0:  # the rest one by one, in even steps over the bins that have room
        before = excess
        for first in range(BINS):
            room = raised < limit
            step = max(1, int(room.sum()) // excess)
            taken = np.flatnonzero(room[first::step]) * step + first
            raised[taken] += 1
            excess -= len(taken)
            if excess <= 0:
                break
        if excess == before:
            break
    return raised
