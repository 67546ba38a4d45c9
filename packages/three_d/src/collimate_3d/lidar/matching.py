"""Motion between two sweeps from what is said of their points: pairs that choose one another, and the rigid motion on
which most of them agree.

    (i, j) is a pair where j is the nearest to i among all of the other sweep, and i the nearest to j,
    T = argmin Σ | T p_i - q_j |²    over the pairs that agree (Arun, Huang, Blostein 1987, by a singular value
                                     decomposition),

and which agree is found by triples that are drawn (Fischler and Bolles 1981, RANSAC). Unlike closest points
(`collimate_3d.lidar.registration`), it needs no first guess.

Shape legend: N points of a sweep, M of the next, P pairs, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

AGREE = 0.5  # ours, in metres: a voxel or two, by which a pair may miss
TRIPLES = 4000  # ours: with a tenth of the pairs right, one in 1000 is
AT_ONCE = 500  # ours: triples
REFITS = 5  # ours


def mutual_matches(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"], rows: int = 2048) -> Int64[Tensor, "P 2"]:
    """Pairs of features of which each has the other as its nearest by cosine, by rising place in the first.

    Args:
        rows: of the first, that are compared at a time.
    """
    if not len(first) or not len(second):
        return torch.zeros(0, 2, dtype=torch.int64, device=first.device)
    first, second = normalize(first, dim=1), normalize(second, dim=1)
    ahead, best = [], torch.full((len(second),), -torch.inf, device=second.device, dtype=second.dtype)
    back = torch.zeros(len(second), dtype=torch.int64, device=second.device)
    for start in range(0, len(first), rows):
        cosines = first[start : start + rows] @ second.T
        ahead.append(cosines.argmax(1))
        nearest = cosines.max(0)
        back = torch.where(nearest.values > best, nearest.indices + start, back)
        best = torch.maximum(best, nearest.values)
    chosen = torch.cat(ahead)
    places = torch.arange(len(first), device=first.device)
    mutual = back[chosen] == places
    return torch.stack([places[mutual], chosen[mutual]], 1)


def rigid_motion(
    source: Float[np.ndarray, "*some P 3"], target: Float[np.ndarray, "*some P 3"]
) -> Float[np.ndarray, "*some 4 4"]:
    """The motion that brings points nearest to their partners, by least squares; float64."""
    middles = source.mean(-2, keepdims=True), target.mean(-2, keepdims=True)
    left, _, right = np.linalg.svd(np.swapaxes(target - middles[1], -1, -2) @ (source - middles[0]))
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]  # no mirror image
    motion = np.zeros((*source.shape[:-2], 4, 4))
    motion[..., :3, :3] = left @ right
    motion[..., :3, 3] = (middles[1] - middles[0] @ np.swapaxes(motion[..., :3, :3], -1, -2))[..., 0, :]
    motion[..., 3, 3] = 1
    return motion


def agreed_motion(
    source: Float[np.ndarray, "P 3"], target: Float[np.ndarray, "P 3"], agree: float = AGREE, seed: int = 0
) -> Float[np.ndarray, "4 4"]:
    """The motion on which most pairs of points agree.

    Args:
        source, target: the points of each pair.
        agree: metres by which a pair may miss.
        seed: of the triples.

    Returns:
        (4, 4) float64, from the frame of the sources into that of the targets.

    Raises:
        ValueError: fewer than three pairs.
    """
    if len(source) < 3:
        raise ValueError(f"{len(source)} pairs do not tell a motion: at least three do.")
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    drawn = np.random.default_rng(seed).integers(len(source), size=(TRIPLES, 3))
    best, most = np.eye(4), -1
    for some in np.split(drawn, TRIPLES // AT_ONCE):
        motions = rigid_motion(source[some], target[some])
        counts = (_misses(motions, source, target) <= agree).sum(1)
        if counts.max() > most:
            best, most = motions[counts.argmax()], int(counts.max())
    for _ in range(REFITS):
        right = _misses(best[None], source, target)[0] <= agree
        if right.sum() < 3:
            break
        best = rigid_motion(source[right], target[right])
    return best


def _misses(
    motions: Float[np.ndarray, "T 4 4"], source: Float[np.ndarray, "P 3"], target: Float[np.ndarray, "P 3"]
) -> Float[np.ndarray, "T P"]:
    """Metres by which each motion misses each pair."""
    moved = source @ np.swapaxes(motions[:, :3, :3], 1, 2) + motions[:, None, :3, 3]
    return np.linalg.norm(moved - target, axis=2)
